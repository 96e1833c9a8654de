"""A method that scores itself: its scores choose the checkpoint, and leave training as it would have been."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from nearfar.config import TrainerConfig
from nearfar.data import Data
from nearfar.evaluate import Score
from nearfar.evaluate.score import exact
from nearfar.train import Run, Trainer
from toys import Toy, Vectors


class Judged(Toy):
    """Says how often it was asked, and draws random numbers meanwhile."""

    def __init__(self) -> None:
        super().__init__(dropout=0.2)
        self.asked: list[tuple[int, bool]] = []

    def scores(self, source: Any, device: Any = "cpu") -> dict[str, Score]:
        torch.rand(3)
        self.asked.append((len(source), self.training))
        return {"quality": exact(-float(len(self.asked)), len(source))}


def train(folder: Path, every: int, test: int = 15) -> tuple[Judged, Run]:
    torch.manual_seed(3)
    method = Judged()
    config = TrainerConfig(
        epochs=4, batch_size=8, log_every=1, evaluate_every=every, monitor="quality", progress=False, device="cpu",
        report=False, output=str(folder),
    )  # fmt: skip
    return method, Trainer(method, Data(Vectors(40), Vectors(test, seed=3)), config).fit()


def test_its_scores_are_written_and_choose(tmp_path: Path) -> None:
    method, run = train(tmp_path / "run", 1)
    assert method.asked == [(15, False)] * len(method.asked)
    assert [run.scores[when]["quality"]["value"] for when in ("before", "after")] == [-1.0, -float(len(method.asked))]
    assert run.best["monitor"] == "quality"
    assert run.best["step"] == 5  # the first after training began
    assert all(set(row["scores"]) == {"quality"} for row in run.metrics if "scores" in row)


def test_training_does_not_notice(tmp_path: Path) -> None:
    often, seldom = (
        [row for row in train(tmp_path / str(every), every)[1].metrics if "loss" in row] for every in (1, 0)
    )
    assert often == seldom
