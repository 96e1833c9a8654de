"""Normalising, and similarities other than a plain product.

Legend: B anchors, N candidates, D embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.autograd import Function

from nearfar.checks import expect_positive

EPS = 1e-12


@runtime_checkable
class Similarity(Protocol):
    """What compares every anchor with every candidate; larger is nearer."""

    def tile(self, a: Tensor, c: Tensor) -> Tensor:
        """Similarities [B, N] of anchors [B, D] and candidates [N, D]."""
        ...


@dataclass(frozen=True)
class Lorentz:
    """Minus the geodesic distance on the hyperboloid of curvature -c, of vectors given by their space components.

    d(x, y) = acosh(-c <x, y>_L) / sqrt(c),  <x, y>_L = x.y - x_t y_t,  x_t = sqrt(1/c + |x|^2).

    The argument of acosh is kept at least 1 + 1e-7 away from its singular point, where the gradient would be infinite.

    Source: Desai, Nickel, Rajpurohit, Johnson, Vedantam, "Hyperbolic Image-Text Representations", ICML 2023.
    """

    curvature: float | Tensor = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.curvature, Tensor):
            expect_positive("curvature", self.curvature)

    def tile(self, a: Tensor, c: Tensor) -> Tensor:
        time_a = torch.sqrt(1.0 / self.curvature + a.square().sum(-1))
        time_c = torch.sqrt(1.0 / self.curvature + c.square().sum(-1))
        inner = a @ c.t() - time_a[:, None] * time_c[None, :]
        return -torch.acosh((-self.curvature * inner).clamp_min(1.0 + 1e-7)) / self.curvature**0.5


def accumulation(*tensors: Tensor | None) -> torch.dtype:
    """The type in which sums run: float64 where any tensor has it, else float32."""
    return torch.float64 if any(x is not None and x.dtype == torch.float64 for x in tensors) else torch.float32


def normalize(x: Tensor, factor: float = 1.0) -> Tensor:
    """factor * x / max(|x|, 1e-12) along the last dimension; a vector shorter than that gets no gradient.

    (The true derivative at zero is unbounded: one dead row would overflow the gradient of a whole batch.)
    """
    return _Normalize.apply(x, factor)  # type: ignore[return-value]


class _Normalize(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        y = x * (factor / norm.clamp_min(EPS))
        ctx.save_for_backward(x, y)
        ctx.factor = factor
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        x, y = ctx.saved_tensors
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = torch.where(norm > EPS, ctx.factor / norm.clamp_min(EPS), 0.0)
        along = (y * grad).sum(-1, keepdim=True) / ctx.factor**2
        return torch.addcmul(grad, y, along, value=-1.0) * inverse, None


def log_sum_exp(x: Tensor, dim: int) -> Tensor:
    """log sum exp that is -inf, with gradient zero, where nothing is above -inf."""
    peak = x.detach().amax(dim, keepdim=True)
    peak = peak.masked_fill(peak == float("-inf"), 0.0)
    total = torch.exp(x - peak).sum(dim)
    empty = total == 0
    return torch.where(empty, float("-inf"), total.masked_fill(empty, 1.0).log() + peak.squeeze(dim))
