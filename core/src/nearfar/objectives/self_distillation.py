"""Self-distillation over prototypes: DINO between views and iBOT between patches, a student after its own teacher.

Legend: V views, W target views, B batch, K prototypes, T patches, M masked patches.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nearfar._similarity import accumulation
from nearfar._tiles import no_autocast
from nearfar.checks import expect, expect_choice, expect_positive
from nearfar.objectives._shared import check_targets, met_targets, reduced


@torch.no_grad()
def centred_softmax(logits: Tensor, centre: Tensor, *, temperature: float = 0.04) -> Tensor:
    """What a teacher says: the softmax over prototypes of logits less their centre, sharpened.

    P = softmax_k((t_k - c_k) / temperature)

    Args:
        logits: t [..., K] of the teacher.
        centre: c [K], a moving average of such logits, see `update_centre`; zeros: none.
        temperature: divides; smaller is sharper.

    Returns:
        [..., K], rows of sum 1, float32 (float64 for float64 logits), without gradient.

    Raises:
        ValueError: a centre of another shape, a temperature not above zero.

    Notes:
        The centre keeps one prototype from taking everything, the temperature keeps all from becoming equal.
        `nearfar.prototypes.sinkhorn(logits, eps=temperature)` balances exactly, in place of a centre.

    Source: Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021.
    """
    expect_positive("temperature", temperature)
    expect(logits.ndim >= 1 and tuple(centre.shape) == tuple(logits.shape[-1:]), "centre",
           f"shape [{logits.shape[-1] if logits.ndim else 'K'}]", tuple(centre.shape))  # fmt: skip
    with no_autocast(logits.device):
        kind = accumulation(logits)
        return ((logits.to(kind) - centre.to(kind)) / temperature).softmax(-1)


@torch.no_grad()
def update_centre(centre: Tensor, mean: Tensor, *, momentum: float = 0.9) -> Tensor:
    """The next centre: m c + (1 - m) mean.

    Args:
        centre: c [K].
        mean: [K] of the teacher's logits over all views and samples; over several processes of all of them, so that
            every process keeps the same centre.
        momentum: m in [0, 1].

    Returns:
        A new tensor [K] of the centre's type.

    Raises:
        ValueError: unequal shapes, momentum outside [0, 1].

    Source: as `centred_softmax`.
    """
    expect(mean.shape == centre.shape and centre.ndim == 1, "mean", f"the shape of centre, {tuple(centre.shape)}",
           tuple(mean.shape))  # fmt: skip
    expect(0 <= momentum <= 1, "momentum", "a number in [0, 1]", momentum)
    return torch.lerp(mean.to(centre), centre, momentum)


def self_distillation(
    student: Tensor,
    target: Tensor,
    *,
    temperature: float = 0.1,
    all_pairs: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """Each of the student's views gives the probabilities that the teacher gave to the other views of the sample.

    L = 1/B sum_i mean_{v != w} -sum_k P_wik log softmax_k(s_vi / t)

    Args:
        student: logits s [V, B, K] over prototypes.
        target: the teacher's probabilities P [W, B, K] of the first W views, from `centred_softmax` or Sinkhorn; gets
            no gradient.
        temperature: t of the student.
        all_pairs: targets are of other views than the student's, so that every pair meets; else a view leaves out the
            target of its own number.
        reduction: "mean", "sum" or "none" ([B], each the mean over the sample's pairs).

    Returns:
        The loss, float32 (float64 for float64 input): at least the mean entropy of the targets, log K for uniform ones.

    Raises:
        ValueError: shapes that do not fit, no pair of different views, a temperature not above zero.

    Notes:
        O(V B K), as the targets a view meets are summed first. Nothing crosses samples: over several processes give
        each its own rows and weigh means by B.

    Relations:
        With Sinkhorn's codes of views of the same encoder, `nearfar.prototypes.swapped_prediction` (SwAV).

    Example:
        >>> import torch
        >>> from nearfar.objectives import centred_softmax, self_distillation
        >>> logits = torch.zeros(2, 1, 4)
        >>> round(float(self_distillation(logits, centred_softmax(logits, torch.zeros(4)))), 4)  # log 4
        1.3863

    Source: as `centred_softmax`.
    """
    expect_positive("temperature", temperature)
    expect_choice("reduction", reduction, ("mean", "sum", "none"))
    check_targets("student", student, target, all_pairs)
    with no_autocast(student.device):
        kind = accumulation(student, target)
        met, num_pairs = met_targets(target.detach().to(kind), len(student), all_pairs)
        log_prob = F.log_softmax(student.to(kind) / temperature, -1)
        loss_B = -(met * log_prob).sum((0, 2)) / num_pairs
    return reduced(loss_B, reduction)


def masked_distillation(student: Tensor, target: Tensor, mask: Tensor, *, temperature: float = 0.1) -> Tensor:
    """Where its image is masked, the student gives the probabilities of the teacher, who saw the patch.

    L = 1/B sum_i 1/|M_i| sum_{p in M_i} -sum_k P_pk log softmax_k(s_pk / t)

    Args:
        student: logits s [M, K] of the masked patches of all images, in the order of `mask`: `patches_BTK[mask]`.
        target: the teacher's probabilities P [M, K] of the same patches; gets no gradient.
        mask: bool [B, T], which patches of each image are masked.
        temperature: t of the student.

    Returns:
        The loss, float32 (float64 for float64 input). An image without a masked patch counts as 0, and the mean is over
        all B images, as in the authors' code.

    Raises:
        ValueError: other than one row a masked patch, unequal shapes, a temperature not above zero.
        TypeError: a mask that is not bool.

    Notes:
        Masked rows alone cost anything: O(M K). Nothing crosses images: over several processes give each its own and
        weigh means by B.

    Relations:
        `self_distillation` of the class tokens stands beside it in iBOT, over the same prototypes.

    Example:
        >>> import torch
        >>> from nearfar.objectives import masked_distillation
        >>> mask = torch.tensor([[True, False], [False, False]])
        >>> uniform = torch.full((1, 4), 0.25)
        >>> round(float(masked_distillation(torch.zeros(1, 4), uniform, mask)), 4)  # log(4) / 2
        0.6931

    Source: Zhou, Wei, Wang, Shen, Xie, Yuille, Kong, "iBOT: Image BERT Pre-Training with Online Tokenizer", ICLR 2022.
    """
    expect_positive("temperature", temperature)
    expect(mask.dtype == torch.bool, "mask", "bool", mask.dtype, TypeError)
    expect(mask.ndim == 2 and mask.numel() > 0, "mask", "shape [B, T]", tuple(mask.shape))
    num = int(mask.sum())
    expect(student.ndim == 2 and len(student) == num, "student", f"shape [{num}, K], a row a masked patch",
           tuple(student.shape))  # fmt: skip
    expect(target.shape == student.shape, "target", f"the shape of student, {tuple(student.shape)}",
           tuple(target.shape))  # fmt: skip
    with no_autocast(student.device):
        kind = accumulation(student, target)
        share_B = 1 / mask.sum(1).clamp(min=1).to(kind)
        share_M = share_B[:, None].expand(mask.shape)[mask]
        loss_M = -(target.detach().to(kind) * F.log_softmax(student.to(kind) / temperature, -1)).sum(1)
        return (share_M * loss_M).sum() / len(mask)


class SelfDistillation(nn.Module):
    """`self_distillation` as a Module; see there.

    Args:
        temperature: of the student.
        all_pairs: targets are of other views than the student's.
    """

    needs_negatives = False
    distributed = "local"
    symmetric = False

    def __init__(self, temperature: float = 0.1, *, all_pairs: bool = False) -> None:
        super().__init__()
        expect_positive("temperature", temperature)
        self.temperature, self.all_pairs = temperature, all_pairs

    def forward(self, student: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
        options = {"temperature": self.temperature, "all_pairs": self.all_pairs}
        return self_distillation(student, target, reduction=reduction, **options)  # type: ignore[arg-type]


class MaskedDistillation(nn.Module):
    """`masked_distillation` as a Module; see there.

    Args:
        temperature: of the student.
    """

    needs_negatives = False
    distributed = "local"
    symmetric = False

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        expect_positive("temperature", temperature)
        self.temperature = temperature

    def forward(self, student: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        return masked_distillation(student, target, mask, temperature=self.temperature)
