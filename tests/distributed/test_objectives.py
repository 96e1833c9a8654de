"""Every objective over several processes, gathered and around the ring, against one that holds everything."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from distributed.launch import launch
from nearfar import distributed, objectives, ring
from nearfar.contrast import Stats, contrast

SIZES = {2: (4, 3), 4: (3, 0, 2, 2)}
LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 5])
CASES: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "nt_xent": (lambda a, b, y, t, **k: ring.nt_xent(a, b, temperature=t, **k),
                lambda a, b, y, t: objectives.nt_xent(a, b, temperature=t)),
    "three views": (lambda a, b, y, t, **k: ring.nt_xent(a, b, a + b, temperature=t, **k),
                    lambda a, b, y, t: objectives.nt_xent(a, b, a + b, temperature=t)),
    "dcl": (lambda a, b, y, t, **k: ring.dcl(a, b, temperature=t, **k),
            lambda a, b, y, t: objectives.dcl(a, b, temperature=t)),
    "dcl, three": (lambda a, b, y, t, **k: ring.dcl(a, b, a - b, temperature=t, **k),
                   lambda a, b, y, t: objectives.dcl(a, b, a - b, temperature=t)),
    "supcon": (lambda a, b, y, t, **k: ring.supcon((a, b), y, temperature=t, **k),
               lambda a, b, y, t: objectives.supcon((a, b), y, temperature=t)),
    "supcon, one": (lambda a, b, y, t, **k: ring.supcon(a * b, y, temperature=t, **k),
                    lambda a, b, y, t: objectives.supcon(a * b, y, temperature=t)),
    "info_nce": (lambda a, b, y, t, **k: ring.info_nce(a, b, temperature=t, **k),
                 lambda a, b, y, t: contrast(a, b, targets=torch.arange(7), temperature=t)),
    "clip": (lambda a, b, y, t, **k: ring.clip(a, b, temperature=t, **k),
             lambda a, b, y, t: objectives.clip(a, b, temperature=t)),
    "siglip": (lambda a, b, y, t, **k: ring.siglip(a, b, scale=1 / t, bias=-3 * t, **k),
               lambda a, b, y, t: objectives.siglip(a, b, scale=1 / t, bias=-3 * t)),
}  # fmt: skip


def gathered(*views: Tensor) -> dict[str, Any]:
    every = [distributed.gather(view) for view in views]
    return {"gathered": every, "offset": distributed.offset(len(views[0])), "with_stats": True}


def everyone(x: Tensor) -> tuple[Tensor, Tensor]:
    return x, distributed.gather(x, grad=False)


GATHERED: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "nt_xent": (lambda a, b, y, t: objectives.nt_xent(a, b, temperature=t, **gathered(a, b)), CASES["nt_xent"][1]),
    "dcl": (lambda a, b, y, t: objectives.dcl(a, b, temperature=t, **gathered(a, b)), CASES["dcl"][1]),
    "supcon": (
        lambda a, b, y, t: objectives.supcon(
            (a, b), y, temperature=t, **(gathered(a, b) | {"gathered": (gathered(a, b)["gathered"], everyone(y)[1])})
        ),
        CASES["supcon"][1],
    ),
    "info_nce": (
        lambda a, b, y, t: objectives.info_nce(
            a, b, temperature=t, in_batch=True, **(gathered(b) | {"gathered": distributed.gather(b)})
        ),
        CASES["info_nce"][1],
    ),
    "clip": (
        lambda a, b, y, t: objectives.clip(a, b, temperature=t, ids=everyone(y), **gathered(a, b)),
        lambda a, b, y, t: objectives.clip(a, b, temperature=t, ids=y),
    ),
    "ranked_clip": (
        lambda a, b, y, t: objectives.ranked_clip(a, b, y + 1.0, temperature=t, **gathered(a, b)),
        lambda a, b, y, t: objectives.ranked_clip(a, b, y + 1.0, temperature=t),
    ),
    "debiased": (
        lambda a, b, y, t: objectives.debiased(a, b, hardness=0.5, temperature=t, **gathered(a, b)),
        lambda a, b, y, t: objectives.debiased(a, b, hardness=0.5, temperature=t),
    ),
    "siglip": (
        lambda a, b, y, t: (
            objectives.siglip(a, b, scale=1 / t, ids=everyone(y), gathered=distributed.gather(b),
                              offset=distributed.offset(len(a))),
            Stats(len(a), 0, None),
        ),
        lambda a, b, y, t: objectives.siglip(a, b, scale=1 / t, ids=y),
    ),
}  # fmt: skip


def share_of(run: Callable[..., Any], a: Tensor, b: Tensor, temperature: float, sizes: tuple[int, ...]) -> list[Tensor]:
    """This process's share of a loss, and the gradients of its rows and of the temperature."""
    mine = distributed.rank()
    u, v = (x.split(list(sizes))[mine].clone().requires_grad_() for x in (a, b))
    t = torch.tensor(temperature, dtype=a.dtype).requires_grad_()
    loss, stats = run(u, v, LABELS.split(list(sizes))[mine], t)
    total = distributed.reduce_sum(torch.tensor(float(stats.num_anchors)))
    share = loss * (stats.num_anchors / float(total))
    share.backward()
    return [share.detach(), u.grad, v.grad, t.grad]  # type: ignore[list-item]


