"""SupReMix: contrast for regression, with negatives and positives mixed so that they carry the order of the labels.

Legend: B batch, N gathered batch, V views, D embedding, S mixtures of an anchor.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nearfar._compile import eager
from nearfar._pool import indexed_product
from nearfar._similarity import accumulation, log_sum_exp, normalize
from nearfar._tiles import no_autocast
from nearfar.checks import expect, expect_choice, expect_positive
from nearfar.contrast import Stats, contrast
from nearfar.objectives._shared import Place, Temperature, gather_views, reduced, stack

MIXES = ("both", "negative", "positive", "none")
WEIGHTS = ("linear", "inverse", "square", "inverse_square", "none")


class Mixtures(NamedTuple):
    """Mixtures of every anchor, share * first + (1 - share) * second.

    Args:
        first, second: int64 [B, S], rows of the candidates; -1: no mixture.
        share: [B, S].
    """

    first: Tensor
    second: Tensor
    share: Tensor


@torch.no_grad()
def label_mixtures(
    labels: Tensor,
    own: Tensor,
    candidate_labels: Tensor,
    *,
    kind: str,
    num: int = 64,
    window: float = 5.0,
    tolerance: float = 0.0,
    beta: tuple[int, int] = (2, 8),
    generator: torch.Generator | None = None,
) -> Mixtures:
    """Which candidates an anchor's mixtures are made of: with itself (negatives), or around its label (positives).

    Of a share lam of the first:

        negative  lam z_i + (1 - lam) z_k,  y_k != y_i,  lam ~ Beta
        positive  lam z_j + (1 - lam) z_k,  y_i - w < y_j < y_i < y_k < y_i + w,  lam = (y_k - y_i) / (y_k - y_j)

    Args:
        labels: of the anchors [B], float.
        own: int64 [B], the candidate that is the anchor itself.
        candidate_labels: [N].
        kind: "negative" or "positive".
        num: S, mixtures an anchor at most; where there are fewer, all.
        window: w, in units of the labels.
        tolerance: labels at most this far apart count as equal.
        beta: whole-numbered parameters of the Beta distribution.
        generator: of the draws.

    Returns:
        Mixtures of S candidates each.

    Notes:
        O(N log N + B S). Of too many possible mixtures S are drawn without replacement, one from each of S equal
        ranges of the sorted labels. A mixed label is exactly y_i for "positive".
    """
    y, order = candidate_labels.sort()
    low = torch.searchsorted(y, labels - tolerance)  # first with an equal label
    high = torch.searchsorted(y, labels + tolerance, right=True)
    num_all, device = len(y), y.device
    if kind == "negative":
        rank, valid = _ranks(num_all - (high - low), num, generator)
        rank = torch.where(rank < low[:, None], rank, rank + (high - low)[:, None])
        first, second = own[:, None].expand_as(rank), order[rank.clamp_max(num_all - 1)]
        a, b = beta
        draws = torch.rand(*rank.shape, a + b - 1, generator=generator, device=device, dtype=torch.float64)
        share = draws.sort(dim=-1).values[..., a - 1].to(y.dtype)  # an order statistic of uniforms is Beta
    else:
        start = torch.searchsorted(y, labels - window, right=True)
        end = torch.searchsorted(y, labels + window)
        below, above = (low - start).clamp_min(0), (end - high).clamp_min(0)
        rank, valid = _ranks(below * above, num, generator)
        width = above[:, None].clamp_min(1)
        j = (start[:, None] + rank // width).clamp_max(num_all - 1)
        k = (high[:, None] + rank % width).clamp_max(num_all - 1)
        first, second = order[j], order[k]
        share = (y[k] - labels[:, None]) / torch.where(valid, y[k] - y[j], 1.0)
    return Mixtures(first.masked_fill(~valid, -1), second.masked_fill(~valid, -1), share.masked_fill(~valid, 0.0))


def _ranks(count: Tensor, num: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Up to `num` different whole numbers below each count, and which of them exist, [B, num]."""
    j = torch.arange(num, device=count.device)
    whole = count[:, None]
    low, high = j * whole // num, (j + 1) * whole // num
    uniform = torch.rand(len(count), num, generator=generator, device=count.device, dtype=torch.float64)
    drawn = low + (uniform * (high - low)).long()
    return torch.where(whole <= num, j, drawn), (whole > num) | (j < whole)


