"""Stages: order, what is done again and what is not, damage, and a stage that is killed in the middle."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import jobs
from nearfar.train import (
    Arrays,
    Artefact,
    Context,
    Features,
    IndexSet,
    Labels,
    PairSet,
    Pipeline,
    Run,
    Stage,
    TrainedRun,
    Trainer,
    Values,
    train_stage,
)  # fmt: skip

DONE: list[str] = []


def numbers(context: Context) -> dict[str, Artefact]:
    DONE.append("numbers")
    return {"set": IndexSet(np.arange(context.options["num"]))}


def double(context: Context) -> dict[str, Artefact]:
    DONE.append("double")
    return {"set": IndexSet(2 * context.inputs["numbers.set"].index)}


def total(context: Context) -> dict[str, Artefact]:
    DONE.append("total")
    return {"sum": Values({"sum": int(context.inputs["double.set"].index.sum())})}


def pipeline(folder: Path, num: int = 4, factor: int = 1) -> Pipeline:
    DONE.clear()
    return Pipeline(folder, [
        Stage("numbers", numbers, options={"num": num}),
        Stage("double", double, inputs=("numbers.set",), options={"factor": factor}),
        Stage("total", total, inputs=("double.set",)),
    ])  # fmt: skip


def test_stages_run_in_order_and_once(tmp_path: Path) -> None:
    found = pipeline(tmp_path).run()
    assert DONE == ["numbers", "double", "total"]
    assert found["total.sum"].values == {"sum": 12}
    again = pipeline(tmp_path).run(resume=True)
    assert DONE == []
    assert again["total.sum"].values == {"sum": 12}
    assert again["double.set"].index.tolist() == [0, 2, 4, 6]
    with pytest.raises(ValueError, match="folder: expected an empty one, or resume"):
        pipeline(tmp_path).run()


def test_what_changed_is_done_again_and_what_follows_from_it(tmp_path: Path) -> None:
    pipeline(tmp_path).run()
    found = pipeline(tmp_path, num=5).run(resume=True)
    assert DONE == ["numbers", "double", "total"]
    assert found["total.sum"].values == {"sum": 20}
    pipeline(tmp_path, num=5, factor=2).run(resume=True)
    assert DONE == ["double"]  # whose output is the same as before, so that nothing follows
    assert pipeline(tmp_path, num=6, factor=2).status() == {
        "numbers": "out of date", "double": "out of date", "total": "out of date",
    }  # fmt: skip


def test_from_and_only(tmp_path: Path) -> None:
    pipeline(tmp_path).run()
    pipeline(tmp_path).run(start="double")
    assert DONE == ["double", "total"]
    found = pipeline(tmp_path).run(only="double")
    assert DONE == ["double"]
    assert "total.sum" in found
    pipeline(tmp_path, factor=3).run(only="double")
    assert DONE == ["double"]
    with pytest.raises(ValueError, match="stage 'numbers': expected done, .* before 'double', received not done"):
        pipeline(tmp_path, num=9).run(only="double")
    with pytest.raises(ValueError, match="start: expected one of"):
        pipeline(tmp_path).run(start="treble")
    with pytest.raises(ValueError, match="start, only: expected one of them"):
        pipeline(tmp_path).run(start="double", only="total")
    with pytest.raises(ValueError, match="stage 'numbers': expected done"):
        pipeline(tmp_path / "new").run(only="total")


def test_a_stage_that_fails_leaves_the_others(tmp_path: Path) -> None:
    def fails(context: Context) -> Mapping[str, Artefact]:
        (context.folder / "partial").write_text("half")
        raise RuntimeError("no")

    broken = Pipeline(
        tmp_path, [Stage("numbers", numbers, options={"num": 4}), Stage("double", fails, ("numbers.set",))]
    )
    with pytest.raises(RuntimeError, match="no"):
        broken.run()
    assert broken.status() == {"numbers": "done", "double": "unfinished"}
    seen = []

    def goes_on(context: Context) -> Mapping[str, Artefact]:
        seen.append((context.resume, (context.folder / "partial").exists()))
        return {}

    for _ in range(2):
        Pipeline(tmp_path, [*broken.stages[:1], Stage("double", goes_on, ("numbers.set",))]).run(resume=True)
    assert seen == [(True, True)]
    Pipeline(tmp_path, [*broken.stages[:1], Stage("double", goes_on, ("numbers.set",), {"new": 1})]).run(resume=True)
    assert seen[1:] == [(False, False)]  # other options: nothing of the old try is left


def test_damage_is_named(tmp_path: Path) -> None:
    pipeline(tmp_path).run()
    file = tmp_path / "double" / "artefacts" / "set" / "index.npy"
    np.save(file, np.arange(3))
    with pytest.raises(ValueError, match=r"artefact double.set: expected the files .*; do the stage again"):
        pipeline(tmp_path).run(resume=True)
    pipeline(tmp_path).run(start="double")
    assert json.loads((tmp_path / "total" / "artefacts" / "sum" / "values.json").read_text()) == {"sum": 12}


@pytest.mark.parametrize(
    "artefact",
    [
        IndexSet(np.array([3, 1])),
        Labels(np.array([0, -1, 2]), ("a", "b", "c")),
        PairSet(np.array([0, 1]), np.array([2, 3])),
        PairSet(np.array([0, 1]), np.array([2, 3]), np.array([0.5, 1.0])),
        Features(np.ones((2, 3), np.float32), np.array([5, 6])),
        Values({"a": 1, "b": [1.5, "x", None]}),
        Arrays({"a": np.arange(6).reshape(2, 3), "b": np.zeros((0, 4), np.float32)}),
    ],
    ids=lambda x: x.kind,
)
def test_artefacts_come_back(artefact: Any, tmp_path: Path) -> None:
    artefact.save(tmp_path)
    back = type(artefact).load(tmp_path)
    for name, value in vars(artefact).items():
        if isinstance(artefact, Arrays):
            assert back.values.keys() == value.keys()
            for key, array in value.items():
                np.testing.assert_array_equal(back.values[key], array)
                assert back.values[key].dtype == array.dtype
        elif isinstance(value, np.ndarray):
            np.testing.assert_array_equal(getattr(back, name), value)
            assert getattr(back, name).dtype == value.dtype
        else:
            assert getattr(back, name) == value


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: IndexSet(np.ones((2, 2), int)), r"index: expected 1 dimension"),
        (lambda: PairSet(np.arange(2), np.arange(3)), r"second: expected shape \(2,\)"),
        (lambda: Features(np.ones((2, 3)), np.arange(3)), "index: expected 2 numbers"),
        (lambda: Pipeline("x", [Stage("a b", numbers)]), "stage: expected names of letters"),
        (lambda: Pipeline("x", [Stage("a", numbers), Stage("a", numbers)]), "each once"),
        (lambda: Pipeline("x", [Stage("a", numbers, ("b.set",))]), "of an earlier stage"),
    ],
)
def test_refuses(make: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


def test_refuses_types(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="index: expected integers"):
        IndexSet(np.ones(2))
    with pytest.raises(TypeError, match="values 'a': expected an array of numbers"):
        Arrays({"a": np.array(["x"])})
    with pytest.raises(TypeError, match="stage options: expected plain values"):
        Pipeline(tmp_path / "a", [Stage("a", numbers, options={"x": object()})]).run()
    with pytest.raises(TypeError, match="output 'x': expected one of index-set"):
        Pipeline(tmp_path / "b", [Stage("a", lambda context: {"x": 3})]).run()


# -- training stages ---------------------------------------------------------------------------------------------------


def staged(folder: str, kill_at: int = 0) -> None:
    """Two training runs, the second of which begins with the scores of the first, with a stage between."""
    from nearfar.config import EvaluateConfig, OptimiserConfig, TrainerConfig
    from nearfar.data import Data
    from toys import Toy, Vectors

    def make(context: Context) -> Trainer:
        import torch

        torch.manual_seed(1 if not context.inputs else 1 + int(context.inputs["between.values"].values["step"]))

        def callback(trainer: Trainer, row: dict[str, Any]) -> None:
            if kill_at and context.inputs and trainer.step == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        return Trainer(
            Toy(dropout=0.2), Data(train=Vectors(40), test=Vectors(15, seed=3)),
            TrainerConfig(epochs=2, batch_size=8, log_every=1, checkpoint_every=1, progress=False, device="cpu"),
            optimiser=OptimiserConfig(lr=0.01), callbacks=[callback],
            evaluate=EvaluateConfig(num_neighbours=3, per_class=2, few_label_draws=2),
        )  # fmt: skip

    def between(context: Context) -> dict[str, Artefact]:
        return {"values": Values({"step": context.inputs["first.run"].run.status["step"]})}

    Pipeline(folder, [
        Stage("first", train_stage(make)), Stage("between", between, ("first.run",)),
        Stage("second", train_stage(make), ("between.values",)),
    ]).run(resume=True)  # fmt: skip


def test_a_stage_killed_in_the_middle_goes_on_to_the_bit(tmp_path: Path) -> None:
    assert jobs.run(staged, str(tmp_path / "whole")) == 0
    assert jobs.run(staged, str(tmp_path / "parts"), 7) == -signal.SIGKILL
    first = (tmp_path / "parts" / "first" / "done.json").read_bytes()
    assert not (tmp_path / "parts" / "second" / "done.json").exists()
    assert jobs.run(staged, str(tmp_path / "parts")) == 0
    assert (tmp_path / "parts" / "first" / "done.json").read_bytes() == first
    for stage in ("first", "second"):
        runs = [Run(tmp_path / name / stage / "run") for name in ("whole", "parts")]
        files = [(run.checkpoint("last") / "model.safetensors").read_bytes() for run in runs]
        assert files[0] == files[1]
        assert runs[0].metrics == runs[1].metrics


def test_a_run_is_found_where_the_folder_was_moved(tmp_path: Path) -> None:
    assert jobs.run(staged, str(tmp_path / "old")) == 0
    (tmp_path / "old").rename(tmp_path / "new")
    found = TrainedRun.load(tmp_path / "new" / "first" / "artefacts" / "run")
    assert found.run.status["status"] == "finished"
