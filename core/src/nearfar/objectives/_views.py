"""What objectives of many views share: unit rows, similarities within a sample, and log sums over candidates.

Legend: B batch, N gathered batch, V views, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nearfar._similarity import accumulation, normalize
from nearfar._tiles import BOUND, Mask
from nearfar.checks import expect, expect_positive
from nearfar.objectives._shared import Place, gather_views, stack
from nearfar.tiled import log_sum_exp, self_log_sum_exp


@dataclass(frozen=True)
class Views:
    """Unit rows of all views, the candidates they meet, and the temperature of their similarities."""

    unit: Tensor
    """[V * B, D], view after view"""
    every: Tensor
    """[V * N, D] of all processes; the same object as `unit` where nothing was gathered"""
    place: Place
    temperature: float | Tensor

    def within(self) -> Tensor:
        """Similarities over the temperature between the views of a sample [B, V, V]; a view's own on the diagonal."""
        z_VBD = self.unit.unflatten(0, (self.place.num_views, -1))
        return torch.einsum("vbd,wbd->bvw", z_VBD, z_VBD) / self.temperature

    def view(self, v: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rows [B, D] of one view, its candidates [N, D] (the same object where nothing was gathered), own rows [B]."""
        num, num_all = self.place.num_local, self.place.num_all
        anchor = self.unit[v * num : (v + 1) * num]
        candidate = anchor if self.every is self.unit else self.every[v * num_all : (v + 1) * num_all]
        return anchor, candidate, torch.arange(num, device=anchor.device) + self.place.offset

    def numbers(self) -> tuple[Tensor, Tensor]:
        """Number of the view of every anchor [V * B] and candidate [V * N]."""
        view = torch.arange(self.place.num_views, device=self.unit.device)
        return view.repeat_interleave(self.place.num_local), view.repeat_interleave(self.place.num_all)


def prepare(
    views: tuple[Any, ...], temperature: float | Tensor, gathered: Tensor | Sequence[Tensor] | None, offset: int
) -> Views:
    """Checked views of two or more, in the accumulation type."""
    z, num_views = stack("views", views[0] if len(views) == 1 else views)
    expect(z.is_floating_point(), "views", "floating point", z.dtype, TypeError)
    kind = accumulation(z)
    unit = normalize(z.to(kind))
    every = unit if gathered is None else normalize(gather_views(gathered, num_views).to(kind))
    place = Place(num_views, len(z) // num_views, len(every) // num_views, offset, z.device)
    if isinstance(temperature, Tensor):
        expect(temperature.ndim == 0, "temperature", "a number or a tensor []", tuple(temperature.shape))
        temperature = temperature.to(kind)
    expect_positive("temperature", number(temperature))
    return Views(unit, every, place, temperature)


def number(temperature: float | Tensor) -> float:
    return float(temperature.detach() if isinstance(temperature, Tensor) else temperature)


def log_sums(
    anchor: Tensor, candidate: Tensor, mask: Mask, temperature: float | Tensor, tile: int | None
) -> Tensor:  # fmt: skip
    """log sum_j exp(a_i . c_j / t) over the pairs a mask leaves, of rows no longer than 1.

    Where both are one object the mask is symmetric, and half of the matrix is computed.
    """
    bounded = 1 / number(temperature) <= BOUND
    if candidate is anchor:
        return self_log_sum_exp(anchor * temperature**-0.5, mask, bounded=bounded, tile=tile)
    return log_sum_exp(anchor / temperature, candidate, mask, bounded=bounded, tile=tile)[0]


def leave_one_out(z_VBD: Tensor) -> Tensor:
    """Mean of the other views of every view [V, B, D]."""
    return (z_VBD.sum(0, keepdim=True) - z_VBD) / (z_VBD.shape[0] - 1)
