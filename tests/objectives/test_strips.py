"""Losses of pairs keep no matrix of all pairs, forward or backward.

Legend: B batch, N candidates.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from nearfar import objectives
from nearfar._strips import ENTRIES, in_strips
from objectives.storage import largest

ROWS = 1200
"""more than twice as many pairs as a strip holds"""
EDGE = 768
LABELS = torch.arange(ROWS) % 300


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "focal_supcon": lambda a, b: objectives.focal_supcon(a, LABELS),
    "triplet": lambda a, b: objectives.triplet(a, LABELS),
    "triplet semi-hard": lambda a, b: objectives.triplet(a, LABELS, mining="semi_hard"),
    "triplet hard": lambda a, b: objectives.triplet(a, LABELS, mining="hard"),
    "margin": lambda a, b: objectives.margin(a, LABELS),
    "circle": lambda a, b: objectives.circle(a, LABELS),
    "multi_similarity": lambda a, b: objectives.multi_similarity(a, LABELS),
    "renyi": lambda a, b: objectives.renyi(a, b, LABELS),
    "lorentz_clip": lambda a, b: objectives.lorentz_clip(a, b),
    "smoothed_clip": lambda a, b: objectives.smoothed_clip(a, b),
    "jensen_shannon": lambda a, b: objectives.mutual_information(a, b),
    "nwj": lambda a, b: objectives.mutual_information(a, b, bound="nwj", normalize=True),
    "spectral": lambda a, b: objectives.spectral(a, b),
    "gml": lambda a, b: objectives.gml(a, LABELS, b, LABELS, torch.ones(300), part="contrast"),
    "patch_nce": lambda a, b: objectives.patch_nce(a.view(12, 100, 4), b.view(12, 100, 4)),
    "dense_contrast": lambda a, b: objectives.dense_contrast(
        a.view(12, 100, 4), b.view(12, 100, 4), lambda images: torch.ones(len(images), 100, 100, dtype=torch.bool)
    ),
    "supremix": lambda a, b: objectives.supremix([a[:600], a[600:]], torch.arange(600.0), num_mixtures=16),
}


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_is_as_large_as_all_pairs(name: str) -> None:
    a, b = draw(ROWS, 4).requires_grad_(), draw(ROWS, 4, seed=1)
    entries = largest(lambda: LOSSES[name](a, b).backward())
    assert entries <= max(1.2 * ENTRIES, EDGE * ROWS)  # strips with a column more for log(1 + sum), or the engine's
    assert entries < 0.65 * ROWS**2
    assert torch.isfinite(a.grad).all()


def test_strips_equal_the_whole() -> None:
    x = draw(7, 3).double().requires_grad_()

    def strip(rows: Tensor) -> tuple[Tensor, Tensor]:
        return (x[rows] @ x.t()).exp().sum(1), rows * 2

    for tile in (None, 0, 1, 3, 100):
        value, numbers = in_strips(strip, 7, 7, tile, x.device)
        torch.testing.assert_close(value, (x @ x.t()).exp().sum(1))
        assert torch.equal(numbers, torch.arange(7) * 2)
        torch.testing.assert_close(
            torch.autograd.grad(value.sum(), x), torch.autograd.grad((x @ x.t()).exp().sum(), x)
        )  # fmt: skip
    with pytest.raises(ValueError, match="tile: expected None or 0 or more, received -1"):
        in_strips(strip, 7, 7, -1, x.device)
