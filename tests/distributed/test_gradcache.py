"""The gradient cache over several processes: one reduction a step, and the numbers of one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distributed.launch import launch
from nearfar.gradcache import GradCache
from nearfar.objectives import nt_xent
from toys import mlp


class Pair(nn.Module):
    """An encoder, and a scale of the embeddings that the loss alone uses."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.scale = mlp(), nn.Parameter(torch.linspace(0.5, 2, 8, dtype=torch.float64))

    def forward(self, call: str, *args: Any) -> Tensor:
        return getattr(self, call)(*args)

    def encode(self, x_VBD: Tensor) -> Tensor:
        return self.body(x_VBD.flatten(0, 1)).unflatten(0, (2, -1)).transpose(0, 1).clone()

    def loss(self, z_BVD: Tensor) -> Tensor:
        from nearfar import distributed

        z = z_BVD * self.scale
        everyone, start = distributed.gather(z).transpose(0, 1), distributed.offset(len(z))
        loss = nt_xent(z.transpose(0, 1), temperature=0.2, gathered=everyone, offset=start)
        return loss * len(z) / everyone.shape[1] * distributed.world()


def train(kind: str, sizes: tuple[int, ...]) -> dict[str, Any]:
    """Three steps on this process's rows: parameters, losses, and reductions a step."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    from nearfar import distributed

    torch.manual_seed(0)
    model = Pair()
    x = torch.randn(2, sum(sizes), 6, dtype=torch.float64)
    mine = x.split(list(sizes), dim=1)[distributed.rank()]
    wrapped: nn.Module = model
    calls = []
    if kind == "fully_shard":
        mesh = init_device_mesh("cpu", (distributed.world(),))
        fully_shard(model.body, mesh=mesh)
        wrapped = fully_shard(model, mesh=mesh)
    elif kind != "none":
        wrapped = DistributedDataParallel(model, find_unused_parameters=kind == "find_unused")

        def hook(_, bucket):  # type: ignore[no-untyped-def]  # torch reads annotations, which are strings here
            calls.append(bucket.index())
            return allreduce_hook(None, bucket)

        wrapped.register_comm_hook(None, hook)
    cache = GradCache(lambda chunk: wrapped("encode", chunk), wrapper=wrapped)
    losses = []
    for _ in range(3):
        z = cache(mine.split(2, dim=1))
        with cache.no_sync():
            loss = wrapped("loss", z)
        cache.backward(loss)
        losses.append(float(distributed.reduce_sum(loss.detach())) / distributed.world())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.3 * parameter.grad
                parameter.grad = None
    state = {n: (p.full_tensor() if kind == "fully_shard" else p).detach().clone() for n, p in model.named_parameters()}
    return {"state": state, "losses": losses, "reductions": len(calls) / 3}


CASES = {"ddp": (7, 5), "find_unused": (7, 5), "fully_shard": (6, 5)}


def train_all() -> dict[str, Any]:
    return {kind: train(kind, sizes) for kind, sizes in CASES.items()}


@pytest.mark.slow
def test_processes_reduce_once_a_step_and_equal_one() -> None:
    """Uneven rows, under DDP in uneven numbers of chunks; a parameter of the loss alone is reduced with the others."""
    results = launch(train_all, 2)
    for kind, sizes in CASES.items():
        one = train("none", (sum(sizes),))
        torch.manual_seed(0)
        assert (one["state"]["scale"] - Pair().scale).abs().max() > 1e-3
        for result in (each[kind] for each in results):
            torch.testing.assert_close(result["losses"], one["losses"], rtol=1e-9, atol=0)
            for name, value in one["state"].items():
                torch.testing.assert_close(result["state"][name], value, rtol=1e-8, atol=1e-10)
            assert result["reductions"] == (0 if kind == "fully_shard" else 1), kind  # one bucket a step
