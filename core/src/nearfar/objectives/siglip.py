"""SigLIP: every pair of an anchor and a candidate is a yes-or-no question of its own.

Legend: B batch, N gathered batch, D embedding.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from nearfar._compile import eager
from nearfar._sigmoid import Pairing, cosine_softplus
from nearfar._similarity import accumulation
from nearfar._tiles import Mask, edge, no_autocast
from nearfar.checks import expect, expect_choice, expect_positive
from nearfar.objectives._shared import reduced


@eager
def siglip(
    a: Tensor,
    b: Tensor,
    *,
    scale: float | Tensor = 10.0,
    bias: float | Tensor = -10.0,
    gathered: Tensor | None = None,
    offset: int = 0,
    ids: Tensor | tuple[Tensor, Tensor] | None = None,
    reduction: str = "mean",
    tile: int | None = None,
) -> Tensor:
    """Pairwise sigmoid loss between two sets whose rows belong together, for instance images and their captions.

    L = -1/B sum_i sum_j log sigmoid(z_ij (scale cos(a_i, b_j) + bias)),  z_ij = 1 where j = i, else -1

    Args:
        a, b: [B, D] each; row i of one belongs to row i of the other.
        scale: multiplies the cosine (the inverse of a temperature); a number, or a tensor [] that gets a gradient.
        bias: added to it; a number, or a tensor [] that gets a gradient.
        gathered: b [N, D] of all processes; pass the result of a differentiable gather.
        offset: where this process's rows begin among the N gathered.
        ids: what a row stands for (a caption's text, an image's number), [B], or ([B] of a, [N] of b); pairs of equal
            ids other than a row's own are neither positive nor negative and leave the sum. None: every other row is
            a negative.
        reduction: "mean" over the B rows of a, "sum" or "none" ([B]).
        tile: side of a tile; None chooses.

    Returns:
        The loss. It sums over N candidates, so it grows with N at first; a mean over all pairs would divide the
        learning rate by N.

    Raises:
        ValueError: unequal shapes; a scale that is not positive, a bias that is not finite.

    Notes:
        Computed in float32 (float64 for float64 input). 6 B N D FLOP forward and backward, memory O((B + N) D + tile)
        whatever B: no pair needs another's sum. First derivatives only. With scale 10, bias -10 and unrelated rows
        the loss begins near 10 + (N - 1) exp(-10); for cosines of 0 the best constant bias is -log(N - 1).
        Paper and reference code agree; the code divides by the norm plus 1e-8, here rows shorter than 1e-12 count as
        zero.

    Relations:
        `clip` normalises over candidates instead. `nearfar.ring.siglip` is the same over several processes without
        ever holding all candidates.

    Example:
        >>> import torch
        >>> from nearfar.objectives import siglip
        >>> a = torch.tensor([[1.0, 0.0]])
        >>> round(float(siglip(a, a, scale=2.0, bias=-1.0)), 4)  # log(1 + exp(-(2 - 1)))
        0.3133

    Source: Zhai, Mustafa, Kolesnikov, Beyer, "Sigmoid Loss for Language Image Pre-Training", ICCV 2023.
    """
    expect_choice("reduction", reduction, ("mean", "sum", "none"))
    expect(a.ndim == 2 and a.shape == b.shape and len(a) > 0, "b", f"the shape of a, {tuple(a.shape)}, B >= 1",
           tuple(b.shape))  # fmt: skip
    expect(a.is_floating_point() and b.is_floating_point(), "a, b", "floating point", (a.dtype, b.dtype), TypeError)
    if gathered is None:
        expect(offset == 0, "offset", "0 without gathered", offset)
        gathered = b
    num, last = gathered.shape[0], gathered.shape[0] - a.shape[0]
    expect(gathered.ndim == 2 and gathered.shape[1] == a.shape[1], "gathered", f"shape [N, {a.shape[1]}]",
           tuple(gathered.shape))  # fmt: skip
    expect(0 <= offset <= last, "offset", f"0 to {last}, so that local rows are among the gathered", offset)
    rows = torch.arange(a.shape[0], device=a.device) + offset
    scale, bias = checked_number("scale", scale), checked_number("bias", bias)
    mask = Mask()
    if ids is not None:
        first, second = ids if isinstance(ids, tuple) else (ids, ids)
        expect(first.shape == (a.shape[0],) and second.shape == (num,), "ids", f"shapes [{a.shape[0]}] and [{num}]",
               (tuple(first.shape), tuple(second.shape)))  # fmt: skip
        mask = Mask(differ=((first, second),))
    kind = accumulation(a, gathered)
    with no_autocast(a.device):
        sums_B, own_B = cosine_softplus(
            a.to(kind), gathered.to(kind), scale, bias, Pairing(mask, rows, tile or edge(a.device))
        )
        loss_B = sums_B - own_B  # log(1 + exp(-l)) = log(1 + exp(l)) - l for the own pair
        if ids is not None:  # the pair itself left the sum with its equals
            loss_B = loss_B + torch.nn.functional.softplus(own_B)
    return reduced(loss_B, reduction)


def checked_number(name: str, value: float | Tensor) -> float | Tensor:
    """A checked scale or bias: a number, or a tensor []."""
    expect(not isinstance(value, Tensor) or value.numel() == 1, name, "a number or a tensor []", value)
    number = float(value.detach() if isinstance(value, Tensor) else value)
    expect(math.isfinite(number), name, "a finite number", number)
    if name == "scale":
        expect_positive(name, number)
    return value.reshape(()) if isinstance(value, Tensor) else value


class SigLIP(nn.Module):
    """`siglip` as a Module with learnt scale and bias; see there.

    Args:
        scale: where the scale starts; its logarithm is the parameter `log_scale`.
        bias: where the bias starts.
        learnable: learn both.
        tile: see `siglip`.

    Notes:
        Give neither weight decay: the trainer leaves parameters of fewer than two dimensions out of it.
    """

    needs_negatives = True
    distributed = "gather_candidates"
    symmetric = True

    def __init__(
        self, scale: float = 10.0, bias: float = -10.0, *, learnable: bool = True, tile: int | None = None
    ) -> None:
        super().__init__()
        expect_positive("scale", scale)
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)), requires_grad=learnable)
        self.bias = nn.Parameter(torch.tensor(float(bias)), requires_grad=learnable)
        self.tile = tile

    @property
    def scale(self) -> Tensor:
        """The scale in use."""
        return self.log_scale.exp()

    def forward(self, a: Tensor, b: Tensor, *, gathered: Tensor | None = None, offset: int = 0, ids: Any = None) -> Any:
        return siglip(a, b, scale=self.scale, bias=self.bias, gathered=gathered, offset=offset, ids=ids, tile=self.tile)
