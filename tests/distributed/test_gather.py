"""Several processes against one process that holds everything."""

from __future__ import annotations

import copy
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distributed.launch import launch
from nearfar import distributed

SIZES = {2: (5, 2), 3: (4, 0, 3)}


def _rows(sizes: tuple[int, ...], x: Tensor) -> Tensor:
    return x.split(list(sizes))[distributed.rank()]


def gathers(x: Tensor, sizes: tuple[int, ...], weights: Tensor) -> dict[str, Any]:
    mine = _rows(sizes, x)
    out: dict[str, Any] = {
        "where": (distributed.world(), distributed.rank(), distributed.is_main(), distributed.offset(len(mine))),
        "broadcast": distributed.broadcast({"name": f"process {distributed.rank()}", "list": [distributed.rank()]}, 1),
        "objects": distributed.gather_objects({"rank": distributed.rank()}),
        "sum": distributed.reduce_sum(torch.tensor([float(len(mine)), 1.0])),
        "shuffled": distributed.shuffled(lambda rows: 2 * rows, mine),
        "shuffled_means": distributed.shuffled(lambda rows: rows.mean(0).expand_as(rows), mine),
        "shard": distributed.gather(torch.arange(10)[distributed.shard(10)]),
        "empty": distributed.gather(x[:0]),
        "narrow": distributed.gather(mine[:, :0]),
    }
    for dtype in (torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float64, torch.complex64):
        out[str(dtype)] = distributed.gather((mine * 10).to(dtype), grad=False)
    out["one_dim"] = distributed.gather(mine[:, 0])
    out["image"] = distributed.gather(mine.view(len(mine), 2, 1, 2), grad=False)
    leaf = mine.clone().requires_grad_()
    out["no_grad"] = distributed.gather(leaf, grad=False).requires_grad
    # each process has its own loss over all rows: sum over anchors of its own of w_r * (anchor . everything)^2
    every = distributed.gather(leaf)
    (weights[distributed.rank()] * (leaf @ every.T).square().sum() + every.sin().sum()).backward()
    out["grad"] = leaf.grad
    half = mine.to(torch.bfloat16).requires_grad_()
    distributed.gather(half).square().sum().backward()
    out["half_grad"] = half.grad
    return out


@pytest.mark.parametrize("world", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_collectives_agree_with_one_process(world: int) -> None:
    sizes = SIZES[world]
    x = torch.randn(sum(sizes), 4, generator=torch.Generator().manual_seed(world))
    weights = torch.tensor([0.5, 2.0, -1.0])[:world]
    leaf = x.clone().requires_grad_()
    parts = leaf.split(list(sizes))
    total = sum(w * (part @ leaf.T).square().sum() + leaf.sin().sum() for w, part in zip(weights, parts, strict=True))
    total.backward()
    results = launch(gathers, world, x, sizes, weights)
    for rank, out in enumerate(results):
        assert out["where"] == (world, rank, rank == 0, sum(sizes[:rank]))
        assert out["broadcast"] == {"name": "process 1", "list": [1]}
        assert out["objects"] == [{"rank": r} for r in range(world)]
        assert out["sum"].tolist() == [sum(sizes), world]
        assert torch.equal(out["shuffled"], 2 * x.split(list(sizes))[rank])  # every row comes home
        assert len(out["shuffled_means"].unique(dim=0)) <= world  # in one batch a process
        assert out["shard"].tolist() == list(range(10))
        assert out["empty"].shape == (0, 4)
        assert out["narrow"].shape == (sum(sizes), 0)
        for dtype in (torch.bool, torch.uint8, torch.int64, torch.bfloat16, torch.float64, torch.complex64):
            assert out[str(dtype)].dtype == dtype
            assert torch.equal(out[str(dtype)], (x * 10).to(dtype))
        assert torch.equal(out["one_dim"], x[:, 0])
        assert torch.equal(out["image"], x.view(-1, 2, 1, 2))
        assert out["no_grad"] is False
        assert torch.allclose(out["grad"], leaf.grad.split(list(sizes))[rank], rtol=1e-5, atol=1e-6)
        mine = x.split(list(sizes))[rank].to(torch.bfloat16)
        assert torch.allclose(out["half_grad"].float(), 2 * world * mine.float(), rtol=1e-2)


def normalises(state: dict[str, Tensor], x: Tensor, target: Tensor, sizes: tuple[int, ...]) -> dict[str, Any]:
    net = distributed.convert_sync_batch_norm(_net())
    net.load_state_dict(state)
    leaf = _rows(sizes, x).clone().requires_grad_()
    output = net(leaf)
    (output * _rows(sizes, target)).sum().backward()
    net(leaf.detach() + 1)  # a second update of the running statistics
    return {
        "output": output.detach(),
        "grad": leaf.grad,
        "parameters": {name: distributed.reduce_sum(p.grad) for name, p in net.named_parameters()},
        "buffers": dict(net.named_buffers()),
        "evaluated": net.eval()(leaf).detach(),
    }


def _net() -> nn.Module:
    torch.manual_seed(0)
    last = nn.BatchNorm1d(3, momentum=None)
    last.register_parameter("bias", None)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3), last)


