"""Topic models: the variational model of counts, and contrast of sets of documents.

Legend: B documents, V words, T topics, M sets of K documents.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nearfar.checks import expect, expect_choice, expect_positive
from nearfar.objectives import ranking_nce


def dirichlet_prior(num_topics: int, concentration: float) -> float:
    """Variance of the normal that stands for a symmetric Dirichlet before the softmax: (1/a)(1 - 2/T) + 1/(a T).

    Its mean is 0.

    Raises:
        ValueError: fewer than two topics, or a concentration that is not above 0.

    Source: Srivastava, Sutton, "Autoencoding Variational Inference for Topic Models", ICLR 2017.
    """
    expect(num_topics >= 2, "num_topics", "2 or more", num_topics)
    expect_positive("concentration", concentration)
    return (1 - 2 / num_topics) / concentration + 1 / (concentration * num_topics)


def gaussian_kl(mean_BT: Tensor, log_variance_BT: Tensor, prior_variance: float = 1.0) -> Tensor:
    """KL divergence [B] of normals with diagonal covariance from one with mean 0 and the same variance everywhere.

    KL = 1/2 sum_t [ s_t^2 / s_0^2 + m_t^2 / s_0^2 - 1 - log(s_t^2 / s_0^2) ]
    """
    expect(mean_BT.shape == log_variance_BT.shape, "log_variance", f"shape {tuple(mean_BT.shape)}",
           tuple(log_variance_BT.shape))  # fmt: skip
    expect_positive("prior_variance", prior_variance)
    shifted = log_variance_BT - math.log(prior_variance)
    return 0.5 * (shifted.exp() + mean_BT**2 / prior_variance - 1 - shifted).sum(1)


def set_pool(x_BT: Tensor, sets_MK: Tensor, how: Literal["min", "max"]) -> Tensor:
    """The elementwise minimum or maximum of each set's rows [M, T]."""
    expect_choice("how", how, ("min", "max"))
    expect(sets_MK.ndim == 2 and sets_MK.numel() > 0, "sets", "shape [M, K], both 1 or more", tuple(sets_MK.shape))
    members = x_BT[sets_MK]
    return members.amin(1) if how == "min" else members.amax(1)