def around(a: Tensor, b: Tensor, sizes: tuple[int, ...]) -> dict[str, Any]:
    """Every loss around the ring, and gathered over parts that are not empty."""
    out = {}
    for temperature in (0.01, 0.4):
        for name, (run, _) in CASES.items():
            out[f"{name} {temperature}"] = share_of(partial(run, with_stats=True), a, b, temperature, sizes)
        for name, (run, _) in GATHERED.items():
            some = tuple(max(1, n) if n < 3 else n - 1 for n in sizes) if 0 in sizes else sizes
            out[f"gathered {name} {temperature}"] = share_of(run, a, b, temperature, some)
    return out


@pytest.mark.parametrize("world", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_any_number_of_processes_equals_one(world: int) -> None:
    generator = torch.Generator().manual_seed(world)
    a, b = (torch.randn(7, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    results = launch(around, world, a, b, SIZES[world])
    every = CASES | {f"gathered {name}": case for name, case in GATHERED.items()}
    for name, (_, whole) in every.items():
        for temperature in (0.01, 0.4):
            u, v, t = a.clone().requires_grad_(), b.clone().requires_grad_(), torch.tensor(temperature, dtype=a.dtype)
            expected = whole(u, v, LABELS, t.requires_grad_())
            expected.backward()
            shares, grads_u, grads_v, grads_t = zip(*(r[f"{name} {temperature}"] for r in results), strict=True)
            message = f"{name} at {temperature}"
            torch.testing.assert_close(sum(shares), expected.detach(), msg=message)
            torch.testing.assert_close(torch.cat(grads_u), u.grad, msg=message)
            torch.testing.assert_close(torch.cat(grads_v), v.grad, msg=message)
            torch.testing.assert_close(sum(grads_t), t.grad, msg=message)


def largest(rows: int, dim: int) -> dict[str, int]:
    """Most entries of any float tensor that a ring and a gather make on this process."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        entries = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple | list) else (out,):
                if isinstance(x, Tensor) and x.is_floating_point():
                    self.entries = max(self.entries, x.numel())
            return out

    a, b = (torch.randn(rows, dim).requires_grad_() for _ in range(2))
    found = {}
    with Largest() as mode:
        ring.clip(a, b, tile=8).backward()
    found["ring"] = mode.entries
    with Largest() as mode:
        both = distributed.gather(a), distributed.gather(b)
        objectives.clip(a, b, gathered=both, offset=distributed.offset(rows), tile=8).backward()
    found["gather"] = mode.entries
    return found


@pytest.mark.slow
def test_no_process_holds_all_candidates() -> None:
    for found in launch(largest, 4, 8, 64):
        assert found["ring"] <= 8 * 65  # a block of this size, with one more dimension at most
        assert found["gather"] >= 4 * 8 * 64
