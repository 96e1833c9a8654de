from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nearfar import runs
from nearfar.cli import main
from nearfar.runs import find, summarise

RECIPE = {"schema": 1, "recipe": "images/simclr", "values": {"trainer": {"monitor": "knn"}}}


def make(path: Path, *, status: dict[str, Any] | None = None, metrics: str = "", **files: Any) -> Path:
    path.mkdir(parents=True)
    (path / "recipe.json").write_text(json.dumps(RECIPE))
    if status is not None:
        (path / "status.json").write_text(json.dumps(status))
    if metrics:
        (path / "metrics.jsonl").write_text(metrics)
    for name, value in files.items():
        (path / f"{name}.json").write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def rows(*values: dict[str, Any]) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def dead_pid() -> int:
    """The id of a process that has ended."""
    done = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


def test_a_finished_run(tmp_path: Path):
    path = make(
        tmp_path / "one",
        status={"status": "finished", "step": 40, "steps": 40, "pid": 1, "started": "2026-01-01T10:00:00+00:00",
                "updated": "2026-01-01T11:00:00+00:00"},
        metrics=rows(
            {"step": 10, "epoch": 0, "loss": 3.5, "lr": 0.1},
            {"step": 20, "scores": {"knn": 0.9, "linear": 0.99}},
            {"step": 30, "scores": {"knn": {"value": 0.8, "low": 0.7, "high": 0.9}}},
            {"step": 40, "epoch": 1, "loss": 2.5, "lr": 0.0},
        ),
    )  # fmt: skip
    run = summarise(path)
    assert (run.recipe, run.status, run.step, run.steps) == ("images/simclr", "finished", 40, 40)
    assert (run.monitor, run.best, run.loss) == ("knn", 0.9, 2.5)
    assert (run.started, run.updated) == ("2026-01-01T10:00:00+00:00", "2026-01-01T11:00:00+00:00")
    assert run.damage == ()


def test_the_best_checkpoint_is_believed_before_the_rows(tmp_path: Path):
    path = make(tmp_path / "one", metrics=rows({"step": 1, "scores": {"knn": 0.9, "linear": 0.5}}))
    (path / "checkpoints").mkdir()
    (path / "checkpoints" / "best.json").write_text(json.dumps({"step": 1, "score": 0.7, "monitor": "linear"}))
    assert (summarise(path).monitor, summarise(path).best) == ("linear", 0.7)
    (path / "checkpoints" / "best.json").unlink()
    assert (summarise(path).monitor, summarise(path).best) == ("knn", 0.9)


def test_scores_after_training_serve_without_rows(tmp_path: Path):
    scores = {"before": {"knn": {"value": 0.99}}, "after": {"knn": {"value": 0.6, "low": 0.5, "high": 0.7, "n": 9}}}
    assert summarise(make(tmp_path / "one", scores=scores)).best == 0.6


def test_a_running_run_whose_process_is_gone_was_interrupted(tmp_path: Path):
    here = platform.node()
    dead = dead_pid()
    states = {
        "alive": {"status": "running", "pid": os.getpid(), "host": here},
        "dead": {"status": "running", "pid": dead, "host": here},
        "unnamed": {"status": "running", "pid": dead},
        "elsewhere": {"status": "running", "pid": dead, "host": f"{here}-other"},
        "odd": {"status": "running", "pid": "x"},
        "failed": {"status": "failed", "pid": dead, "host": here, "message": "CUDA ran out of memory"},
    }
    found = {name: summarise(make(tmp_path / name, status=state)).status for name, state in states.items()}
    assert found == {
        "alive": "running", "dead": "interrupted", "unnamed": "interrupted", "elsewhere": "running", "odd": "running",
        "failed": "failed",
    }  # fmt: skip


def test_half_written_and_damaged_files_are_counted_and_named(tmp_path: Path):
    good = rows({"step": 10, "loss": 3.0}, {"step": 20, "loss": 2.0})
    run = summarise(make(tmp_path / "half", status={"status": "running"}, metrics=good + '{"step": 30, "lo'))
    assert (run.loss, run.step, run.damage) == (2.0, 20, ("metrics.jsonl: 1 line left out",))
    run = summarise(make(tmp_path / "rows", metrics='{"step": 10, "loss": 3.0}\n[1]\nxx\n\n'))
    assert run.damage == ("metrics.jsonl: 2 lines left out",)
    path = make(tmp_path / "broken", status={}, scores="[")
    (path / "status.json").write_text("{")
    (path / "recipe.json").write_bytes(b"\xff\x00")
    run = summarise(path)
    assert (run.status, run.recipe, run.best, run.loss) == ("unknown", "unknown", None, None)
    assert run.damage == tuple(f"{name}.json: does not parse" for name in ("recipe", "status", "scores"))


