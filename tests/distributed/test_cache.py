"""The gradient cache over several processes: one reduction a step, and the parameters of one plain process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distributed.launch import launch


def train(output: str, cache: int, norm: str = "layer") -> dict[str, Any]:
    """Three steps of 16, 16 and 5 samples, with a head and a temperature that live in the loss alone."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    from nearfar import distributed
    from nearfar.batch import Batch, View
    from nearfar.config import OptimiserConfig, TrainerConfig
    from nearfar.data import Data
    from nearfar.method import Progress, Terms
    from nearfar.objectives import NTXent
    from nearfar.train import Trainer
    from toys import Toy, Vectors

    torch.set_num_threads(1)
    torch.manual_seed(0)
    reductions = []

    class Method(Toy):
        def __init__(self) -> None:
            super().__init__(norm=norm, centre=True)
            self.head = nn.Linear(8, 8)
            self.objective = NTXent(temperature=0.3, learnable_temperature=True)
            self.double()

        def on_epoch(self, engine: Any) -> None:
            def hook(_, bucket):  # type: ignore[no-untyped-def]  # torch reads annotations, which are strings here
                reductions.append(bucket.index())
                return allreduce_hook(None, bucket)

            if distributed.world() > 1:
                engine.wrapped.register_comm_hook(None, hook)

        def encode(self, batch: Batch) -> dict[str, Tensor]:
            assert len(batch["index"])  # a process with fewer samples makes larger chunks, never an empty one
            return super().encode({**batch, "views": [View(view.data.double()) for view in batch["views"]]})

        def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Any, progress: Progress) -> Terms:
            z_BVD = self.head(z["embedding"])
            gathered, offset = None, 0
            if distributed.world() > 1:
                gathered = distributed.gather(z_BVD).transpose(0, 1)
                offset = distributed.offset(len(z_BVD))
            z_VBD = z_BVD.transpose(0, 1)
            loss, stats = self.objective(z_VBD, gathered=gathered, offset=offset, with_stats=True)
            return Terms().add("contrast", loss, count=stats.num_anchors)

        def features(self, batch: Batch, output: str = "default") -> Tensor:
            return self.encoder(batch["x"].double())

    method = Method()
    config = TrainerConfig(
        epochs=1, batch_size=16, drop_last=False, log_every=1, evaluate_every=0, progress=False, device="cpu",
        output=output, cache=cache, cache_batch_norm="chunk" if norm == "batch" else "refuse", clip_norm=0.5,
    )  # fmt: skip
    optimiser = OptimiserConfig(lr=0.02)
    run = Trainer(method, Data(train=Vectors(37), test=Vectors(15, seed=3)), config, optimiser=optimiser).fit()
    return {
        "state": {name: value.clone() for name, value in method.state_dict().items()},
        "losses": [row["loss"] for row in run.metrics if "loss" in row],
        "reductions": len(reductions),
    }


def refused(output: str) -> str:
    """What each process says of a claim that only one of them can see is false."""
    from nearfar import distributed
    from nearfar.batch import Batch
    from nearfar.config import TrainerConfig
    from nearfar.train import Trainer
    from toys import Toy, Vectors

    class Liar(Toy):
        def encode(self, batch: Batch) -> dict[str, Tensor]:
            z = super().encode(batch)["embedding"]
            return {"embedding": z - distributed.rank() * z.mean(0)}

    config = TrainerConfig(epochs=1, batch_size=16, progress=False, device="cpu", output=output, cache=3)
    try:
        Trainer(Liar(), Vectors(40), config).fit()
    except ValueError as error:
        return str(error)
    return "trained"


def everything(folder: str) -> dict[str, Any]:
    """Chunks of 3 (8 rows in 3 chunks; 3 and 2 rows in one), of 2 (3 and 2 rows in two), and of single rows."""
    runs: dict[str, Any] = {str(chunk): train(f"{folder}/{chunk}", chunk) for chunk in (3, 2, 1)}
    return runs | {"batch": train(f"{folder}/batch", 2, "batch"), "refused": refused(f"{folder}/refused")}


@pytest.mark.slow
def test_two_processes_in_chunks_equal_one_without(tmp_path: Path) -> None:
    one = train(str(tmp_path / "one"), 0)
    results = launch(everything, 2, str(tmp_path))
    assert len(one["losses"]) == 3
    for result in results:
        for chunk in ("3", "2", "1"):
            found = result[chunk]
            assert found["reductions"] == 3  # one bucket, three steps
            torch.testing.assert_close(found["losses"], one["losses"], rtol=1e-6, atol=0)
            for name, value in one["state"].items():
                torch.testing.assert_close(
                    found["state"][name], value, rtol=1e-5, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}"
                )
        # Statistics of a chunk are those of all processes' chunks, so that they too stay alike.
        for name, value in results[0]["batch"]["state"].items():
            torch.testing.assert_close(result["batch"]["state"][name], value, msg=lambda m, n=name: f"{n}: {m}")
        assert int(result["batch"]["state"]["encoder.1.num_batches_tracked"]) == 4 + 4 + 2
        assert "Liar.cache: expected 'no: reason'" in result["refused"]
        assert "(process 1)" in result["refused"]
