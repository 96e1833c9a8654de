"""Hyperbolic contrast and entailment: embeddings on the hyperboloid, general ones near its root.

Legend: B batch, N gathered batch, D embedding.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from nearfar._compile import eager
from nearfar._similarity import Lorentz
from nearfar._tiles import no_autocast
from nearfar.checks import expect, expect_choice, expect_positive
from nearfar.contrast import Stats, contrast
from nearfar.lorentz import Curvature, exp_map, exterior_angle, half_aperture
from nearfar.objectives._shared import Temperature, reduced


def entailment(
    general: Tensor,
    specific: Tensor,
    *,
    curvature: Curvature = 1.0,
    min_radius: float = 0.1,
    reduction: str = "mean",
) -> Tensor:
    """How far each specific point lies outside the cone of its general one, for instance an image of its caption.

    L = 1/B sum_i max(0, ext(x_i, y_i) - aper(x_i))

    Args:
        general, specific: x, y [B, D], space components.
        curvature: c > 0; may carry gradient.
        min_radius: K of `half_aperture`.
        reduction: "mean", "sum" or "none" ([B]).

    Returns:
        The loss.

    Raises:
        ValueError: unequal shapes; a curvature or radius that is not positive.

    Notes:
        O(B D), in float32 (float64 for float64 input), finite with its gradient for all points, see `nearfar.lorentz`.

    Example:
        >>> import torch
        >>> from nearfar.objectives import entailment
        >>> x = torch.tensor([[1.0, 0.0]])
        >>> round(float(entailment(x, torch.tensor([[0.0, 1.0]]))), 4)
        2.3248

    Source: Desai, Nickel, Rajpurohit, Johnson, Vedantam, "Hyperbolic Image-Text Representations", ICML 2023; cones:
    Ganea, Becigneul, Hofmann, "Hyperbolic Entailment Cones for Learning Hierarchical Embeddings", ICML 2018.
    """
    expect_choice("reduction", reduction, ("mean", "sum", "none"))
    expect(general.shape == specific.shape and general.ndim == 2, "specific",
           f"the shape of general, [B, D], {tuple(general.shape)}", tuple(specific.shape))  # fmt: skip
    with no_autocast(general.device):
        angle = exterior_angle(general, specific, curvature)
        loss_B = torch.relu(angle - half_aperture(general, curvature, min_radius=min_radius))
    return reduced(loss_B, reduction)


@eager
def lorentz_clip(
    a: Tensor,
    b: Tensor,
    *,
    curvature: Curvature = 1.0,
    temperature: float | Tensor = 0.07,
    entail: float = 0.2,
    min_radius: float = 0.1,
    gathered: tuple[Tensor, Tensor] | None = None,
    offset: int = 0,
    tile: int | None = None,
    with_stats: bool = False,
) -> Any:
    """CLIP's contrast with minus the hyperbolic distance, and entailment of each a by its b.

    L = 1/(2B) sum_i [ -log softmax_j(-d(a_i, b_j) / t)_i - log softmax_j(-d(b_i, a_j) / t)_i ] + g entailment(b, a)

    Args:
        a: specific points [B, D], space components (see `exp_map`), for instance of images.
        b: general points [B, D], of their captions.
        curvature: c > 0; a tensor [] gets a gradient.
        temperature: t; a number, or a tensor [] that gets a gradient.
        entail: g, 0 or above.
        min_radius: K of `half_aperture`.
        gathered: (a, b) [N, D] each of all processes; pass the results of a differentiable gather.
        offset: where this process's rows begin among the N gathered.
        tile: see `contrast`.
        with_stats: also return Stats, whose anchors are those of both directions.

    Returns:
        The loss, or (loss, Stats).

    Raises:
        ValueError: unequal shapes; a curvature or temperature that is not positive.

    Notes:
        In strips of anchors, which the backward computes again: 16 B N D FLOP, memory O(B D + strip).

    Relations:
        As the curvature goes to 0 the distance becomes Euclidean. `nearfar.contrast.Lorentz` is the similarity alone.

    Example:
        >>> import torch
        >>> from nearfar.objectives import lorentz_clip
        >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> round(float(lorentz_clip(x, -x, temperature=1.0, entail=0.0)), 4)  # log(1 + exp(acosh(3) - acosh(2)))
        0.9407

    Source: Desai, Nickel, Rajpurohit, Johnson, Vedantam, "Hyperbolic Image-Text Representations", ICML 2023.
    """
    expect(a.ndim == 2 and a.shape == b.shape, "b", f"the shape of a, {tuple(a.shape)}", tuple(b.shape))
    expect(entail >= 0, "entail", "a number of 0 or more", entail)
    rows = torch.arange(len(a), device=a.device)
    shared: dict[str, Any] = {"temperature": temperature, "tile": tile, "with_stats": with_stats or "counts"}
    shared["similarity"] = Lorentz(curvature)
    if gathered is None:
        expect(offset == 0, "offset", "0 without gathered", offset)
        loss, stats = contrast(a, b, targets=rows, directions="both", **shared)
    else:
        first, one = contrast(a, gathered[1], targets=rows + offset, **shared)
        second, two = contrast(b, gathered[0], targets=rows + offset, **shared)
        hits = None if one.accuracy is None or two.accuracy is None else (one.accuracy + two.accuracy) / 2
        loss, stats = (first + second) / 2, Stats(2 * len(a), 0, hits)
    if entail:
        loss = loss + entail * entailment(b, a, curvature=curvature, min_radius=min_radius)
    return (loss, stats) if with_stats else loss


class LorentzCLIP(nn.Module):
    """`lorentz_clip` of tangent vectors as a Module with learnt curvature; see there.

    Args:
        temperature: fixed, or where a learnt one starts.
        learnable_temperature: learn it; it stays at 0.01 or above.
        curvature: c, fixed, or where a learnt one starts; its logarithm is then the parameter `log_curvature`.
        learnable_curvature: learn it; it stays within a tenth and ten times its start.
        entail: weight of the entailment.
        min_radius: K of `half_aperture`.
        tile: see `contrast`.

    Notes:
        Scale each tower's vectors by a learnt factor that starts at 1/sqrt(D), so that norms begin near 1.
    """

    needs_negatives = True
    distributed = "gather_candidates"
    symmetric = False

    def __init__(
        self,
        temperature: float = 0.07,
        *,
        learnable_temperature: bool = False,
        curvature: float = 1.0,
        learnable_curvature: bool = True,
        entail: float = 0.2,
        min_radius: float = 0.1,
        tile: int | None = None,
    ) -> None:
        super().__init__()
        expect_positive("curvature", curvature)
        expect(entail >= 0, "entail", "a number of 0 or more", entail)
        self.tau = Temperature(temperature, learnable_temperature)
        self.log_curvature = nn.Parameter(torch.tensor(math.log(curvature)), requires_grad=learnable_curvature)
        self.start = math.log(curvature)
        self.options: dict[str, Any] = {"entail": entail, "min_radius": min_radius, "tile": tile}

    @property
    def temperature(self) -> float | Tensor:
        """The temperature in use."""
        return self.tau()

    @property
    def curvature(self) -> Tensor:
        """The curvature in use."""
        return _Between.apply(self.log_curvature, self.start - math.log(10), self.start + math.log(10)).exp()

    def lift(self, v: Tensor) -> Tensor:
        """The points, by their space components, of tangent vectors [..., D]."""
        with no_autocast(v.device):
            return exp_map(v, self.curvature)

    def forward(self, a: Tensor, b: Tensor, *, gathered: tuple[Tensor, Tensor] | None = None, **options: Any) -> Any:
        """The loss of tangent vectors [B, D], gathered ones too; further options as `lorentz_clip`."""
        points = None if gathered is None else (self.lift(gathered[0]), self.lift(gathered[1]))
        return lorentz_clip(
            self.lift(a), self.lift(b), curvature=self.curvature, temperature=self.tau(), gathered=points,
            **self.options, **options,
        )  # fmt: skip


class _Between(Function):
    """x held within bounds, whose gradient leads back from outside, where that of clamp is zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bounds = low, high
        return x.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        low, high = ctx.bounds
        outwards = ((x < low) & (grad > 0)) | ((x > high) & (grad < 0))
        return torch.where(outwards, 0.0, grad), None, None
