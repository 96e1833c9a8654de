"""One, two and four processes train to the same parameters, uneven last batches included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from distributed.launch import launch


def train(output: str, norm: str, num: int, accumulate: int = 1) -> dict[str, Any]:
    """Three steps: two batches of 16 and what is left of `num` samples."""
    from nearfar.config import OptimiserConfig, TrainerConfig
    from nearfar.data import Data
    from nearfar.train import Trainer
    from toys import Toy, Vectors

    torch.set_num_threads(1)
    torch.manual_seed(0)
    method = Toy(norm=norm, centre=True)
    config = TrainerConfig(
        epochs=1, batch_size=16, drop_last=False, log_every=1, evaluate_every=0, progress=False, device="cpu",
        output=output, accumulate=accumulate,
    )  # fmt: skip
    source = Vectors(num)
    trainer = Trainer(method, Data(train=source, test=Vectors(15, seed=3)), config, optimiser=OptimiserConfig(lr=0.02))
    run = trainer.fit()
    return {
        "state": {name: value.clone() for name, value in method.state_dict().items()},
        "losses": [row["loss"] for row in run.metrics if "loss" in row],
        "knn": run.scores["after"]["knn"]["value"],
    }


@pytest.mark.parametrize(("world", "norm"), [(4, "layer"), (2, "batch")])
def test_n_processes_equal_one(tmp_path: Path, world: int, norm: str) -> None:
    one = train(str(tmp_path / "one"), norm, 37)
    many = launch(train, world, str(tmp_path / "many"), norm, 37, timeout=120)
    assert len(one["losses"]) == 3
    torch.testing.assert_close(torch.tensor(many[0]["losses"]), torch.tensor(one["losses"]), rtol=1e-5, atol=1e-6)
    for result in many:
        assert result["knn"] == one["knn"]
        for name, value in one["state"].items():
            torch.testing.assert_close(
                result["state"][name], value, rtol=1e-4, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}"
            )


def interrupt(output: str, resume: bool) -> list[str]:
    """Process 1 alone receives the signal; both must leave at the same step and go on together."""
    import os
    import signal

    from nearfar.config import TrainerConfig
    from nearfar.data import Data
    from nearfar.train import Interrupted, Trainer
    from toys import Toy, Vectors

    torch.manual_seed(0)
    rank = int(os.environ["RANK"])

    def callback(trainer: Trainer, row: dict[str, Any]) -> None:
        if not resume and rank == 1 and trainer.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    config = TrainerConfig(
        epochs=2, batch_size=16, log_every=1, evaluate_every=0, progress=False, device="cpu", output=output
    )
    trainer = Trainer(Toy(dropout=0.2), Data(train=Vectors(40), test=Vectors(15, seed=3)), config, callbacks=[callback])
    try:
        run = trainer.fit(resume=resume)
    except Interrupted as stop:
        return [str(stop)]
    return [run.status["status"], str(run.status["step"])]


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_and_they_resume(tmp_path: Path) -> None:
    output = str(tmp_path / "run")
    first = launch(interrupt, 2, output, False, timeout=120)
    assert all("stopped at step 2 of 4" in message for (message,) in first)
    assert launch(interrupt, 2, output, True, timeout=120) == [["finished", "4"], ["finished", "4"]]