@pytest.mark.parametrize("value", [[], 3, "x", None, {"values": 3}, {"values": {"trainer": []}, "recipe": 7}])
def test_json_of_another_form_is_no_crash(tmp_path: Path, value: Any):
    path = make(
        tmp_path / "one", status={"status": 3, "step": "x", "steps": None}, metrics=rows({"step": "x", "scores": 3})
    )
    for name in ("recipe.json", "scores.json"):
        (path / name).write_text(json.dumps(value))
    run = summarise(path)
    assert (run.recipe, run.status, run.step, run.best) == ("unknown", "unknown", None, None)


def test_find_looks_into_folders_but_not_into_runs(tmp_path: Path):
    old = {"status": "finished", "updated": "2026-01-01T10:00:00+00:00"}
    new = {"status": "finished", "updated": "2026-02-01T10:00:00+00:00"}
    first = make(tmp_path / "a", status=old)
    make(first / "checkpoints" / "step-1")
    second = make(tmp_path / "deep" / "er" / "b", status=new)
    make(tmp_path / ".hidden" / "c")
    (tmp_path / "link").symlink_to(second)
    assert [run.path for run in find(tmp_path)] == [str(second), str(first)]
    assert [run.path for run in find(first)] == [str(first)]
    with pytest.raises(FileNotFoundError, match=r"folder of runs: .* does not exist"):
        find(tmp_path / "none")
    with pytest.raises(ValueError, match=r"run folder: expected a folder with recipe\.json"):
        summarise(tmp_path / "deep")


def test_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setenv("COLUMNS", "160")
    make(
        tmp_path / "one [x]",
        status={"status": "finished", "step": 4, "steps": 8},
        metrics=rows({"step": 4, "loss": 2.5}),
    )
    make(tmp_path / "two", status={"status": "failed", "message": "out of [memory]"}, metrics="{")
    assert main(["runs", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    for part in (
        "one [x]",
        "images/simclr",
        "finished",
        "4/8",
        "2.5",
        "failed",
        "out of [memory]",
        "metrics.jsonl: 1 line left out",
    ):
        assert part in text
    assert "\x1b" not in text
    (tmp_path / "empty").mkdir()
    assert main(["runs", str(tmp_path / "empty")]) == 0
    assert "No runs under" in capsys.readouterr().out


def test_on_a_narrow_terminal_the_numbers_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setenv("COLUMNS", "80")
    when = "2026-01-01T10:00:00+00:00"
    state = {"status": "interrupted", "step": 12345, "steps": 99999, "updated": when}
    make(
        tmp_path / ("images-simclr-" * 5),
        status=state,
        metrics=rows({"step": 1, "loss": 1.2345, "scores": {"knn": 0.5}}),
    )
    assert main(["runs", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    for part in ("interrupted", "12345/99999", "knn 0.500", "1.234", "2026-01-01"):
        assert part in text
    assert "images/simclr" not in text


def test_json_prints_only_json(tmp_path: Path, capsys: pytest.CaptureFixture):
    make(tmp_path / "one", status={"status": "finished", "step": 4, "steps": 8})
    assert main(["runs", str(tmp_path), "--json"]) == 0
    out = capsys.readouterr()
    (run,) = json.loads(out.out)
    assert (run["status"], run["step"], run["best"], run["damage"]) == ("finished", 4, None, [])
    assert not out.err


def test_what_the_trainer_writes_is_read(tmp_path: Path):
    run_module = pytest.importorskip("nearfar.train.run", reason="needs the trainer's run folder")
    run = run_module.Run(tmp_path / "run")
    run.write("recipe.json", RECIPE)
    run.set_status("running", step=3, steps=9)
    run.append("metrics.jsonl", {"step": 3, "epoch": 0, "loss": 1.25})
    seen = summarise(tmp_path / "run")
    assert (seen.status, seen.step, seen.steps, seen.loss, seen.damage) == ("running", 3, 9, 1.25, ())
    assert seen.updated


def test_statuses_are_those_of_the_contract():
    assert runs.STATUSES == ("running", "finished", "interrupted", "failed")