@pytest.mark.parametrize("world", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_sync_batch_norm_equals_batch_norm_of_the_whole_batch(world: int) -> None:
    sizes = SIZES[world]
    generator = torch.Generator().manual_seed(world)
    x = 3 * torch.randn(sum(sizes), 2, 4, 4, generator=generator) + 50  # a mean that would hurt a sum of squares
    target = torch.randn(sum(sizes), 3, generator=generator)
    net = _net()
    leaf = x.clone().requires_grad_()
    state = copy.deepcopy(net.state_dict())
    output = net(leaf)
    (output * target).sum().backward()
    net(leaf.detach() + 1)
    results = launch(normalises, world, state, x, target, sizes)
    evaluated = net.eval()(x)
    for rank, out in enumerate(results):
        close = {"rtol": 1e-4, "atol": 2e-5}
        assert torch.allclose(out["output"], output.split(list(sizes))[rank], **close)
        assert torch.allclose(out["grad"], leaf.grad.split(list(sizes))[rank], **close)
        assert torch.allclose(out["evaluated"], evaluated.split(list(sizes))[rank], **close)
        assert out["buffers"].keys() == dict(net.named_buffers()).keys()
        for name, buffer in net.named_buffers():
            assert torch.allclose(out["buffers"][name], buffer, **close), name
            assert torch.equal(out["buffers"][name], results[0]["buffers"][name]), name
        for name, parameter in net.named_parameters():
            assert torch.allclose(out["parameters"][name], parameter.grad, rtol=1e-3, atol=2e-4), name


def refuses() -> str:
    first = distributed.rank() == 0
    for other in (torch.zeros(2, 4), torch.zeros(2, 3, dtype=torch.float64), torch.zeros(2)):
        with pytest.raises(ValueError, match="gather: expected rows of one dtype and trailing shape on every process"):
            distributed.gather(torch.zeros(2, 3) if first else other)
    norm = distributed.SyncBatchNorm(3)
    with pytest.raises(ValueError, match="more than one value a channel over all processes"):
        norm(torch.zeros(1 if first else 0, 3))
    with pytest.raises(ValueError, match=r"input: expected shape \[N, 3, ...\], received \(2, 4\)"):
        norm(torch.zeros(2, 4))
    distributed.barrier()
    return "said so"


def test_bad_rows_are_refused_on_every_process() -> None:
    assert launch(refuses, 2) == ["said so"] * 2


def fails_on_one() -> None:
    if distributed.rank() == 1:
        raise ValueError("process 1 had enough")
    distributed.barrier()


def hangs() -> None:
    if distributed.rank() == 0:
        distributed.barrier()
    else:
        time.sleep(600)


def test_launch_reports_failures_and_ends_late_processes() -> None:
    with pytest.raises(RuntimeError, match="process 1 had enough"):
        launch(fails_on_one, 2)
    with pytest.raises(TimeoutError, match="not done within 4 s"):
        launch(hangs, 2, timeout=4)
