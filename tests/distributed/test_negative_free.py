"""Objectives of the whole batch's statistics over several processes: each computes all of it from gathered rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from distributed.launch import launch
from nearfar import distributed, objectives

SIZES = (4, 7)
ORDER = torch.tensor([[3, 9, 1, 0, 7, 10, 2, 4, 8, 6, 5]])
CASES: dict[str, Callable[[Tensor], Tensor]] = {
    "barlow": objectives.barlow,
    "vicreg": objectives.vicreg,
    "wmse": lambda z: objectives.wmse(z, size=5, order=ORDER),
    "wmse zca": lambda z: objectives.wmse(z, form="zca"),
}


def shares(z: Tensor) -> dict[str, Any]:
    """This process's part of every loss, and the gradient of its rows."""
    found = {}
    for name, loss in CASES.items():
        mine = z.split(list(SIZES), 1)[distributed.rank()].clone().requires_grad_()
        every = distributed.gather(mine.transpose(0, 1)).transpose(0, 1)
        share = loss(every) / distributed.world()
        share.backward()
        found[name] = [share.detach(), mine.grad]
    return found


def test_two_processes_equal_one() -> None:
    z = torch.randn(2, 11, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    results = launch(shares, 2, z)
    for name, loss in CASES.items():
        whole = z.clone().requires_grad_()
        expected = loss(whole)
        expected.backward()
        torch.testing.assert_close(sum(r[name][0] for r in results), expected.detach(), msg=name)
        torch.testing.assert_close(torch.cat([r[name][1] for r in results], 1), whole.grad, msg=name)
