"""Multi-label self-supervision: each entry of a dictionary is a yes-or-no question, answered by another space.

Legend: B batch, N entries of the dictionary, D embedding, F features.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import softplus

from nearfar._similarity import accumulation, normalize
from nearfar._tiles import no_autocast
from nearfar.checks import expect, expect_choice, expect_positive
from nearfar.objectives._shared import reduced


@torch.no_grad()
def nearest_labels(
    feature: Float[Tensor, "B F"],
    dictionary: Float[Tensor, "N F"],
    num_positives: int,
    own: Int[Tensor, " B"] | None = None,
) -> Bool[Tensor, "B N"]:
    """The entries of a dictionary that count as positive: the nearest ones by cosine.

    Args:
        feature: of the samples [B, F], usually of the encoder before its head.
        dictionary: of the entries [N, F], in the same space.
        num_positives: k, fewer than N.
        own: [B] entry that is the sample's own other view, positive whatever its cosine, as one of the k.

    Returns:
        Labels [B, N] with k True in every row, without gradient; of equal cosines the first entry counts.

    Raises:
        ValueError: shapes that do not fit, k outside 1 to N - 1, a row of zeros.
    """
    _check("feature", feature, dictionary)
    num = len(dictionary)
    expect(1 <= num_positives < num, "num_positives", f"a number from 1 to {num - 1}", num_positives)
    with no_autocast(feature.device):
        cosine = _unit("feature", feature) @ _unit("dictionary", dictionary).T
    if own is not None:
        expect(own.shape == (len(feature),), "own", f"shape [{len(feature)}]", tuple(own.shape))
        cosine.scatter_(1, own[:, None], torch.inf)
    first = cosine.sort(dim=1, descending=True, stable=True).indices[:, :num_positives]
    return torch.zeros_like(cosine, dtype=torch.bool).scatter_(1, first, True)


def multi_label(
    embedding: Float[Tensor, "B D"],
    dictionary: Float[Tensor, "N D"],
    labels: Bool[Tensor, "B N"],
    *,
    temperature: float = 0.2,
    bias: float = 0.0,
    positive_weight: float = 1.0,
    reduction: str = "mean",
) -> Tensor:
    """Binary cross-entropy of every sample with every entry of a dictionary, each entry a classifier of its own.

    L_i = 1/N sum_j [w y_ij softplus(-p_ij) + (1 - y_ij) softplus(p_ij)],  p_ij = cos(z_i, q_j) / temperature + bias

    Args:
        embedding: z [B, D] of the samples.
        dictionary: q [N, D] of the entries; gets no gradient.
        labels: y [B, N], from `nearest_labels` in another space. Entries stand in the same order in both.
        temperature: divides the cosines.
        bias: added to them; log(k / (N - k)) makes the untrained answer the share of positives.
        positive_weight: w of positives; (N - k) / k makes them weigh as much as the negatives.
        reduction: "mean" over samples, "sum" or "none" ([B]).

    Returns:
        The loss, float32 (float64 for float64 input); log 2 for an infinite temperature without bias and weight.

    Raises:
        ValueError: shapes that do not fit, a temperature or weight that is not positive.

    Notes:
        O(B N) numbers beside the operands. With k far below N and w = 1 the negatives' pull away from the dictionary's
        mean dominates. Rebuilt from the paper's abstract and figure; bias and weight are additions of this toolkit.

    Relations:
        With one positive, the own entry, instance discrimination by sigmoids; `siglip` sums where this takes means.

    Example:
        >>> import torch
        >>> from nearfar.objectives import multi_label
        >>> z = torch.tensor([[1.0, 0.0]])
        >>> dictionary = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> round(float(multi_label(z, dictionary, torch.tensor([[True, False]]), temperature=0.5)), 4)
        0.1269

    Source: Zhu, Fu, Wu, "Multi-Label Self-Supervised Learning with Scene Images", ICCV 2023.
    """
    expect_choice("reduction", reduction, ("mean", "sum", "none"))
    expect_positive("temperature", temperature)
    expect_positive("positive_weight", positive_weight)
    _check("embedding", embedding, dictionary)
    shape = (len(embedding), len(dictionary))
    expect(labels.shape == shape and labels.dtype == torch.bool, "labels", f"bool {shape}",
           f"{labels.dtype} {tuple(labels.shape)}")  # fmt: skip
    with no_autocast(embedding.device):
        kind = accumulation(embedding, dictionary)
        z, q = normalize(embedding.to(kind)), normalize(dictionary.detach().to(kind))
        p = z @ q.T / temperature + bias
        loss_BN = torch.where(labels, positive_weight * softplus(-p), softplus(p))
        return reduced(loss_BN.mean(1), reduction)


class MultiLabel(nn.Module):
    """`multi_label` as a Module; see there.

    Args:
        temperature: divides the cosines.
        bias: added to them.
        positive_weight: of positives.
    """

    needs_negatives = True
    distributed = "gather_candidates"
    symmetric = False

    def __init__(self, temperature: float = 0.2, *, bias: float = 0.0, positive_weight: float = 1.0) -> None:
        super().__init__()
        expect_positive("temperature", temperature)
        expect_positive("positive_weight", positive_weight)
        self.temperature, self.bias, self.positive_weight = temperature, bias, positive_weight

    def forward(self, embedding: Tensor, dictionary: Tensor, labels: Tensor, *, reduction: str = "mean") -> Tensor:
        return multi_label(
            embedding, dictionary, labels, temperature=self.temperature, bias=self.bias,
            positive_weight=self.positive_weight, reduction=reduction,
        )  # fmt: skip


def _check(name: str, rows: Tensor, dictionary: Tensor) -> None:
    expect(rows.ndim == 2 and len(rows) > 0, name, "shape [B, D], B of 1 or more", tuple(rows.shape))
    expect(
        dictionary.ndim == 2 and dictionary.shape[1] == rows.shape[1],
        "dictionary", f"shape [N, {rows.shape[1]}]", tuple(dictionary.shape),
    )  # fmt: skip


def _unit(name: str, rows: Tensor) -> Tensor:
    """Rows of unit length; one that is not a number stays so, and reaches the loss."""
    rows = rows.to(accumulation(rows))
    norm = rows.norm(dim=1, keepdim=True)
    zero = (norm == 0).flatten().nonzero().flatten()
    expect(len(zero) == 0, name, "rows that are not zero", f"zeros in rows {zero[:5].tolist()}")
    return rows / norm
