"""Contrast without false negatives, and with noise among the negatives.

Legend: B anchors, N candidates, M noise vectors, D width of the complement, E embedding.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from nearfar.checks import expect, expect_choice
from nearfar.contrast import contrast
from nearfar.negatives import adversarial_negatives

LOSSES = ("infonce", "code_bce")
SMALLEST = 1e-7
"""probability that the logarithms of code_bce are kept above"""


class Debiased(NamedTuple):
    """A loss, and the share of anchors whose best candidate is their own; None where it would cost a pass."""

    loss: Tensor
    accuracy: Tensor | None


@torch.no_grad()
def keep_negatives(anchor_BD: Tensor, candidate_ND: Tensor, targets_B: Tensor, threshold: float) -> Tensor:
    """Which candidates stay in an anchor's denominator, bool [B, N]: those no nearer to it than a threshold.

    keep_ij = cos(a_i, c_j) <= phi, and always of its own candidate

    Args:
        anchor_BD: what a complementary encoder says of the anchors.
        candidate_ND: and of the candidates.
        targets_B: the number of each anchor's own candidate.
        threshold: phi in (-1, 1]; 1 keeps all.
    """
    expect(-1 < threshold <= 1, "threshold", "a cosine in (-1, 1]", threshold)
    cosine = normalize(anchor_BD.float(), dim=1) @ normalize(candidate_ND.float(), dim=1).T
    keep_BN = cosine.clamp(-1.0, 1.0) <= threshold
    return keep_BN.scatter(1, targets_B.unsqueeze(1), True)


def hard_noise(
    anchor_NE: Tensor, candidate_NE: Tensor, noise_ME: Tensor, *, temperature: float, num_steps: int, step_size: float
) -> Tensor:
    """Noise that has climbed the contrast of anchors with their own candidates, the others, and the noise.

    Args:
        anchor_NE, candidate_NE: row i of one belongs to row i of the other.
        noise_ME: to begin with.
        temperature: divides cosines.
        num_steps, step_size: see `nearfar.negatives.adversarial_negatives`.

    Returns:
        [M, E] without gradient.
    """
    anchor_NE, candidate_NE = anchor_NE.detach(), candidate_NE.detach()
    targets = torch.arange(len(anchor_NE), device=anchor_NE.device)

    def loss(noise: Tensor) -> Tensor:
        return contrast(anchor_NE, candidate_NE, targets=targets, extra=(noise,), temperature=temperature)

    return adversarial_negatives(loss, noise_ME, num_steps=num_steps, step_size=step_size)


def debiased_contrast(
    anchor_BE: Tensor,
    candidate_NE: Tensor,
    targets_B: Tensor,
    *,
    keep_BN: Tensor | None = None,
    noise_ME: Tensor | None = None,
    temperature: float = 0.05,
    loss: str = "infonce",
) -> Debiased:
    """Each anchor finds its own candidate among those that are kept and the noise.

    With cosines s, keep a_ij in {0, 1} and T_i = sum_{j kept} exp(s_ij / t) + sum_m exp(s_im / t):

        infonce   L = 1/B sum_i [ log T_i - s_ii / t ]
        code_bce  L = -1/(B (N + M)) sum_ij [ y_ij log p_ij + (1 - y_ij) log(1 - p_ij) ],  p_i = softmax(a_ij s_ij / t)

    Args:
        anchor_BE, candidate_NE: embeddings.
        targets_B: the number of each anchor's own candidate, which is always kept.
        keep_BN: bool; None keeps all.
        noise_ME: further negatives of every anchor; None: none.
        temperature: t.
        loss: "infonce", the paper's; "code_bce", what the authors' code computes, in which a candidate left out has
            the logit 0 instead of none, and y is 1 at the own candidate.

    Returns:
        Debiased, in float32 (float64 for float64 input).

    Raises:
        ValueError: fewer than two candidates, noise included, with which the loss is 0 whatever the vectors are.

    Source: Zhou, Zhang, Zhao, Wen, "Debiased Contrastive Learning of Unsupervised Sentence Representations", ACL 2022.
    """
    expect_choice("loss", loss, LOSSES)
    noise = anchor_BE.new_zeros(0, anchor_BE.shape[1]) if noise_ME is None else noise_ME
    width = len(candidate_NE) + len(noise)
    expect(width >= 2, "candidate_NE", "two candidates or more, noise included", width)
    if loss == "infonce":
        every = keep_BN is None or bool(keep_BN.all())
        value, stats = contrast(
            anchor_BE, candidate_NE, targets=targets_B, denominator="all" if every else keep_BN,  # type: ignore[arg-type]
            extra=(noise,) if len(noise) else (), temperature=temperature, with_stats=True,
        )  # fmt: skip
        return Debiased(value, stats.accuracy)
    return _code_bce(anchor_BE, candidate_NE, targets_B, keep_BN, noise, temperature)


def _code_bce(
    anchor_BE: Tensor,
    candidate_NE: Tensor,
    targets_B: Tensor,
    keep_BN: Tensor | None,
    noise: Tensor,
    temperature: float,
) -> Debiased:
    wide = torch.float64 if anchor_BE.dtype == torch.float64 else torch.float32
    with torch.autocast(anchor_BE.device.type, enabled=False):
        anchor, candidate, noise = (normalize(x.to(wide), dim=1) for x in (anchor_BE, candidate_NE, noise))
        logits = anchor @ candidate.T / temperature
        if keep_BN is not None:
            logits = logits * keep_BN
        logits = torch.cat([logits, anchor @ noise.T / temperature], 1)
        p = logits.softmax(1).clamp(SMALLEST, 1 - SMALLEST)
        own = torch.zeros_like(p, dtype=torch.bool).scatter(1, targets_B.unsqueeze(1), True)
        value = -torch.where(own, p.log(), (1 - p).log()).mean()
    return Debiased(value, (logits.argmax(1) == targets_B).to(wide).mean())
