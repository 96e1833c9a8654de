"""Noise-contrastive estimation from scores: a binary question a candidate, or a ranking of them.

Legend: B anchors, P positives and K noise candidates of an anchor.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from nearfar._similarity import log_sum_exp
from nearfar._tiles import no_autocast
from nearfar.checks import expect, expect_choice
from nearfar.contrast import Stats


@torch.compiler.disable()
def binary_nce(
    positive: Tensor,
    negative: Tensor,
    *,
    positive_noise: Tensor | None = None,
    negative_noise: Tensor | None = None,
    num_noise: int | None = None,
    positive_mask: Tensor | None = None,
    negative_mask: Tensor | None = None,
    reduction: str = "mean",
    with_stats: bool = False,
) -> Any:
    """Tells each positive from noise and each noise candidate from data by a sigmoid of its own.

    L_i = -sum_p log sigmoid(s_ip - log(K q_p)) - sum_k log sigmoid(log(K q_k) - s_ik),  q the noise distribution

    Args:
        positive: scores s [B] or [B, P].
        negative: scores [B, K] of candidates drawn from the noise.
        positive_noise, negative_noise: log q of each, of the scores' shapes; None for both: no correction, which is
            negative sampling, and what binary cross-entropy over drawn labels is.
        num_noise: K of the correction; None: as many as there are.
        positive_mask, negative_mask: bool, False leaves a score out: a missing positive, an accidental hit.
        reduction: "mean" over anchors with a positive, "sum" or "none" ([B], 0 for an anchor without).
        with_stats: also return Stats.

    Returns:
        The loss, or (loss, Stats).

    Raises:
        ValueError: shapes that differ; one noise without the other; a candidate of probability 0 under the noise; no
            anchor with a positive.

    Notes:
        O(B (P + K)), in float32. With the correction the best free scores are log p(y | x) itself; without it they
        are that plus log of the noise's odds, which the model must absorb.

    Relations:
        `siglip` is its dense form, with all other pairs as noise and a learnt bias as correction.

    Example:
        >>> import torch
        >>> from nearfar.objectives import binary_nce
        >>> loss = binary_nce(torch.tensor([2.0]), torch.tensor([[0.0, -1.0]]))
        >>> round(float(loss), 4)  # log(1 + exp(-2)) + log(2) + log(1 + exp(-1))
        1.1333

    Source: Gutmann, Hyvärinen, "Noise-Contrastive Estimation of Unnormalized Statistical Models", JMLR 2012; Mikolov et
    al., "Distributed Representations of Words and Phrases and their Compositionality", NeurIPS 2013.
    """
    expect_choice("reduction", reduction, ("mean", "sum", "none"))
    positive = positive.unsqueeze(1) if positive.ndim == 1 else positive
    positive_noise = positive_noise.unsqueeze(1) if positive_noise is not None and positive_noise.ndim == 1 else (
        positive_noise
    )  # fmt: skip
    _check(positive, negative)
    expect((positive_noise is None) == (negative_noise is None), "positive_noise, negative_noise", "both or neither",
           "one")  # fmt: skip
    count = negative.shape[1] if num_noise is None else num_noise
    expect(count >= 1, "num_noise", "1 or more", count)
    with no_autocast(positive.device):
        terms, counted = [], None
        for name, score, noise, mask, sign in (
            ("positive", positive, positive_noise, positive_mask, -1.0),
            ("negative", negative, negative_noise, negative_mask, 1.0),
        ):
            kept = _kept(f"{name}_mask", mask, score)
            counted = kept.any(1) if counted is None else counted
            logit = _wide(score)
            if noise is not None:
                logit = logit - (math.log(count) + _noise(f"{name}_noise", noise, score, kept))
            terms.append(torch.where(kept, softplus(sign * torch.where(kept, logit, 0.0)), 0.0).sum(1))
        loss_B = torch.where(counted, terms[0] + terms[1], 0.0)  # type: ignore[arg-type]
    return _reduced(loss_B, counted, reduction, with_stats)  # type: ignore[arg-type]


@torch.compiler.disable()
def ranking_nce(
    positive: Tensor,
    negative: Tensor,
    *,
    positive_noise: Tensor | None = None,
    negative_noise: Tensor | None = None,
    negative_mask: Tensor | None = None,
    reduction: str = "mean",
    with_stats: bool = False,
) -> Any:
    """Picks the positive among candidates drawn from the noise.

    L_i = -log [ exp(s_i) / ( exp(s_i) + sum_k exp(s_ik) ) ],  each s less log q where the noise is given

    Args:
        positive: scores s [B].
        negative: scores [B, K] of candidates drawn from the noise.
        positive_noise, negative_noise: log q of each, of the scores' shapes (sampled softmax); None for both: the
            scores themselves.
        negative_mask: bool [B, K], False leaves a score out: an accidental hit.
        reduction: "mean", "sum" or "none" ([B]).
        with_stats: also return Stats.

    Returns:
        The loss, or (loss, Stats).

    Raises:
        ValueError: shapes that differ; one noise without the other; a candidate of probability 0 under the noise.

    Notes:
        O(B K), in float32. The best free scores are log p(y | x) / q(y) up to a constant an anchor, with the correction
        log p(y | x); either way no constant need be learnt. With all other labels as candidates, once each, it is the
        cross-entropy.

    Relations:
        `info_nce` computes the scores from vectors.

    Example:
        >>> import torch
        >>> from nearfar.objectives import ranking_nce
        >>> round(float(ranking_nce(torch.tensor([1.0]), torch.tensor([[0.0]]))), 4)  # log(1 + exp(-1))
        0.3133

    Source: Ma, Collins, "Noise Contrastive Estimation and Negative Sampling for Conditional Models: Consistency and
    Statistical Efficiency", EMNLP 2018.
    """
    expect_choice("reduction", reduction, ("mean", "sum", "none"))
    expect(positive.ndim == 1, "positive", "shape [B]", tuple(positive.shape))
    _check(positive.unsqueeze(1), negative)
    expect((positive_noise is None) == (negative_noise is None), "positive_noise, negative_noise", "both or neither",
           "one")  # fmt: skip
    with no_autocast(positive.device):
        first, others = _wide(positive), _wide(negative)
        kept = _kept("negative_mask", negative_mask, negative)
        if positive_noise is not None and negative_noise is not None:
            first = first - _noise(
                "positive_noise", positive_noise, positive, torch.ones_like(positive, dtype=torch.bool)
            )
            others = others - _noise("negative_noise", negative_noise, negative, kept)
        total = log_sum_exp(torch.cat([first[:, None], others.masked_fill(~kept, -math.inf)], 1), 1)
        loss_B = total - first
    return _reduced(loss_B, torch.ones_like(loss_B, dtype=torch.bool), reduction, with_stats)


def _check(positive: Tensor, negative: Tensor) -> None:
    expect(positive.ndim == 2 and positive.numel() > 0, "positive", "shape [B] or [B, P]", tuple(positive.shape))
    expect(negative.ndim == 2 and len(negative) == len(positive) and negative.shape[1] > 0, "negative",
           f"shape [{len(positive)}, K], K >= 1", tuple(negative.shape))  # fmt: skip


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _kept(name: str, mask: Tensor | None, like: Tensor) -> Tensor:
    if mask is None:
        return torch.ones_like(like, dtype=torch.bool)
    expect(mask.shape == like.shape, name, f"shape {tuple(like.shape)}", tuple(mask.shape))
    expect(mask.dtype == torch.bool, name, "dtype bool", mask.dtype, TypeError)
    return mask


def _noise(name: str, noise: Tensor, like: Tensor, kept: Tensor) -> Tensor:
    expect(noise.shape == like.shape, name, f"shape {tuple(like.shape)}", tuple(noise.shape))
    finite = bool(torch.isfinite(noise[kept]).all())
    expect(finite, name, "logarithms of probabilities above 0", noise)
    return torch.where(kept, _wide(noise), 0.0)


def _reduced(loss_B: Tensor, counted_B: Tensor, reduction: str, with_stats: bool) -> Any:
    counted = int(counted_B.sum())
    expect(counted > 0, "positive_mask", "at least one anchor with a positive", "none")
    loss = loss_B if reduction == "none" else loss_B.sum() / (counted if reduction == "mean" else 1)
    return (loss, Stats(counted, len(loss_B) - counted, None)) if with_stats else loss


class BinaryNCE(nn.Module):
    """`binary_nce` as a Module with a learnt scale of the scores; see there.

    Args:
        scale: where the scale starts; its logarithm is the parameter `log_scale`.
        learnable: learn it.
    """

    needs_negatives = True
    distributed = "local"
    symmetric = False

    def __init__(self, scale: float = 1.0, *, learnable: bool = False) -> None:
        super().__init__()
        expect(math.isfinite(scale) and scale > 0, "scale", "a finite number > 0", scale)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)), requires_grad=learnable)

    def forward(self, positive: Tensor, negative: Tensor, **options: Any) -> Any:
        """The loss of scores times the scale; further options as `binary_nce`."""
        scale = self.log_scale.exp()
        return binary_nce(scale * positive, scale * negative, **options)


class RankingNCE(BinaryNCE):
    """`ranking_nce` as a Module with a learnt scale of the scores, as `BinaryNCE`; see there."""

    def forward(self, positive: Tensor, negative: Tensor, **options: Any) -> Any:
        """The loss of scores times the scale; further options as `ranking_nce`."""
        scale = self.log_scale.exp()
        return ranking_nce(scale * positive, scale * negative, **options)