@eager
def supremix(
    views: Tensor | Sequence[Tensor],
    labels: Tensor,
    *,
    temperature: float | Tensor = 0.3,
    window: float = 5.0,
    tolerance: float = 0.0,
    mix: str = "both",
    distance_weight: str = "linear",
    num_mixtures: int = 64,
    beta: tuple[int, int] = (2, 8),
    normalize_mixtures: bool = False,
    add_one: bool = False,
    generator: torch.Generator | None = None,
    gathered: tuple[Any, Tensor] | None = None,
    offset: int = 0,
    reduction: str = "mean",
    tile: int | None = None,
    with_stats: bool = False,
) -> Any:
    """Contrast of samples with real-valued labels, whose far labels repel more and whose mixtures keep their order.

    L_i = log sum_c w_ic exp(s_ic) - 1/|P_i| sum_{p in P_i} s_ip,  w_ic = 1 + |y_i - y_c|,  s = product / t

    over all other embeddings c and the mixtures of i (`label_mixtures`), which get no gradient; P_i are the embeddings
    of an equal label and the mixtures whose label is y_i, all of them with w = 1.

    Args:
        views: [V, B, D] or V tensors [B, D], V >= 2.
        labels: y [B], numbers.
        temperature: t; a number, or a tensor [] that gets a gradient.
        window: largest distance of labels between which positives are mixed, in units of the labels.
        tolerance: labels at most this far apart are equal; 0 for continuous ones, whose positives are then the other
            views and the mixtures.
        mix: "both", "negative", "positive" or "none".
        distance_weight: w, "linear" (above), "inverse" 1 / (1 + d), "square" 1 + d^2, "inverse_square", or "none".
        num_mixtures: S, mixtures of each kind an anchor at most.
        beta: whole-numbered parameters of the Beta distribution of an anchor's share in its negatives.
        normalize_mixtures: scale mixtures to unit length; the authors' code leaves them shorter.
        add_one: divide by |P_i| + 1, as the authors' code.
        generator: of the draws, which are made for the anchors of all processes: with equal generators several
            processes draw what one does.
        gathered: (views, labels) of all processes; pass the result of a differentiable gather.
        offset: where this process's samples begin among the N gathered.
        reduction: "mean", "sum" or "none" ([V B], view after view).
        tile: see `contrast`.
        with_stats: also return Stats.

    Returns:
        The loss, or (loss, Stats).

    Raises:
        ValueError: fewer than two views, labels that are not finite, a window or a temperature that is not positive.

    Notes:
        Real candidates go through `contrast` in strips, mixtures cost O(V B S D) and are never stored as vectors. One
        log sum over both; the authors' code subtracts different maxima before it joins them, and so weighs mixtures
        differently in every row. Weights depend on the labels' unit: divide labels by their range where it is large.

    Relations:
        `supcon` with mix="none", distance_weight="none".

    Example:
        >>> import torch
        >>> from nearfar.objectives import supremix
        >>> z = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> loss = supremix([z, z], torch.tensor([0.0, 3.0]), temperature=0.5, mix="none")
        >>> round(float(loss), 4)  # log(1 + 2 (1 + 3) exp(-1/0.5))
        0.7337

    Source: Wu, Dong, Chen, Zhou, Zhou, "Mixup Your Own Pairs", 2023.
    """
    _check(window, tolerance, mix, distance_weight, num_mixtures, beta, reduction)
    z, num_views = stack("views", views)
    candidate, other = (z, labels) if gathered is None else (gather_views(gathered[0], num_views), gathered[1])
    num, num_all = len(z) // num_views, len(candidate) // num_views
    own = Place(num_views, num, num_all, offset, z.device).own()
    partner = (own + num_all) % (num_all * num_views)  # the next view, one of the positives
    y, y_all = _labels("labels", labels, num, num_views), _labels("gathered", other, num_all, num_views)
    weigh = _weight(distance_weight, tolerance)
    with no_autocast(z.device):
        kind = accumulation(z, candidate)
        a = normalize(z.to(kind))
        c = a if candidate is z else normalize(candidate.to(kind))
        loss = contrast(
            z, candidate, targets=partner, own=own, temperature=temperature,
            log_weight=None if distance_weight == "none" else lambda rows: weigh(y[rows][:, None] - y_all[None]),
            reduction="none", tile=tile,
        )  # fmt: skip
        pieces = [loss + (a * c[partner]).sum(1) / temperature]
        near, count = _positives(a, c, y, y_all, own, tolerance)
        positive_sum = near / temperature
        drawn = {"num": num_mixtures, "window": window, "tolerance": tolerance, "beta": beta, "generator": generator}
        for side in ("negative", "positive"):
            if mix not in ("both", side):
                continue
            everyone = label_mixtures(y_all, torch.arange(len(y_all), device=own.device), y_all, kind=side, **drawn)
            made = Mixtures(*(part[own] for part in everyone))
            logits, exists = _products(a, c.detach(), made, normalize_mixtures) / temperature, made.first >= 0
            distance = (1 - made.share) * (y[:, None] - y_all[made.second.clamp_min(0)])
            weighted = logits + weigh(distance) if side == "negative" else logits
            pieces.append(log_sum_exp(weighted.masked_fill(~exists, -math.inf), 1))
            if side == "positive":
                positive_sum, count = positive_sum + torch.where(exists, logits, 0.0).sum(1), count + exists.sum(1)
        loss_B = log_sum_exp(torch.stack(pieces), 0) - positive_sum / count
        loss_B = loss_B * (count / (count + 1)) if add_one else loss_B
    loss = reduced(loss_B, reduction)
    return (loss, Stats(len(loss_B), 0, None)) if with_stats else loss


