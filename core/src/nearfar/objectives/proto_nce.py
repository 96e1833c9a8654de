"""ProtoNCE: samples find the prototype of their cluster, each prototype with a temperature of its own.

Legend: V views, B batch, D embedding, K prototypes, N samples that were clustered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nearfar import _similarity
from nearfar._similarity import accumulation
from nearfar._tiles import no_autocast
from nearfar.checks import expect, expect_positive
from nearfar.contrast import Stats, contrast
from nearfar.objectives._shared import as_views, stack


@torch.no_grad()
def concentration(
    distance: Tensor,
    assignment: Tensor,
    num_prototypes: int,
    *,
    alpha: float = 10.0,
    temperature: float = 0.2,
    clip: tuple[float, float] = (0.1, 0.9),
) -> Tensor:
    """How loosely samples stand about their prototype, scaled so that prototypes have this temperature in the mean.

    phi_k = sum_{n in k} |z_n - c_k| / ( N_k log(N_k + alpha) )

    Args:
        distance: [N], of every sample to its prototype; Euclidean, not squared.
        assignment: [N], the prototype of each sample; -1: none.
        num_prototypes: K.
        alpha: smooths the logarithm, so that small clusters are not overly loose.
        temperature: mean of the result.
        clip: quantiles over prototypes outside of which values are cut; (0, 1) cuts none.

    Returns:
        phi [K] > 0, float32 (float64 for float64 distances), without gradient.

    Raises:
        ValueError: shapes that do not fit, numbers outside the prototypes, distances that are negative or not finite.

    Notes:
        A cluster of one sample, of none, or whose samples all lie on its prototype says nothing of its spread: it takes
        the largest value of the others, as the authors do for single samples. Where that leaves none, all take the
        temperature.

    Source: Li, Zhou, Xiong, Hoi, "Prototypical Contrastive Learning of Unsupervised Representations", ICLR 2021; the
    quantiles are those of the authors' code.
    """
    expect_positive("alpha", alpha)
    expect_positive("temperature", temperature)
    expect(num_prototypes >= 1, "num_prototypes", "1 or more", num_prototypes)
    expect(distance.ndim == 1 and len(distance) > 0, "distance", "shape [N], N >= 1", tuple(distance.shape))
    expect(assignment.shape == distance.shape, "assignment", f"shape {tuple(distance.shape)}", tuple(assignment.shape))
    expect(bool(((assignment >= -1) & (assignment < num_prototypes)).all()), "assignment",
           f"numbers from -1 to {num_prototypes - 1}", "others")  # fmt: skip
    expect(bool(((distance >= 0) & distance.isfinite()).all()), "distance", "finite numbers >= 0", "others")
    expect(0 <= clip[0] <= clip[1] <= 1, "clip", "two numbers, 0 <= low <= high <= 1", clip)
    some = assignment >= 0
    far, cluster = distance[some].to(accumulation(distance)), assignment[some]
    size_K = torch.bincount(cluster, minlength=num_prototypes).to(far)
    sum_K = torch.zeros_like(size_K).index_add_(0, cluster, far)
    phi_K = sum_K / (size_K.clamp(min=1) * (size_K + alpha).log().clamp(min=torch.finfo(far.dtype).eps))
    known = (size_K > 1) & (phi_K > 0)
    phi_K = torch.where(known, phi_K, torch.where(known, phi_K, 0).max())
    if not bool(known.any()):
        return torch.full_like(phi_K, temperature)
    low, high = (torch.quantile(phi_K, q) for q in clip)
    phi_K = phi_K.clamp(low, high)
    return phi_K * (temperature / phi_K.mean())


def proto_nce(
    z: Tensor | Sequence[Tensor],
    prototypes: Tensor | Sequence[Tensor],
    assignment: Tensor | Sequence[Tensor],
    concentration: Tensor | Sequence[Tensor],
    *,
    reduction: str = "mean",
    tile: int | None = None,
    with_stats: bool = False,
) -> Any:
    """Each sample finds the prototype of its cluster among all prototypes, in the mean over several clusterings.

    L = 1/B sum_i 1/M sum_m -log [ exp(z_i . c_s / phi_s) / sum_k exp(z_i . c_k / phi_k) ],  s = s_m(i), cosines

    Args:
        z: [B, D], [V, B, D], or V tensors [B, D].
        prototypes: c [K, D] of one clustering, or a sequence of M such tensors, their K may differ. Whether they carry
            gradient is the caller's choice; the paper's are means of a teacher's features, and carry none.
        assignment: s [B], the prototype of each sample, or M of them; -1: none, the sample leaves that clustering.
        concentration: phi [K] > 0, the temperature of each prototype, or M of them; see `concentration`.
        reduction: "mean", "sum" or "none" ([V * B]).
        tile: see `contrast`.
        with_stats: also return Stats, of the last clustering; its anchors are those of all where every sample has a
            prototype.

    Returns:
        The loss, or (loss, Stats).

    Raises:
        ValueError: other than as many of each as there are clusterings; shapes that do not fit; a concentration that is
            not above zero; a clustering in which no sample has a prototype.

    Notes:
        Prototypes are divided by their norm and their phi before the product, so that a temperature a candidate costs
        nothing: 2 B D sum_m K_m FLOP forward. All K prototypes are candidates (the authors draw some where K is large).
        Nothing crosses samples: with the same prototypes on every process give each its own rows.

    Relations:
        The paper's whole loss adds `info_nce` of two views. With equal phi and one clustering it is `contrast` with
        `targets` among the prototypes.

    Example:
        >>> import torch
        >>> from nearfar.objectives import proto_nce
        >>> c = torch.eye(2)
        >>> round(float(proto_nce(c[:1], c, torch.tensor([0]), torch.tensor([0.5, 0.1]))), 4)  # log(1 + exp(-2))
        0.1269

    Source: as `nearfar.objectives.proto_nce.concentration`.
    """
    flat, num_views = stack("z", as_views(z), least=1)
    clusterings = list(zip(_several(prototypes), _several(assignment), _several(concentration), strict=False))
    for name, given in (("assignment", assignment), ("concentration", concentration), ("prototypes", prototypes)):
        expect(len(_several(given)) == len(clusterings) > 0, name, "one tensor a clustering", len(_several(given)))
    num = len(flat) // num_views
    losses, stats = [], Stats(0, 0, None)
    for c, s, phi in clusterings:
        expect(c.ndim == 2 and c.shape[1] == flat.shape[1], "prototypes", f"shape [K, {flat.shape[1]}]", tuple(c.shape))
        expect(tuple(s.shape) == (num,), "assignment", f"shape [{num}]", tuple(s.shape))
        expect(tuple(phi.shape) == (len(c),), "concentration", f"shape [{len(c)}]", tuple(phi.shape))
        expect(bool((phi > 0).all()), "concentration", "numbers > 0", "others")
        with no_autocast(flat.device):
            kind = accumulation(flat, c)
            scaled = _similarity.normalize(c.to(kind)) / phi.to(kind)[:, None]
        loss, stats = contrast(
            flat.to(kind), scaled, targets=s.repeat(num_views), normalize=("anchor",), temperature=1.0,
            reduction=reduction, tile=tile, with_stats=True if with_stats else "counts",
        )  # fmt: skip
        losses.append(loss)
    loss = torch.stack(losses).mean(0)
    return (loss, stats) if with_stats else loss


def _several(given: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return (given,) if isinstance(given, Tensor) else given


class ProtoNCE(nn.Module):
    """`proto_nce` as a Module; see there. It holds no prototypes: pass them.

    Args:
        tile: see `contrast`.
    """

    needs_negatives = True
    distributed = "local"
    symmetric = False

    def __init__(self, tile: int | None = None) -> None:
        super().__init__()
        self.tile = tile

    def forward(
        self,
        z: Tensor | Sequence[Tensor],
        prototypes: Tensor | Sequence[Tensor],
        assignment: Tensor | Sequence[Tensor],
        concentration: Tensor | Sequence[Tensor],
        *,
        reduction: str = "mean",
        with_stats: bool = False,
    ) -> Any:
        return proto_nce(
            z, prototypes, assignment, concentration, reduction=reduction, tile=self.tile, with_stats=with_stats
        )  # fmt: skip
