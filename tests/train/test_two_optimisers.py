"""A method that makes its own updates with two optimisers and a min-norm step: resumed to the bit after SIGKILL."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import jobs
from nearfar.batch import Batch
from nearfar.config import EvaluateConfig, OptimiserConfig, TrainerConfig
from nearfar.data import Data
from nearfar.method import Engine, Terms
from nearfar.train import Run, Trainer, min_norm_backward
from toys import Toy, Vectors


class Duel(Toy):
    """The encoder contrasts and fools a critic that tells which view it sees; the critic learns in its own step."""

    cache = "no: it makes two updates"

    def __init__(self) -> None:
        super().__init__(dropout=0.2)
        self.critic = nn.Linear(8, 1)

    def optimisers(self) -> dict[str, Iterable[nn.Parameter]]:
        return {"main": self.encoder.parameters(), "critic": self.critic.parameters()}

    def judge(self, z: Tensor) -> Tensor:
        scores = self.critic(z).squeeze(-1)
        sides = torch.tensor([0.0, 1.0]).expand_as(scores)
        return nn.functional.binary_cross_entropy_with_logits(scores, sides)

    def update(self, batch: Batch, engine: Engine) -> Terms:
        z = self.encode(batch)
        terms = self.loss(z, batch, {}, engine.progress).add("fool", -self.judge(z["embedding"]), weight=0.1)
        terms.log(**min_norm_backward(terms, self.encoder.parameters()))
        engine.step("main")
        engine.backward(Terms().add("judge", self.judge(z["embedding"].detach())), name="critic")
        engine.step("critic")
        return terms


def train(output: str, kill_at: int = 0, resume: bool = False) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(3)

    def callback(trainer: Trainer, row: dict[str, Any]) -> None:
        if kill_at and trainer.step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    Trainer(
        Duel(), Data(train=Vectors(40), test=Vectors(15, seed=3)),
        TrainerConfig(
            epochs=2, batch_size=8, log_every=1, checkpoint_every=3, progress=False, device="cpu", output=output
        ),
        optimiser=OptimiserConfig(lr=0.01), callbacks=[callback],
        evaluate=EvaluateConfig(num_neighbours=3, per_class=2, few_label_draws=2),
    ).fit(resume)  # fmt: skip


# Two steps after a checkpoint, before the first one, and on one.
@pytest.mark.parametrize("kill_at", [8, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 6))])
def test_killed_and_resumed_equals_never_stopped(tmp_path: Path, kill_at: int) -> None:
    assert jobs.run(train, str(tmp_path / "whole")) == 0
    assert jobs.run(train, str(tmp_path / "parts"), kill_at) == -signal.SIGKILL
    assert jobs.run(train, str(tmp_path / "parts"), 0, True) == 0
    assert jobs.result(tmp_path / "whole")[:2] == jobs.result(tmp_path / "parts")[:2]
    rows = [row for row in Run(tmp_path / "whole").metrics if "loss" in row]
    assert len(rows) == 10


def test_both_optimisers_move_their_own_parameters(tmp_path: Path) -> None:
    torch.manual_seed(3)
    before = {name: value.clone() for name, value in Duel().state_dict().items()}
    train(str(tmp_path / "run"))
    from safetensors.torch import load_file

    after = load_file(Run(tmp_path / "run").checkpoint("last") / "model.safetensors")
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert "critic.weight" in changed
    assert "encoder.0.weight" in changed