def _check(window: float, tolerance: float, mix: str, weight: str, num: int, beta: Any, reduction: str) -> None:
    expect_positive("window", window)
    expect(tolerance >= 0, "tolerance", "a number of 0 or more", tolerance)
    expect_choice("mix", mix, MIXES)
    expect_choice("distance_weight", weight, WEIGHTS)
    expect_choice("reduction", reduction, ("mean", "sum", "none"))
    expect(num >= 1, "num_mixtures", "1 or more", num)
    expect(len(beta) == 2 and min(beta) >= 1 and all(isinstance(x, int) for x in beta), "beta",
           "two whole numbers of 1 or more", beta)  # fmt: skip


def _labels(name: str, labels: Tensor, num: int, num_views: int) -> Tensor:
    expect(tuple(labels.shape) == (num,), name, f"labels of shape [{num}]", tuple(labels.shape))
    expect(bool(torch.isfinite(labels).all()), name, "finite labels", labels)
    return (labels if labels.dtype == torch.float64 else labels.float()).detach().repeat(num_views)


def _weight(kind: str, tolerance: float) -> Any:
    """log w as a function of differences of labels."""

    def weigh(difference: Tensor) -> Tensor:
        d = torch.where(difference.abs() <= tolerance, 0.0, difference.abs())
        grown = torch.log1p(d.square() if kind.endswith("square") else d)
        return -grown if kind.startswith("inverse") else torch.zeros_like(d) if kind == "none" else grown

    return weigh


def _positives(a: Tensor, c: Tensor, y: Tensor, y_all: Tensor, own: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """Sum of the products with candidates of an equal label but the anchor itself, and their number: O((B + N) D)."""
    ordered, order = y_all.sort()
    low = torch.searchsorted(ordered, y - tolerance)
    high = torch.searchsorted(ordered, y + tolerance, right=True)
    sums = torch.cat([c.new_zeros(1, c.shape[1]), c[order]]).double().cumsum(0)  # differences of it: double
    near = (sums[high] - sums[low]).to(c.dtype) - c[own]
    return (a * near).sum(1), high - low - 1


def _products(a: Tensor, c: Tensor, made: Mixtures, unit: bool) -> Tensor:
    """Products of the anchors with their mixtures [B, S], linear in those with their parts."""
    first, second = made.first.clamp_min(0), made.second.clamp_min(0)
    share = made.share.to(a.dtype)
    product = share * indexed_product(a, c, first) + (1 - share) * indexed_product(a, c, second)
    if not unit:
        return product
    between = torch.stack([(c[i] * c[j]).sum(1) for i, j in zip(first.T, second.T, strict=True)], 1)
    square = share**2 + (1 - share) ** 2 + 2 * share * (1 - share) * between
    return product / square.clamp_min(1e-12).sqrt()


class SupReMix(nn.Module):
    """`supremix` as a Module; see there.

    Args:
        temperature: fixed, or where a learnt one starts.
        learnable_temperature: learn it.
        **options: window, tolerance, mix, distance_weight, num_mixtures, beta, normalize_mixtures, add_one, tile.
    """

    needs_negatives = True
    distributed = "gather_candidates"
    symmetric = True

    def __init__(self, temperature: float = 0.3, *, learnable_temperature: bool = False, **options: Any) -> None:
        super().__init__()
        known = inspect.signature(supremix).parameters.keys() - {"views", "labels", "temperature"}
        for name in options:
            expect_choice("options", name, known)
        self.tau, self.options = Temperature(temperature, learnable_temperature), options

    @property
    def temperature(self) -> float | Tensor:
        """The temperature in use."""
        return self.tau()

    def forward(self, views: Tensor | Sequence[Tensor], labels: Tensor, **options: Any) -> Any:
        """The loss; further options as `supremix`."""
        return supremix(views, labels, temperature=self.tau(), **self.options, **options)
