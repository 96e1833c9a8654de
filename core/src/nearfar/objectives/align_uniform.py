"""Alignment and uniformity: what contrast asks of an embedding, stated apart (and optimised or reported so).

Legend: B batch, N gathered batch, K queue, D embedding.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nearfar._compile import eager
from nearfar._similarity import accumulation
from nearfar._similarity import normalize as unit_rows
from nearfar._tiles import BOUND, Mask, no_autocast
from nearfar.checks import expect, expect_choice, expect_positive
from nearfar.contrast import Stats
from nearfar.objectives._shared import Place, gather_views, reduced, stack
from nearfar.tiled import frozen_log_sum_exp, log_sum_exp, self_log_sum_exp

TINY = 1e-12
"""added to squared distances where a power below 1 of them has no derivative at zero"""


def alignment(
    x: Tensor, y: Tensor, *, alpha: float = 2.0, normalize: bool = True, reduction: str = "mean"
) -> Tensor:  # fmt: skip
    """How far apart the views of a sample are: 0 best, 2 (at alpha 2) for unrelated views.

    L = 1/B sum_i |x_i - y_i|^alpha

    Args:
        x, y: [B, D]; row i of one is another view of row i of the other.
        alpha: exponent > 0.
        normalize: divide rows by their norm; else they are taken as they are, as the reference code does.
        reduction: "mean", "sum" or "none" ([B]).

    Returns:
        The loss, float32 (float64 for float64 input).

    Raises:
        ValueError: unequal shapes, alpha not above zero.

    Notes:
        Below alpha = 2 the power is smoothed by 1e-12 at distance zero, where its derivative jumps or is infinite:
        views that coincide get no gradient, and the value stays 0 there.

    Example:
        >>> import torch
        >>> from nearfar.objectives import alignment
        >>> round(float(alignment(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]]))), 4)
        2.0

    Source: Wang, Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
    Hypersphere", ICML 2020.
    """
    expect_positive("alpha", alpha)
    expect_choice("reduction", reduction, ("mean", "sum", "none"))
    expect(x.ndim == 2 and len(x) > 0, "x", "shape [B, D], B >= 1", tuple(x.shape))
    expect(x.shape == y.shape, "y", f"the shape of x, {tuple(x.shape)}", tuple(y.shape))
    with no_autocast(x.device):
        u, v = _rows("x", x, normalize), _rows("y", y, normalize)
        squared_B = (u - v).square().sum(1)
        if alpha >= 2:
            loss_B = squared_B if alpha == 2 else squared_B.pow(alpha / 2)
        else:
            loss_B = (squared_B + TINY).pow(alpha / 2) - TINY ** (alpha / 2)
    return reduced(loss_B, reduction)


@eager
def uniformity(
    x: Tensor,
    queue: Tensor | None = None,
    *,
    t: float = 2.0,
    normalize: bool = True,
    in_batch: bool = True,
    tile: int | None = None,
) -> Tensor:
    """How evenly rows fill the sphere: 0 where all are one, about -2 t where they are spread in many dimensions.

    L = log( 2/(B (B - 1)) sum_{i < j} exp(-t |x_i - x_j|^2) )

    Args:
        x: [B, D].
        queue: [K, D]; the mean is then over the B K pairs with it too (the momentum form).
        t: sharpness > 0 of the Gaussian.
        normalize: divide rows by their norm; else they are taken as they are, with a warning where their norms are
            not 1.
        in_batch: whether pairs within x count; without them `queue` must be given.
        tile: side of a tile; None chooses.

    Returns:
        The loss, float32 (float64 for float64 input).

    Raises:
        ValueError: one row alone, t not above zero, no pairs asked for.

    Notes:
        Pairs once each and never a row with itself; the mean stands inside the logarithm, so that the loss of a whole
        is no mean of losses of parts: over several processes give the rows of all of them. Unit rows cost 4 B^2 D FLOP
        forward and backward together, others 8; memory O((B + K) D + tile). First derivatives only. A zero row counts
        as orthogonal to all. The least value of B rows in B - 1 dimensions or more is -2 t B/(B - 1), a regular
        simplex; rows drawn evenly from the sphere in D dimensions give -2 t + log 0F1(; D/2; t^2) in the mean.

    Relations:
        `nearfar.evaluate.geometry` reports it of any embedding; `decoupled_uniformity` is that of views' centroids.

    Example:
        >>> import torch
        >>> from nearfar.objectives import uniformity
        >>> round(float(uniformity(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))), 4)  # |x - y|^2 = 4
        -8.0

    Source: as `alignment`; the form with a queue is that of the authors' MoCo.
    """
    expect_positive("t", t)
    expect(in_batch or queue is not None, "in_batch", "True without a queue", in_batch)
    expect(x.ndim == 2 and len(x) > (1 if in_batch else 0), "x", "shape [B, D], B >= 2 for pairs", tuple(x.shape))
    with no_autocast(x.device):
        rows = _rows("x", x, normalize)
        if not normalize:
            _warn_norms(rows)
        sums, pairs = [], 0.0
        if in_batch:  # ordered pairs, each twice: half of the sum
            log_sum_B = _unit_log_sums(rows, t, tile) if normalize else _log_sums(rows, t, tile)
            sums.append(torch.logsumexp(log_sum_B, 0) - math.log(2))
            pairs += len(x) * (len(x) - 1) / 2
        if queue is not None:
            expect(queue.ndim == 2 and queue.shape[1] == x.shape[1] and len(queue) > 0, "queue",
                   f"shape [K, {x.shape[1]}], K >= 1", tuple(queue.shape))  # fmt: skip
            sums.append(torch.logsumexp(_queue_log_sums(rows, queue, t, normalize, tile), 0))
            pairs += len(x) * len(queue)
        return torch.logsumexp(torch.stack(sums), 0) - math.log(pairs)


def log_mean_gaussian(x: Tensor, t: float, tile: int | None) -> Tensor:
    """log mean_{i != j} exp(-t |x_i - x_j|^2) of rows of any length, already of the accumulation type."""
    return torch.logsumexp(_log_sums(x, t, tile), 0) - math.log(len(x) * (len(x) - 1))


def _rows(name: str, x: Tensor, normalize: bool) -> Tensor:
    expect(x.is_floating_point(), name, "floating point", x.dtype, TypeError)
    x = x.to(accumulation(x))
    return unit_rows(x) if normalize else x


def _warn_norms(x: Tensor) -> None:
    worst = float((torch.linalg.vector_norm(x.detach(), dim=1) - 1).abs().max())
    if worst > 1e-3:
        warnings.warn(
            f"uniformity: norms differ from 1 by up to {worst:.3g} with normalize=False", stacklevel=3
        )  # fmt: skip


def _unit_log_sums(u: Tensor, t: float, tile: int | None) -> Tensor:
    """log sum_{j != i} exp(-t |u_i - u_j|^2), where |u_i - u_j|^2 = 2 - 2 u_i . u_j."""
    mask = Mask(exclude=(torch.arange(len(u), device=u.device),))
    return self_log_sum_exp(u * math.sqrt(2 * t), mask, bounded=2 * t <= BOUND, tile=tile) - 2 * t


def _log_sums(x: Tensor, t: float, tile: int | None) -> Tensor:
    """The same of rows of any length: a product whose candidates carry their squared length as one more dimension."""
    x = x - x.detach().mean(0)  # distances stay, squares grow small
    squared = x.square().sum(1, keepdim=True)
    mask = Mask(exclude=(torch.arange(len(x), device=x.device),))
    anchor, candidate = torch.cat([2 * t * x, torch.ones_like(squared)], 1), torch.cat([x, -t * squared], 1)
    return log_sum_exp(anchor, candidate, mask, tile=tile)[0] - t * squared.squeeze(1)


def _queue_log_sums(x: Tensor, queue: Tensor, t: float, normalize: bool, tile: int | None) -> Tensor:
    if normalize and not queue.requires_grad:
        return frozen_log_sum_exp(2 * t * x, queue, Mask(), normalize=True, bounded=2 * t <= BOUND, tile=tile) - 2 * t
    c = _rows("queue", queue, normalize).to(x.dtype)
    if normalize:
        return log_sum_exp(2 * t * x, c, Mask(), bounded=2 * t <= BOUND, tile=tile)[0] - 2 * t
    squared_x, squared_c = x.square().sum(1, keepdim=True), c.square().sum(1, keepdim=True)
    anchor = torch.cat([2 * t * x, torch.ones_like(squared_x)], 1)
    return log_sum_exp(anchor, torch.cat([c, -t * squared_c], 1), Mask(), tile=tile)[0] - t * squared_x.squeeze(1)


def align_uniform(
    *views: Any,
    alpha: float = 2.0,
    t: float = 2.0,
    align_weight: float = 1.0,
    uniform_weight: float = 1.0,
    normalize: bool = True,
    queue: Tensor | None = None,
    in_batch: bool = True,
    gathered: Tensor | Sequence[Tensor] | None = None,
    offset: int = 0,
    tile: int | None = None,
    with_stats: bool = False,
) -> Any:
    """Alignment of two views plus the uniformity of each, in place of a softmax contrast.

    L = w_a alignment(x, y) + w_u (uniformity(x) + uniformity(y)) / 2

    Args:
        *views: x and y [B, D], or one tensor [2, B, D].
        alpha: exponent of the alignment.
        t: sharpness of the uniformity.
        align_weight: w_a >= 0.
        uniform_weight: w_u >= 0.
        normalize: divide rows by their norm.
        queue: [K, D] of keys; uniformity is then that of x alone, with the queue, as y are keys.
        in_batch: with a queue, whether pairs within x count too.
        gathered: both views [2, N, D] of all processes; pass the result of a differentiable gather.
        offset: where this process's samples begin among the N gathered.
        tile: see `uniformity`.
        with_stats: also return Stats, whose number is that of the local samples.

    Returns:
        The loss, or (loss, Stats).

    Raises:
        ValueError: other than two views, one sample alone, a negative weight.

    Notes:
        With `gathered`, alignment is of the local samples and uniformity of all: its mean stands inside the logarithm,
        so every process computes the whole of it, 4 N^2 D FLOP a view.

    Example:
        >>> import torch
        >>> from nearfar.objectives import align_uniform
        >>> z = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> round(float(align_uniform(z, z)), 4)
        -8.0

    Source: as `alignment`.
    """
    for name, weight in (("align_weight", align_weight), ("uniform_weight", uniform_weight)):
        expect(weight >= 0 and math.isfinite(weight), name, "a finite number of 0 or more", weight)
    z, num_views = stack("views", views[0] if len(views) == 1 else views)
    expect(num_views == 2, "views", "2", num_views)
    every = z if gathered is None else gather_views(gathered, 2)
    num, num_all = len(z) // 2, len(every) // 2
    Place(2, num, num_all, offset, z.device)  # checks that the local rows are among the gathered
    x, y = every[:num_all], every[num_all:]
    if queue is not None:
        spread = uniformity(x, queue, t=t, normalize=normalize, in_batch=in_batch, tile=tile)
    else:
        spread = sum(uniformity(view, t=t, normalize=normalize, tile=tile) for view in (x, y)) / 2
    loss = align_weight * alignment(z[:num], z[num:], alpha=alpha, normalize=normalize) + uniform_weight * spread
    return (loss, Stats(num, 0, None)) if with_stats else loss


class AlignUniform(nn.Module):
    """`align_uniform` as a Module; see there.

    Args:
        alpha: exponent of the alignment.
        t: sharpness of the uniformity.
        align_weight: weight of the alignment.
        uniform_weight: weight of the uniformity.
        normalize: divide rows by their norm.
        tile: see `uniformity`.
    """

    needs_negatives = True
    distributed = "gather_candidates"
    symmetric = True

    def __init__(
        self, alpha: float = 2.0, t: float = 2.0, align_weight: float = 1.0, uniform_weight: float = 1.0, *,
        normalize: bool = True, tile: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        expect_positive("alpha", alpha)
        expect_positive("t", t)
        self.alpha, self.t, self.normalize, self.tile = alpha, t, normalize, tile
        self.align_weight, self.uniform_weight = align_weight, uniform_weight

    def forward(self, *views: Any, **options: Any) -> Any:
        """The loss of two views; further options as `align_uniform`."""
        return align_uniform(
            *views, alpha=self.alpha, t=self.t, align_weight=self.align_weight, uniform_weight=self.uniform_weight,
            normalize=self.normalize, tile=self.tile, **options,
        )  # fmt: skip
