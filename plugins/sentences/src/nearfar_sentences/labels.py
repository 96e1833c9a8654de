"""Contrast of inputs with labels: scores, sampled labels, accidental hits, and the losses over them.

A label is a class, a word of the text, or any text; it is embedded as the inputs are, so that labels never seen in
training can be scored. Legend: B inputs, C labels, K drawn labels, E embedding.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from nearfar.checks import expect, expect_choice, expect_positive
from nearfar.objectives import binary_nce, ranking_nce

Loss = Literal["binary", "ranking", "margin"]


class LabelScorer(nn.Module):
    """How well labels fit inputs: [B, E] and [C, E] to [B, C].

    Args:
        kind: "cosine"; "dot"; or "mlp" of [h, e, h * e], which costs B C times a layer of width E.
        dim: E.
        temperature: divides cosines.
    """

    def __init__(self, kind: Literal["cosine", "dot", "mlp"], dim: int, temperature: float = 0.1) -> None:
        super().__init__()
        expect_choice("kind", kind, ("cosine", "dot", "mlp"))
        expect_positive("temperature", temperature)
        self.kind, self.temperature = kind, temperature
        self.mlp = nn.Sequential(nn.Linear(3 * dim, dim), nn.ReLU(), nn.Linear(dim, 1)) if kind == "mlp" else None

    def forward(self, h_BE: Tensor, e_CE: Tensor) -> Tensor:
        """Scores [B, C]; minus the energies of pairs."""
        expect(h_BE.shape[1:] == e_CE.shape[1:], "labels", f"width {h_BE.shape[1]}", e_CE.shape[1])
        if self.mlp is not None:
            shape = (len(h_BE), len(e_CE), h_BE.shape[1])
            h, e = h_BE.unsqueeze(1).expand(shape), e_CE.unsqueeze(0).expand(shape)
            return self.mlp(torch.cat([h, e, h * e], 2)).squeeze(2)
        if self.kind == "dot":
            return h_BE @ e_CE.t()
        return nn.functional.normalize(h_BE, dim=1) @ nn.functional.normalize(e_CE, dim=1).t() / self.temperature


class LabelNoise:
    """The distribution that negative labels are drawn from: counts to a power, as shares.

    Args:
        counts: how often each label occurs [C].
        power: 1: as often as they occur; 0: evenly; 0.75 is customary.

    Raises:
        ValueError: a negative count, or none above 0.
    """

    def __init__(self, counts: Tensor, power: float = 0.75) -> None:
        expect(counts.ndim == 1 and bool((counts >= 0).all()) and bool((counts > 0).any()), "counts",
               "shape [C], 0 or more, one above 0", counts)  # fmt: skip
        weights = torch.where(counts > 0, counts.double() ** power, 0.0)
        self.log_probability = (weights / weights.sum()).log()

    def draw(self, num: int, generator: torch.Generator) -> Tensor:
        """Numbers of drawn labels [K], with replacement."""
        expect(num >= 1, "num", "1 or more", num)
        return torch.multinomial(self.log_probability.exp(), num, replacement=True, generator=generator)


def accidental_hits(drawn: Tensor, positive: Tensor) -> Tensor:
    """Whether a drawn label is a positive of the input: bool [B, K].

    Args:
        drawn: numbers of labels [K], or [B, K] of each input's own.
        positive: bool [B, C].
    """
    expect(positive.dtype == torch.bool and positive.ndim == 2, "positive", "bool [B, C]", tuple(positive.shape))
    low, high = (int(drawn.min()), int(drawn.max())) if drawn.numel() else (0, 0)
    expect(low >= 0 and high < positive.shape[1], "drawn", f"numbers of {positive.shape[1]} labels", (low, high))
    return positive[:, drawn] if drawn.ndim == 1 else positive.gather(1, drawn)


def label_contrast(
    scores: Tensor,
    positive: Tensor,
    drawn: Tensor | None = None,
    *,
    loss: Loss = "binary",
    log_noise: Tensor | None = None,
    margin: float = 1.0,
    with_stats: bool = False,
) -> Any:
    """Inputs tell their labels from others.

    binary:  -sum_p log sigmoid(s_p) - sum_k log sigmoid(-s_k), each s less log(K q) where the noise is given; mean over
             inputs with a positive
    ranking: -log [ e^{s_p} / ( e^{s_p} + sum_k e^{s_k} ) ], each s less log q where it is given; mean over positives
    margin:  max(0, m + E_p - E_k) with energies E = -s; mean over pairs of a positive and a negative

    Args:
        scores: of every label [B, C].
        positive: bool [B, C], several a row; rows without any are passed over.
        drawn: numbers of the labels that are negatives [K]; None: all. Those of an input's own positives are left out.
        loss: which.
        log_noise: log q of every label [C], of binary and ranking; None: no correction, which with binary is negative
            sampling.
        margin: m.
        with_stats: also return Stats of binary and ranking.

    Returns:
        The loss, or (loss, Stats).

    Raises:
        ValueError: shapes that differ, no positive at all, a drawn label of probability 0, margins with stats or noise.

    Source: Gutmann, Hyvärinen, JMLR 2012; Ma, Collins, EMNLP 2018; Rethmeier, Augenstein, "A Primer on Contrastive
    Pretraining in Language Processing", 2021.
    """
    expect_choice("loss", loss, ("binary", "ranking", "margin"))
    expect(scores.ndim == 2 and positive.shape == scores.shape, "positive", f"shape {tuple(scores.shape)}",
           tuple(positive.shape))  # fmt: skip
    expect(loss != "margin" or not (with_stats or log_noise is not None), "loss", "'binary' or 'ranking' with noise or "
           "stats", repr(loss))  # fmt: skip
    drawn = torch.arange(scores.shape[1], device=scores.device) if drawn is None else drawn
    kept = ~accidental_hits(drawn, positive)
    noise = None if log_noise is None else log_noise.to(scores).expand_as(scores)
    if loss == "binary":
        return binary_nce(
            scores, scores[:, drawn], positive_mask=positive, negative_mask=kept,
            positive_noise=noise, negative_noise=None if noise is None else noise[:, drawn], with_stats=with_stats,
        )  # fmt: skip
    row, column = positive.nonzero(as_tuple=True)
    expect(len(row) > 0, "positive", "an input with a positive", "none")
    if loss == "margin":
        violated = (margin - scores[row, column].unsqueeze(1) + scores[row][:, drawn]).clamp_min(0)
        return (violated * kept[row]).sum() / kept[row].sum().clamp_min(1)
    return ranking_nce(
        scores[row, column], scores[row][:, drawn], negative_mask=kept[row],
        positive_noise=None if noise is None else noise[row, column],
        negative_noise=None if noise is None else noise[row][:, drawn], with_stats=with_stats,
    )  # fmt: skip
