"""What losses of pairs share: anchors and candidates with labels, their similarities and distances a strip at a time.

Legend: B batch, N gathered batch, V views, D embedding, r anchors of a strip.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nearfar._similarity import accumulation, normalize
from nearfar.checks import expect
from nearfar.contrast import Stats
from nearfar.objectives._shared import Place, as_views, gather_views, stack


@dataclass(frozen=True)
class Pairs:
    """Anchors and candidates of the accumulation type with the class of each, and where anchors stand in candidates."""

    anchor: Tensor
    candidate: Tensor
    labels: Tensor
    candidate_labels: Tensor
    own: Tensor

    def masks(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Positives and negatives of some anchors, bool [r, N] each; an anchor is neither of itself."""
        same = self.labels[rows, None] == self.candidate_labels
        itself = self.own[rows, None] == torch.arange(len(self.candidate), device=rows.device)
        return same & ~itself, ~same

    def similarity(self, rows: Tensor) -> Tensor:
        """Products [r, N], cosines of unit vectors."""
        return self.anchor[rows] @ self.candidate.t()

    def distance(self, rows: Tensor, kind: str) -> Tensor:
        """Distances [r, N]: "euclidean", its square, or "cosine", 1 - s. Vectors nearer than rounding get no gradient.

        Notes: the square is |a|^2 + |c|^2 - 2 a . c, whose rounding is that of the squared norms.
        """
        s = self.similarity(rows)
        if kind == "cosine":
            return 1 - s
        square = self.anchor[rows].square().sum(1)[:, None] + self.candidate.square().sum(1) - 2 * s
        if kind == "squared":
            return square.clamp_min(0.0)
        least = 1e-14 if s.dtype == torch.float64 else 1e-6
        return torch.where(square > least, square, least).sqrt()


def pairs(
    z: Tensor | Sequence[Tensor],
    labels: Tensor,
    gathered: tuple[Any, Tensor] | None,
    offset: int,
    *,
    unit: bool = True,
    keys: tuple[Tensor, Tensor] | None = None,
) -> Pairs:
    """The pairs of views [V B] with candidates [V N] of this batch, or of all processes; or with keys ([K, D], [K])."""
    flat, num_views = stack("z", as_views(z), least=1)
    if keys is not None:
        return _with_keys(flat, labels, num_views, keys, gathered, offset, unit)
    other, other_labels = flat, labels
    if gathered is not None:
        other, other_labels = gather_views(as_views(gathered[0]), num_views), gathered[1]
    num, num_all = len(flat) // num_views, len(other) // num_views
    for name, y, rows in (("labels", labels, num), ("gathered", other_labels, num_all)):
        expect(tuple(y.shape) == (rows,), name, f"labels of shape [{rows}]", tuple(y.shape))
    sizes = torch.unique(other_labels, return_counts=True)[1] * num_views
    expect(len(sizes) > 1 and bool((sizes > 1).any()), "labels",
           "two classes, and two embeddings of one, in the whole batch", f"sizes {sizes.tolist()}")  # fmt: skip
    own = Place(num_views, num, num_all, offset, flat.device).own()
    return Pairs(*_vectors(flat, other, unit), labels.repeat(num_views), other_labels.repeat(num_views), own)


def _with_keys(
    flat: Tensor, labels: Tensor, num_views: int, keys: tuple[Tensor, Tensor], gathered: object, offset: int, unit: bool
) -> Pairs:
    """Pairs of anchors with vectors that are none of them."""
    other, ids = keys
    expect(gathered is None and offset == 0, "gathered, offset", "none beside keys", "one")
    num = len(flat) // num_views
    expect(tuple(labels.shape) == (num,), "labels", f"labels of shape [{num}]", tuple(labels.shape))
    fits = other.ndim == 2 and other.shape[1] == flat.shape[1] and tuple(ids.shape) == other.shape[:1]
    expect(fits, "keys", f"([K, {flat.shape[1]}], [K])", (tuple(other.shape), tuple(ids.shape)))
    expect(
        bool(torch.isin(labels, ids).any()) and len(torch.unique(ids)) > 1,
        "keys", "two classes, and one that an anchor has", f"classes {torch.unique(ids).tolist()}",
    )  # fmt: skip
    nowhere = torch.full((len(flat),), -1, device=flat.device)
    return Pairs(*_vectors(flat, other, unit), labels.repeat(num_views), ids, nowhere)


def _vectors(flat: Tensor, other: Tensor, unit: bool) -> tuple[Tensor, Tensor]:
    kind = accumulation(flat, other)
    a, c = flat.to(kind), other.to(kind)
    return (normalize(a), normalize(c)) if unit else (a, c)


def mean_anchors(loss_B: Tensor, counted_B: Tensor, reduction: str, with_stats: bool) -> Any:
    """Losses of anchors, 0 where they do not count, reduced over those that do; a part without any gives 0."""
    counted = int(counted_B.sum())
    loss = loss_B if reduction == "none" else loss_B.sum() / (max(1, counted) if reduction == "mean" else 1)
    return (loss, Stats(counted, len(loss_B) - counted, None)) if with_stats else loss
