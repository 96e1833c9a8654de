"""Regression of a view's embedding from another's: BYOL and SimSiam, attraction without negatives.

Legend: V views, W target views, B batch, D embedding.
"""

from __future__ import annotations

from torch import Tensor, nn

from nearfar._similarity import accumulation, normalize
from nearfar._tiles import no_autocast
from nearfar.checks import expect_choice
from nearfar.objectives._shared import check_targets, met_targets, reduced


def regression(
    prediction: Tensor, target: Tensor, *, form: str = "mse", all_pairs: bool = False, reduction: str = "mean"
) -> Tensor:  # fmt: skip
    """Each view predicts the targets of the other views of its sample, which stand still.

    L = 1/B sum_i mean_{v != w} (2 - 2 cos(p_vi, t_wi))        (mse: the squared distance of unit vectors, BYOL)
    L = 1/B sum_i mean_{v != w} -cos(p_vi, t_wi)               (cosine: SimSiam)

    Args:
        prediction: p [V, B, D], what the predictor says of every view.
        target: t [W, B, D] of the first W views, from a teacher or from the student itself; gets no gradient.
        form: "mse" or "cosine".
        all_pairs: targets are of other views than predictions, so that every pair meets; else a view leaves out the
            target of its own number.
        reduction: "mean", "sum" or "none" ([B], each the mean over the sample's pairs).

    Returns:
        The loss, float32 (float64 for float64 input): 0 to 4, or -1 to 1.

    Raises:
        ValueError: shapes that do not fit, no pair of different views, an unknown form.

    Notes:
        O(V B D), as the targets a view meets are summed before the product. Nothing crosses samples: over several
        processes give each its own rows and weigh means by B. The constant is a solution; what keeps training from it
        is the predictor and the still target.

    Relations:
        With prediction and target the same unit vectors, `alignment` of the pairs.

    Example:
        >>> import torch
        >>> from nearfar.objectives import regression
        >>> z = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]]])  # one sample, two orthogonal views
        >>> float(regression(z, z)), float(regression(z, z.flip(0)))
        (2.0, 0.0)

    Source: Grill et al., "Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning", NeurIPS 2020; Chen,
    He, "Exploring Simple Siamese Representation Learning", CVPR 2021.
    """
    expect_choice("form", form, ("mse", "cosine"))
    expect_choice("reduction", reduction, ("mean", "sum", "none"))
    check_targets("prediction", prediction, target, all_pairs)
    with no_autocast(prediction.device):
        kind = accumulation(prediction, target)
        p, t = normalize(prediction.to(kind)), normalize(target.detach().to(kind))
        met, num_pairs = met_targets(t, len(p), all_pairs)
        cosine_B = (p * met).sum((0, 2)) / num_pairs
        loss_B = 2 - 2 * cosine_B if form == "mse" else -cosine_B
    return reduced(loss_B, reduction)


class Regression(nn.Module):
    """`regression` as a Module; see there.

    Args:
        form: "mse" or "cosine".
        all_pairs: targets are of other views than predictions.
    """

    needs_negatives = False
    distributed = "local"
    symmetric = False

    def __init__(self, form: str = "mse", *, all_pairs: bool = False) -> None:
        super().__init__()
        expect_choice("form", form, ("mse", "cosine"))
        self.form, self.all_pairs = form, all_pairs

    def forward(self, prediction: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
        return regression(prediction, target, form=self.form, all_pairs=self.all_pairs, reduction=reduction)
