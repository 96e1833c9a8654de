from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import nearfar
from nearfar.benchmark import measure, objectives, subjects
from nearfar.benchmark.cases import CASES, PEERS, Case, Peer
from nearfar.benchmark.run import chosen, judge, run
from nearfar.benchmark.show import show
from nearfar.benchmark.subject import Disagreement, Subject
from nearfar.cli import main
from nearfar.objectives import nt_xent

THREADS = torch.get_num_threads()
TINY = {
    "batch": 24, "dim": 4, "classes": 3, "bank": 40, "queries": 6, "k": 5, "size": 48, "small": 8, "limit_mb": 64,
}  # fmt: skip
LINUX = pytest.mark.skipif(not measure.measures_memory(), reason="memory is measured on Linux alone")


def job(case: Case, do: str, libraries: list[str], **more: Any) -> dict[str, Any]:
    sizes = {name: TINY[name] for name in case.sizes if name not in ("small", "limit_mb")}
    return {"do": do, "subject": case.subject, "sizes": sizes, "libraries": libraries, "threads": THREADS, **more}


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, Any]]:
    """Runs the jobs here, at tiny sizes, and keeps them; the peers count as absent."""
    done: list[Mapping[str, Any]] = []

    def fresh(given: Mapping[str, Any]) -> dict[str, Any]:
        done.append(given)
        try:
            return subjects.do({**given, "sizes": {name: TINY[name] for name in given["sizes"]}})
        except Exception as error:  # as the last line of a traceback would say it
            raise measure.Failed(f"{type(error).__name__}: {error}") from error

    monkeypatch.setattr(measure, "fresh", fresh)
    monkeypatch.setattr(Peer, "installed", lambda self: False)
    monkeypatch.setenv("COLUMNS", "160")
    return done


def pretend(monkeypatch: pytest.MonkeyPatch, name: str, loss: Callable[..., torch.Tensor], module: str) -> None:
    """Makes a function the peer's loss of a subject, and that peer installed."""
    ours, _, *rest = objectives.LOSSES[name]
    monkeypatch.setitem(objectives.LOSSES, name, (ours, lambda labels: loss, *rest))
    monkeypatch.setattr(Peer, "installed", lambda self: self.module == module)


# -- cases and subjects ------------------------------------------------------------------------------------------------


def test_cases_name_known_subjects_peers_and_sizes():
    for name, case in CASES.items():
        assert case.name == name
        assert case.subject in {*objectives.LOSSES, *subjects.STORES}
        assert case.peer in {"", *PEERS}
        assert set(case.quick) <= set(case.sizes)
        assert all(case.quick[size] < case.sizes[size] for size in case.quick)
        assert case.bars


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_every_subject_runs_without_its_peer(case: Case):
    found = subjects.do(job(case, "times", ["nearfar"], rounds=1))
    assert found["agreement"] == {}
    assert found["times"]["nearfar"]["rounds"] == 1
    assert ("products" in found["times"]) == (case.subject in objectives.LOSSES)


@pytest.mark.parity
@pytest.mark.parametrize("case", [case for case in CASES.values() if case.peer], ids=lambda case: case.name)
def test_every_subject_agrees_with_its_peer(case: Case):
    pytest.importorskip(case.peer)
    found = subjects.do(job(case, "times", ["nearfar", case.peer], rounds=1))
    assert set(found["times"]) >= {"nearfar", case.peer}
    assert found["agreement"]
    assert max(found["agreement"].values()) < 1e-5


