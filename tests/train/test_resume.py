"""A run that is killed and resumed ends as one that was never stopped, to the bit."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

import jobs
from nearfar.train import CheckpointError, Interrupted, Run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes, dict]:
    output = tmp_path_factory.mktemp("whole") / "run"
    assert jobs.run(jobs.train_toy, str(output)) == 0
    return jobs.result(output)


# Before the first checkpoint, inside an epoch, at its end, one after it, and at the last step.
@pytest.mark.parametrize("kill_at", [1, 6, 14, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 5, 9, 10, 15))])
def test_sigkill_at_any_step(tmp_path: Path, whole: tuple, kill_at: int) -> None:
    output = tmp_path / "run"
    assert jobs.run(jobs.train_toy, str(output), False, kill_at) == -signal.SIGKILL
    assert jobs.run(jobs.train_toy, str(output), True) == 0
    assert jobs.result(output) == whole
    assert Run(output).status["status"] == "finished"


@pytest.mark.parametrize(("workers", "kill_at"), [pytest.param(2, 4, marks=pytest.mark.slow), (2, 11), (0, 8)])
def test_sigkill_between_frequent_checkpoints_and_with_workers(
    tmp_path: Path, whole: tuple, workers: int, kill_at: int
) -> None:
    output = tmp_path / "run"
    assert jobs.run(jobs.train_toy, str(output), False, kill_at, 0, workers, 3) == -signal.SIGKILL
    assert jobs.run(jobs.train_toy, str(output), True, 0, 0, workers, 3) == 0
    assert jobs.result(output) == whole


@pytest.mark.slow
def test_killed_twice(tmp_path: Path, whole: tuple) -> None:
    output = tmp_path / "run"
    assert jobs.run(jobs.train_toy, str(output), False, 7, 0, 0, 2) == -signal.SIGKILL
    assert jobs.run(jobs.train_toy, str(output), True, 12, 0, 0, 2) == -signal.SIGKILL
    assert jobs.run(jobs.train_toy, str(output), True, 0, 0, 0, 2) == 0
    assert jobs.result(output) == whole


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_signal_saves_and_leaves_with_a_message(tmp_path: Path, whole: tuple, signum: int) -> None:
    output = tmp_path / "run"
    assert jobs.run(jobs.train_toy, str(output), False, 7, signum) == 128 + signum
    status = Run(output).status
    assert status["status"] == "interrupted"
    assert "stopped at step 7 of 15" in status["message"]
    assert "--resume" in status["message"]
    assert jobs.run(jobs.train_toy, str(output), True) == 0
    assert jobs.result(output) == whole


def test_in_a_script_the_signal_ends_fit_with_interrupted(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="stopped at step 4") as caught:
        jobs.train_toy(str(tmp_path / "run"), kill_at=4, signum=signal.SIGTERM)
    assert caught.value.code == 128 + signal.SIGTERM


def test_a_folder_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    output = tmp_path / "run"
    jobs.train_toy(str(output), changes={"epochs": 1})
    before = jobs.result(output)
    with pytest.raises(ValueError, match="trainer.output: expected an empty folder, or resume"):
        jobs.train_toy(str(output))
    assert jobs.result(output) == before


def test_a_checkpoint_of_another_recipe_is_refused_and_kept(tmp_path: Path) -> None:
    output = tmp_path / "run"
    jobs.train_toy(str(output), changes={"epochs": 1})
    before = jobs.result(output)
    with pytest.raises(CheckpointError, match=r"belongs to another run .*trainer.seed: there 0, now 5"):
        jobs.train_toy(str(output), resume=True, changes={"epochs": 1, "seed": 5})
    assert jobs.result(output) == before


def test_a_half_written_newest_checkpoint_costs_only_its_own_steps(tmp_path: Path, whole: tuple) -> None:
    output = tmp_path / "run"
    assert jobs.run(jobs.train_toy, str(output), False, 12) == -signal.SIGKILL
    newest = Run(output).checkpoints[-1]
    file = newest / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.warns(UserWarning, match="going on from step-000000005 instead"):
        jobs.train_toy(str(output), resume=True)
    assert jobs.result(output) == whole


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path, whole: tuple) -> None:
    output = tmp_path / "run"
    assert jobs.run(jobs.train_toy, str(output)) == 0
    jobs.train_toy(str(output), resume=True)
    assert jobs.result(output) == whole


def test_what_stands_in_a_run_folder(tmp_path: Path) -> None:
    run = jobs.train_toy(str(tmp_path / "run"))
    names = {p.name for p in run.path.iterdir()}
    assert {"recipe.json", "environment.json", "metrics.jsonl", "timings.jsonl", "scores.json", "status.json",
            "checkpoints", "report.html"} <= names  # fmt: skip
    rows = [r for r in run.metrics if "loss" in r]
    assert [r["step"] for r in rows] == list(range(1, 16))
    assert not any("second" in key or "busy" in key for row in rows for key in row)
    assert {"alignment", "uniformity", "effective_rank", "dead_dimensions"} <= set(rows[0])
    assert {"before", "after"} == set(run.scores)
    assert json.loads((run.path / "checkpoints" / "best.json").read_text())["monitor"] == "knn"