def draw_sets(draw_B: Tensor, size: int, valid_B: Tensor | None = None) -> Tensor:
    """Numbers of the rows of every set [M, K]: rows in the order of a draw, cut into sets; what is over is left out.

    Args:
        draw_B: random numbers, one a document.
        size: K; fewer rows than that make one set.
        valid_B: bool, False leaves a document out.

    Raises:
        ValueError: no document, or a size below 1.
    """
    expect(size >= 1, "size", "1 or more", size)
    order = draw_B.argsort(stable=True)
    if valid_B is not None:
        order = order[valid_B[order]]
    expect(len(order) > 0, "documents", "one or more with a known word", "none")
    size = min(size, len(order))
    return order[: len(order) // size * size].view(-1, size)


def set_contrast(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    sets: Tensor,
    *,
    temperature: float = 0.2,
    beta: float = 0.5,
    cross_set: bool = False,
    reduction: str = "sum",
    with_stats: bool = False,
) -> Any:
    """What all documents of a set share stays while salient words do, and departs where their meaning was changed.

    L = -sum_i log [ e^{f(a_i, p_i)} / ( e^{f(a_i, p_i)} + beta e^{f(A_i, n_i)} ) ],  f(x, y) = cos(x, y) / t,
    a and p the sets' minima of anchor and positive, A and n their maxima of anchor and negative

    Args:
        anchor: [B, T] of documents, e.g. shares of topics.
        positive: [B, T] of documents that keep what is salient.
        negative: [B, T] of documents that lost it.
        sets: numbers of rows [M, K].
        temperature: t.
        beta: weight of the negative; 0 leaves it out, with which the loss is 0.
        cross_set: other sets' positives p_j are negatives too, e^{f(a_i, p_j)} added for every j.
        reduction: "sum" over sets, "mean" or "none" ([M]).
        with_stats: also return Stats.

    Returns:
        The loss, or (loss, Stats).

    Raises:
        ValueError: unequal shapes, a negative beta, a temperature that is not above 0.

    Notes:
        O(B T), with cross_set O(M^2 T) more. Sets of one document contrast documents.

    Source: Nguyen, Wu, Dong, Nguyen, Ng, Luu, "Topic Modeling as Multi-Objective Contrastive Optimization", ICLR 2024.
    """
    for name, x in (("positive", positive), ("negative", negative)):
        expect(x.shape == anchor.shape, name, f"the shape of anchor, {tuple(anchor.shape)}", tuple(x.shape))
    expect(beta >= 0, "beta", "0 or more", beta)
    expect_positive("temperature", temperature)
    low, high = (nn.functional.normalize(set_pool(anchor, sets, how), dim=1) for how in ("min", "max"))  # type: ignore[arg-type]
    kept = nn.functional.normalize(set_pool(positive, sets, "min"), dim=1)
    lost = nn.functional.normalize(set_pool(negative, sets, "max"), dim=1)
    score = (low * kept).sum(1) / temperature
    other = ((high * lost).sum(1) / temperature + math.log(beta or 1.0)).unsqueeze(1)
    mask = torch.full_like(other, beta > 0, dtype=torch.bool)
    if cross_set:
        other = torch.cat([other, low @ kept.t() / temperature], 1)
        mask = torch.cat([mask, ~torch.eye(len(low), dtype=torch.bool, device=low.device)], 1)
    return ranking_nce(score, other, negative_mask=mask, reduction=reduction, with_stats=with_stats)


def replace_words(
    counts_BV: Tensor, model_BV: Tensor, inverse_frequency_V: Tensor, share: float, *, largest: bool
) -> Tensor:
    """Documents as shares of words, of which some have the model's share instead.

    Args:
        counts_BV: of words in documents.
        model_BV: what the model expects: shares that add up to 1.
        inverse_frequency_V: log(documents / documents with the word).
        share: of a document's different words, one at least.
        largest: those of the largest count times inverse frequency, which a document is about; else the smallest.

    Returns:
        [B, V]; a document without words is as it was.

    Source: Nguyen, Luu, "Contrastive Learning for Neural Topic Model", NeurIPS 2021.
    """
    present = counts_BV > 0
    value = counts_BV * inverse_frequency_V
    value = value.masked_fill(~present, -torch.inf) if largest else (-value).masked_fill(~present, -torch.inf)
    num = (share * present.sum(1, keepdim=True)).round().clamp_min(1)
    rank = value.argsort(dim=1, descending=True, stable=True).argsort(dim=1, stable=True)
    chosen = present & (rank < num)
    shares = counts_BV / counts_BV.sum(1, keepdim=True).clamp_min(1)
    return torch.where(chosen, model_BV, shares)


class TopicModel(nn.Module):
    """Counts of words from shares of topics: a variational autoencoder.

    pi = MLP(x / |x|); m, log s^2 linear in pi; theta = softmax(m + s e); p = softmax(norm(theta Phi))

    Args:
        num_words: V.
        num_topics: T.
        hidden: width of the two layers before m and s.
        dropout: after them.
        norm: batch normalisation of m, log s^2 and of theta Phi, which keeps topics from collapsing.
    """

    def __init__(self, num_words: int, num_topics: int, *, hidden: int = 128, dropout: float = 0.2, norm: bool = True):
        super().__init__()
        expect(num_topics >= 2, "num_topics", "2 or more", num_topics)
        self.network = nn.Sequential(
            nn.Linear(num_words, hidden), nn.Softplus(), nn.Linear(hidden, hidden), nn.Softplus(), nn.Dropout(dropout)
        )
        # batch normalisation takes out what a bias would add
        self.mean = nn.Linear(hidden, num_topics, bias=not norm)
        self.log_variance = nn.Linear(hidden, num_topics, bias=not norm)
        self.topics = nn.Parameter(torch.empty(num_topics, num_words))
        nn.init.xavier_uniform_(self.topics)

        def make_norm(dim: int) -> nn.Module:
            return nn.BatchNorm1d(dim, affine=False) if norm else nn.Identity()

        self.mean_norm, self.variance_norm, self.word_norm = (make_norm(n) for n in (num_topics, num_topics, num_words))

    def posterior(self, shares_BV: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance [B, T] of documents given as shares of words."""
        inner = self.network(shares_BV)
        return self.mean_norm(self.mean(inner)), self.variance_norm(self.log_variance(inner))

    def log_words(self, theta_BT: Tensor) -> Tensor:
        """Logarithms of the shares of words [B, V] that shares of topics give."""
        return self.word_norm(theta_BT @ self.topics).log_softmax(1)

    def encoder_parameters(self) -> list[nn.Parameter]:
        """All but the topics' words."""
        return [p for name, p in self.named_parameters() if name != "topics"]
