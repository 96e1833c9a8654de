"""The ring in one process equals the objectives; several processes: tests/distributed/test_objectives.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from nearfar import objectives, ring
from nearfar.contrast import contrast

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).requires_grad_()


LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 5])
CASES: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "nt_xent": (
        lambda a, b, t: ring.nt_xent(a, b, temperature=t),
        lambda a, b, t: objectives.nt_xent(a, b, temperature=t),
    ),
    "three views": (
        lambda a, b, t: ring.nt_xent(a, b, a + b, temperature=t),
        lambda a, b, t: objectives.nt_xent(a, b, a + b, temperature=t),
    ),
    "dcl": (lambda a, b, t: ring.dcl(a, b, temperature=t), lambda a, b, t: objectives.dcl(a, b, temperature=t)),
    "dcl, three": (
        lambda a, b, t: ring.dcl(a, b, a - b, temperature=t), lambda a, b, t: objectives.dcl(a, b, a - b, temperature=t)
    ),
    "supcon": (
        lambda a, b, t: ring.supcon(torch.stack([a, b]), LABELS, temperature=t),
        lambda a, b, t: objectives.supcon(torch.stack([a, b]), LABELS, temperature=t),
    ),
    "supcon, one view": (
        lambda a, b, t: ring.supcon(a + b, LABELS, temperature=t),
        lambda a, b, t: objectives.supcon(a + b, LABELS, temperature=t),
    ),
    "info_nce": (
        lambda a, b, t: ring.info_nce(a, b, temperature=t),
        lambda a, b, t: contrast(a, b, targets=torch.arange(7), temperature=t),
    ),
    "clip": (lambda a, b, t: ring.clip(a, b, temperature=t), lambda a, b, t: objectives.clip(a, b, temperature=t)),
    "siglip": (
        lambda a, b, t: ring.siglip(a, b, scale=1 / t, bias=-t * 3),
        lambda a, b, t: objectives.siglip(a, b, scale=1 / t, bias=-t * 3),
    ),
    "labels of two sets": (
        lambda a, b, t: ring.contrast(a, b, labels=(LABELS, LABELS.flip(0)), own=torch.arange(7), temperature=t),
        lambda a, b, t: contrast(a, b, labels=(LABELS, LABELS.flip(0)), own=torch.arange(7), temperature=t),
    ),
}  # fmt: skip


@pytest.mark.parametrize("temperature", [0.01, 0.5])
@pytest.mark.parametrize("name", CASES)
def test_one_process_equals_the_objective(name: str, temperature: float) -> None:
    found, expected = CASES[name]
    a, b, t = draw(7, 4), draw(7, 4, seed=1), torch.tensor(temperature, dtype=F64).requires_grad_()
    got, want = found(a, b, t), expected(a, b, t)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, (a, b, t)), torch.autograd.grad(want, (a, b, t)))


def test_stats_and_anchors_without_a_positive() -> None:
    z = draw(4, 3)
    loss, stats = ring.supcon(z, torch.tensor([0, 0, 1, 2]), with_stats=True)
    assert (stats.num_anchors, stats.num_empty) == (2, 2)
    torch.testing.assert_close(loss, objectives.supcon(z, torch.tensor([0, 0, 1, 2])))
    loss, stats = ring.supcon(z, torch.arange(4), with_stats=True)  # other processes may hold positives: no complaint
    assert (float(loss.detach()), stats.num_anchors) == (0.0, 0)
    assert ring.siglip(z, z, with_stats=True)[1].num_anchors == 4


def test_second_derivatives_are_refused() -> None:
    a, b = draw(5, 3), draw(5, 3, seed=1)
    (grad,) = torch.autograd.grad(ring.clip(a, b), a, create_graph=True)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        grad.square().sum().backward()


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda z: ring.contrast(z, targets=LABELS, labels=LABELS), "targets, labels: expected one of them"),
        (lambda z: ring.contrast(z, labels=LABELS, own=LABELS), "own: expected none without candidates"),
        (lambda z: ring.contrast(z, z, targets=torch.full((7,), 7)), "targets: expected rows of this process"),
        (lambda z: ring.contrast(z, z, targets=torch.arange(6)), r"targets: expected shape \[7\]"),
        (lambda z: ring.contrast(z, z, targets=LABELS, directions="both"), "anchor i's positive at row i"),
        (lambda z: ring.contrast(z, labels=LABELS, denominator="none"), "denominator: expected one of"),
        (lambda z: ring.contrast(z, labels=LABELS, directions="column"), "directions: expected one of"),
        (lambda z: ring.nt_xent(z, z, temperature=0.0), "temperature: expected a finite number > 0"),
        (lambda z: ring.clip(z, z[:3]), "b: expected the shape of a"),
        (lambda z: ring.supcon(z, LABELS[:3]), "labels: expected shape"),
        (lambda z: ring.contrast(z, z[:, :2], targets=LABELS), r"candidate: expected shape \[rows, D\]"),
    ],
)
def test_refuses(call: Callable[[Tensor], Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call(draw(7, 4))