def test_a_step_too_large_to_repeat_is_checked_in_part(monkeypatch: pytest.MonkeyPatch):
    found = subjects.do(job(CASES["large"], "once", ["nearfar"]))
    assert found["agreement"]["gradient"] < 1e-6
    assert found["seconds"] >= 0
    _, *rest = objectives.LOSSES["info_nce"]

    def wrong(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return 1.1 * objectives.info_nce(query, key, temperature=0.1, in_batch=True)

    monkeypatch.setitem(objectives.LOSSES, "info_nce", (lambda labels: wrong, *rest))
    with pytest.raises(Disagreement, match="gradient of the first anchors differs"):
        subjects.do(job(CASES["large"], "once", ["nearfar"]))


# -- agreement comes first ---------------------------------------------------------------------------------------------


def peer_off_in(what: str) -> Callable[..., torch.Tensor]:
    def loss(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        right = nt_xent(a, b, temperature=0.1)
        if what == "gradient":
            return right.detach() + 0 * (a.sum() + b.sum())
        return right + (0.01 if what == "value" else torch.nan)

    return loss


@pytest.mark.parametrize(
    ("what", "said"),
    [("value", "the loss of lightly differs by 0.01"), ("gradient", "the gradient of"), ("nan", "differs by nan")],
)
def test_a_wrong_value_of_the_peer_is_an_error_and_nothing_is_timed(
    what: str, said: str, monkeypatch: pytest.MonkeyPatch
):
    pretend(monkeypatch, "nt_xent", peer_off_in(what), "lightly")
    monkeypatch.setattr(measure, "interleaved", lambda *_: pytest.fail("it was timed"))
    with pytest.raises(Disagreement, match=said):
        subjects.do(job(CASES["nt_xent"], "times", ["nearfar", "lightly"], rounds=1))


def test_a_failed_case_is_reported_and_the_others_run(
    in_process: list[Mapping[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    pretend(monkeypatch, "nt_xent", peer_off_in("value"), "lightly")
    assert main(["benchmark", "objectives", "--quick", "--rounds", "1", "--cases", "nt_xent", "supcon"]) == 1
    text = capsys.readouterr().out
    assert "nt_xent: Disagreement: the loss of lightly differs by 0.01" in text
    result = run(["nt_xent", "supcon"], quick=True, rounds=1)
    failed, whole = result["cases"]
    assert "times" not in failed
    assert "error" not in whole
    assert whole["times"]["nearfar"]["rounds"] == 1


# -- the whole run -----------------------------------------------------------------------------------------------------


def test_an_absent_peer_is_named_with_its_command(in_process: list[Mapping[str, Any]], capsys: pytest.CaptureFixture):
    result = run(["nt_xent", "clip", "supcon"], rounds=1)
    assert [found["absent"] for found in result["cases"]] == [
        "pip install lightly", "pip install open_clip_torch", "pip install pytorch-metric-learning",
    ]  # fmt: skip
    assert {library for each in in_process for library in each["libraries"]} == {"nearfar"}
    assert set(result["metadata"]["versions"]) == {"torch", "nearfar"}
    for found in result["cases"]:
        assert found["met"]["speedup"] == "not judged: the peer is not installed"
        assert "agreement" not in found
    show(result)
    text = capsys.readouterr().out
    assert "not installed, so nothing beside clip: pip install open_clip_torch" in text
    assert "not judged: the peer is not installed" in text


@LINUX
def test_figures_of_a_pair(in_process: list[Mapping[str, Any]], monkeypatch: pytest.MonkeyPatch):
    pretend(monkeypatch, "siglip", lambda a, b: objectives.siglip(a, b), "open_clip")
    said: list[str] = []
    (found,) = run(["siglip"], rounds=2, threads=THREADS, say=said.append)["cases"]
    assert said[0] == "siglip: times, nearfar and open_clip"
    assert found["agreement"] == {"value": 0.0, "gradient": 0.0}
    assert set(found["times"]) == {"nearfar", "open_clip", "products"}
    ours, theirs, floor = (found["times"][name]["median_ms"] for name in ("nearfar", "open_clip", "products"))
    assert found["speedup"]["median_ms"] == pytest.approx(theirs / ours, abs=0.006)
    assert found["of_products"]["median_ms"] == pytest.approx(ours / floor, abs=0.001)
    assert set(found["extra_mb"]) == set(found["peak_mb"]) == {"nearfar", "open_clip"}
    assert found["extra_growth_mb"] == pytest.approx(found["extra_mb"]["nearfar"] - found["extra_mb_at_a_quarter"])
    assert in_process[-1]["sizes"]["batch"] == CASES["siglip"].sizes["batch"] // 4
    assert set(found["met"]) == {"speedup", "extra_growth_mb"}


@LINUX
def test_a_peer_that_does_not_fit(in_process: list[Mapping[str, Any]], monkeypatch: pytest.MonkeyPatch):
    def greedy(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if limits:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8581545984 bytes.")
        return nt_xent(a, b, temperature=0.1)

    limits: list[int] = []
    monkeypatch.setattr(measure, "limit_memory", limits.append)
    pretend(monkeypatch, "nt_xent_pml", greedy, "pytorch_metric_learning")
    (found,) = run(["cubic"])["cases"]
    assert limits == [4096]
    assert found["under_the_limit"] == {
        "nearfar": "completed", "pytorch_metric_learning": "refused when it asked for 8.6 GB more",
    }  # fmt: skip
    assert found["peer_needs"]["one_matrix_gb"] == 34.3
    alone = [each for each in in_process if each["libraries"] == ["pytorch_metric_learning"]]
    assert [each["sizes"]["batch"] for each in alone] == [128]  # never at full size without a limit
    show({"metadata": measure.metadata(), "quick": False, "cases": [found]})


def test_another_error_under_the_limit_is_no_refusal(monkeypatch: pytest.MonkeyPatch):
    def broken(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if limits:
            raise RuntimeError("shapes do not fit")
        return nt_xent(a, b, temperature=0.1)

    limits: list[int] = []
    monkeypatch.setattr(measure, "limit_memory", limits.append)
    pretend(monkeypatch, "nt_xent_pml", broken, "pytorch_metric_learning")
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        subjects.do(job(CASES["cubic"], "limit", ["nearfar", "pytorch_metric_learning"], limit_mb=1))


@pytest.mark.parity
@LINUX
def test_pytorch_metric_learning_is_refused_by_a_real_limit():
    pytest.importorskip("pytorch_metric_learning")
    sizes = {"batch": 512, "dim": 16}
    found = measure.fresh(
        {**job(CASES["cubic"], "limit", ["nearfar", "pytorch_metric_learning"], limit_mb=512), "sizes": sizes}
    )
    assert found["nearfar"] == {"completed": True}
    # A bool for each of 1,024 positive and 1,024 x 1,022 negative pairs.
    assert found["pytorch_metric_learning"] == {"completed": False, "asked_gb": round(1024 * 1024 * 1022 / 1e9, 1)}


def test_quick_leaves_slow_cases_out_unless_named_and_judges_nothing(in_process: list[Mapping[str, Any]]):
    (found,) = run(["large"], quick=True)["cases"]
    assert found["batch"] == CASES["large"].quick["batch"]
    assert "met" not in found
    assert [case.name for case in chosen((), quick=True)] == [name for name, case in CASES.items() if not case.slow]
    assert chosen((), quick=False) == list(CASES.values())


@pytest.mark.slow
def test_quick_from_the_command_line_in_real_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(Peer, "installed", lambda self: False)  # peers take seconds to import
    monkeypatch.chdir(tmp_path)
    (tmp_path / "torch.py").write_text("raise RuntimeError('a file of the user was imported for torch')")
    words = ["benchmark", "objectives", "--quick", "--cases", "queue", "--json", "figures.json", "--threads", "1"]
    assert main(words) == 0
    out = capsys.readouterr()
    assert "queue: times, nearfar" in out.err
    assert "pip install lightly" in out.out
    result = json.loads((tmp_path / "figures.json").read_text())
    assert set(result) == {"metadata", "quick", "cases"}
    about = result["metadata"]
    assert about["torch_threads"] == 1
    assert set(about) >= {"date", "machine", "system", "python", "commit", "changed", "versions"}
    (found,) = result["cases"]
    assert (found["case"], found["size"], found["absent"]) == ("queue", 8192, "pip install lightly")
    assert set(found["times"]["nearfar"]) == {"median_ms", "min_ms", "rounds"}
    if measure.measures_memory():
        assert 0 <= found["extra_mb"]["nearfar"] < 4  # the bank has 4 MB
    assert found["bars"] == {"extra_mb": 1.0}


def test_the_documentation_reads_the_figures(in_process: list[Mapping[str, Any]]):
    pytest.importorskip("sphinx")
    path = Path(__file__).parents[1] / "docs" / "pages.py"
    spec = importlib.util.spec_from_file_location("pages", path)
    assert spec is not None
    assert spec.loader is not None
    pages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pages)
    text = "\n".join(pages.result_tables(json.loads(json.dumps(run(["nt_xent", "queue"], quick=True, rounds=1)))))
    assert "| measure | nt_xent | queue |" in text
    assert "| times nearfar median ms |" in text
    assert "None" not in text


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["objectivs"], "did you mean 'objectives'?"),
        (["objectives", "--cases", "nt_xnt"], "did you mean 'nt_xent'?"),
        (["objectives", "--json", "no/such/figures.json"], "--json: expected a file in a folder that exists"),
        (["objectives", "--json", "."], "--json: expected a file, received the folder ."),
        (["objectives", "--rounds", "-1"], "rounds: expected 0 or more"),
        (["objectives", "--threads", "-1"], "threads: expected 0 or more"),
    ],
)
def test_wrong_words(words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(measure, "fresh", lambda job: pytest.fail("something ran"))
    assert main(["benchmark", *words]) == 2
    assert said in capsys.readouterr().err


def test_help_loads_no_torch():
    code = """
import sys
from nearfar.cli import main
for words in (["benchmark"], ["benchmark", "--help"], ["benchmark", "objectives", "--help"]):
    assert main(words) == 0
import nearfar.benchmark.run, nearfar.benchmark.show
sys.exit(99 if {"torch", "lightly", "open_clip", "pytorch_metric_learning"} & set(sys.modules) else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "nearfar benchmark objectives" in done.stdout
    assert "--quick" in done.stdout


# -- measuring and judging ---------------------------------------------------------------------------------------------


def test_bars_are_judged_by_medians_and_our_own_figure():
    bars = {"of_products": 0.8, "speedup": 6.0, "extra_mb": 32.0, "extra_growth_mb": 16.0}
    found: dict[str, Any] = {
        "of_products": {"median_ms": 0.8, "min_ms": 0.9}, "speedup": {"median_ms": 5.9, "min_ms": 7.0},
        "extra_mb": {"nearfar": 32.1, "lightly": 1.0}, "extra_growth_mb": 3.0,
    }  # fmt: skip
    assert judge(found, bars) == {"of_products": True, "speedup": False, "extra_mb": False, "extra_growth_mb": True}
    found["speedup"]["median_ms"], found["extra_mb"]["nearfar"] = 6.0, 32.0
    assert all(verdict is True for verdict in judge(found, bars).values())
    assert judge({}, {"extra_mb": 1.0, "speedup": 1.0}) == dict.fromkeys(bars.keys() & {"extra_mb", "speedup"},
                                                                         "not judged: no figure")  # fmt: skip


def test_rounds_alternate_and_the_first_is_not_counted(monkeypatch: pytest.MonkeyPatch):
    clock = iter([0.0, 0.0, 0.0, 1.0, 0.0, 2.0, 0.0, 3.0, 0.0, 4.0, 0.0, 8.0, 0.0, 6.0])
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    order: list[str] = []
    found = measure.interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3)
    assert order == ["a", "b"] * 4
    assert found["a"] == {"median_ms": 3000.0, "min_ms": 1000.0, "rounds": 3}
    assert found["b"] == {"median_ms": 4000.0, "min_ms": 2000.0, "rounds": 3}


@LINUX
def test_peak_is_what_a_call_held_for_a_moment():
    blocks = [torch.ones(2**18) for _ in range(16)]
    del blocks  # 16 MB that are free but may still be held
    found = measure.peak_of(lambda: float(torch.ones(10 * 2**20).sum()))
    assert 39 < found < 50
    assert measure.peak_of(lambda: None) < 4


@LINUX
def test_extra_leaves_out_gradients_and_one_copy(monkeypatch: pytest.MonkeyPatch):
    held = Subject(steps={"nearfar": lambda: torch.ones(10 * 2**20)}, compare=dict, operands_mb=24.0)
    monkeypatch.setattr(objectives, "objective", lambda name, **sizes: held)
    found = subjects.do(job(CASES["nt_xent"], "memory", ["nearfar"]))
    assert found["extra_mb"] == pytest.approx(found["peak_mb"] - 24)


def test_operands_are_a_copy_and_a_gradient_of_each_input():
    assert objectives.objective("nt_xent", libraries=["nearfar"], batch=1024, dim=128).operands_mb == 2 * 2 * 0.5
    assert objectives.objective("supcon", libraries=["nearfar"], batch=1024, dim=128).operands_mb == 2 * 0.5
    with pytest.raises(ValueError, match="library: expected 'nearfar' alone for info_nce, received 'lightly'"):
        objectives.objective("info_nce", libraries=["lightly"], batch=4, dim=2)
    with pytest.raises(ValueError, match="did you mean 'nt_xent'"):
        objectives.objective("nt_xnt", libraries=["nearfar"], batch=4, dim=2)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo Traceback >&2; echo 'ValueError: [wrong]' >&2; echo >&2; exit 1", r"^ValueError: \[wrong\]$"),
        ("exit 3", "no message"),
        ("kill -9 $$", "ended by signal 9"),
    ],
)
def test_a_process_that_fails_says_why(script: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(measure.sys, "executable", str(python))
    with pytest.raises(measure.Failed, match=said):
        measure.fresh({})


def test_the_commit_is_never_that_of_a_project_around_an_installed_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "__init__.py").write_text("")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@y"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], check=True)
    monkeypatch.setattr(nearfar, "__file__", str(tmp_path / "site" / "__init__.py"))
    assert measure.metadata()["commit"] == "unknown"
    subprocess.run([*git, "add", "site"], check=True)
    assert len(measure.metadata()["commit"]) == 40
