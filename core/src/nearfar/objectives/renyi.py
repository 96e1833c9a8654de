"""Rényi information between Gram matrices: relational distillation and supervised contrast on one scale.

Legend: B batch, D embedding, E the teacher's embedding.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from nearfar._similarity import accumulation, normalize
from nearfar._strips import in_strips
from nearfar._tiles import no_autocast
from nearfar.checks import expect
from nearfar.contrast import Stats


@torch.compiler.disable()
def renyi(
    student: Tensor,
    teacher: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    share: float = 0.95,
    tile: int | None = None,
    with_stats: bool = False,
) -> Any:
    """Minus the order-2 Rényi mutual information of two Gram matrices, up to what does not depend on the student.

    L = 1/B [ log2 |C|^2 - log2 |C * T|^2 ],  C = Z Z',  T = w Z_t Z_t' + (1 - w) [y_i = y_j]

    with Frobenius norms and * entry by entry.

    Args:
        student: z [B, D], scaled to unit length.
        teacher: z_t [B, E], scaled to unit length, held constant; its width need not be the student's.
        labels: y [B].
        share: w in [0, 1]; 1, which teacher alone gives, distils its relations; 0, which labels alone give, is
            supervised contrast with the squared cosine as kernel.
        tile: rows of a strip; None chooses, 0 takes all at once.
        with_stats: also return Stats.

    Returns:
        The loss, 0 or above, or (loss, Stats).

    Raises:
        ValueError: neither teacher nor labels; lengths that differ; a share outside [0, 1].

    Notes:
        |C|^2 = |Z'Z|^2 in D x D; the other norm in strips: 2 B^2 (D + E) FLOP forward. Signs of cosines are lost in the
        squares. One class alone with share 0 gives 0 without gradient. Pairs of this process alone: sample rows so that
        a batch is enough.

    Relations:
        With share 0 the positives' share of all squared cosines, where `supcon` takes exponentials anchor by anchor.

    Example:
        >>> import torch
        >>> from nearfar.objectives import renyi
        >>> float(renyi(torch.ones(4, 2), labels=torch.tensor([0, 0, 1, 1])))  # log2(16 / 8) / 4
        0.25

    Source: Miles, Yucel, Manganelli, Saà-Garriga, "MobileVOS: Real-Time Video Object Segmentation: Contrastive Learning
    meets Knowledge Distillation", CVPR 2023; Giraldo, Rao, Principe, "Measures of Entropy from Data Using Infinitely
    Divisible Kernels", IEEE Transactions on Information Theory 2015.
    """
    expect(0 <= share <= 1, "share", "a number in [0, 1]", share)
    expect(student.ndim == 2 and len(student) > 0, "student", "shape [B, D], B >= 1", tuple(student.shape))
    expect(teacher is not None or labels is not None, "teacher, labels", "at least one", "none")
    num = len(student)
    expect(teacher is None or (teacher.ndim == 2 and len(teacher) == num), "teacher", f"shape [{num}, E]",
           None if teacher is None else tuple(teacher.shape))  # fmt: skip
    expect(labels is None or tuple(labels.shape) == (num,), "labels", f"shape [{num}]",
           None if labels is None else tuple(labels.shape))  # fmt: skip
    w = 1.0 if labels is None else 0.0 if teacher is None else share
    with no_autocast(student.device):
        kind = accumulation(student)
        z = normalize(student.to(kind))
        fixed = None if teacher is None or w == 0 else normalize(teacher.detach().to(kind))

        def strip(rows: Tensor) -> tuple[Tensor]:
            target = z.new_zeros(())
            if fixed is not None:
                target = target + w * (fixed[rows] @ fixed.t())
            if labels is not None and w < 1:
                target = target + (1 - w) * (labels[rows, None] == labels).to(kind)
            return (((z[rows] @ z.t()) * target).square().sum(1),)

        (joint_B,) = in_strips(strip, num, num, tile, z.device)
        # an all-zero student has no relations at all: both logarithms are then held at the same floor
        logs = [torch.log2(x.clamp_min(1e-8)) for x in ((z.t() @ z).square().sum(), joint_B.sum())]
        loss = (logs[0] - logs[1]) / num
    return (loss, Stats(num, 0, None)) if with_stats else loss


class Renyi(nn.Module):
    """`renyi` as a Module; see there.

    Args:
        share: the w of the formula.
        tile: rows of a strip.
    """

    needs_negatives = True
    distributed = "local"
    symmetric = False

    def __init__(self, share: float = 0.95, *, tile: int | None = None) -> None:
        super().__init__()
        expect(0 <= share <= 1 and math.isfinite(share), "share", "a number in [0, 1]", share)
        self.share, self.tile = share, tile

    def forward(
        self, student: Tensor, teacher: Tensor | None = None, labels: Tensor | None = None, **options: Any
    ) -> Any:
        """The loss; further options as `renyi`."""
        return renyi(student, teacher, labels, share=self.share, tile=self.tile, **options)
