"""Kernel InfoNCE: contrast under exponential kernels of the distance (Gaussian, Laplacian, mixtures of two).

Legend: B batch, N gathered batch, K queue, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nearfar._compile import eager
from nearfar._similarity import Similarity, accumulation, normalize
from nearfar._tiles import no_autocast
from nearfar.checks import expect, expect_choice, expect_positive
from nearfar.contrast import Stats, contrast
from nearfar.objectives._shared import Place, Temperature, gather_views, stack

MODES = ("loss_sum", "kernel_sum", "concat")


def _powers(a: Tensor, c: Tensor, gammas: Sequence[float], norm: float) -> list[Tensor]:
    """|a_i - c_j|^gamma [B, N] of rows [B, D] and [N, D] for each gamma in (0, 2].

    Rows that are the same up to rounding have distance 0 and no gradient below gamma = 2: the power's derivative is
    infinite there, and a row's distance to itself would be the first to show it.
    """
    if norm == 2:
        length = a.square().sum(1, keepdim=True) + c.square().sum(1)
        base, unit = length - 2 * a @ c.t(), 2.0
        if all(gamma == 2 for gamma in gammas):
            return [base] * len(gammas)
        same = base.detach() <= 16 * torch.finfo(base.dtype).eps * length.detach()
    else:
        base, unit = torch.cdist(a, c, p=norm), 1.0
        same = base.detach() == 0
    safe = base.masked_fill(same, 1.0)
    return [base if gamma == unit == 2 else safe.pow(gamma / unit).masked_fill(same, 0.0) for gamma in gammas]


@dataclass(frozen=True)
class ExponentialKernel:
    """log exp(-|a - c|^gamma), a similarity for `contrast`, whose temperature is the kernel's.

    Args:
        gamma: exponent in (0, 2]; 2 is the Gaussian kernel, 1 the Laplacian.
        norm: p >= 1 of the distance.
    """

    gamma: float = 1.0
    norm: float = 2.0

    def __post_init__(self) -> None:
        expect(0 < self.gamma <= 2, "gamma", "a number in (0, 2]", self.gamma)
        expect(self.norm >= 1, "norm", "1 or more", self.norm)

    def tile(self, a: Tensor, c: Tensor) -> Tensor:
        return -_powers(a, c, (self.gamma,), self.norm)[0]


@dataclass(frozen=True)
class KernelSum:
    """log(m exp(-|a - c|^gamma / t_1) + (1 - m) exp(-|a - c|^2 / t_2)), a similarity for `contrast` at temperature 1.

    Args:
        gamma: exponent of the first kernel in (0, 2].
        mixing: m in (0, 1).
        temperature: t_1.
        gaussian_temperature: t_2.
        norm: p >= 1 of the distance.
    """

    gamma: float
    mixing: float
    temperature: float | Tensor
    gaussian_temperature: float | Tensor
    norm: float = 2.0

    def tile(self, a: Tensor, c: Tensor) -> Tensor:
        first, gaussian = _powers(a, c, (self.gamma, 2.0), self.norm)
        return torch.logaddexp(
            math.log(self.mixing) - first / self.temperature,
            math.log1p(-self.mixing) - gaussian / self.gaussian_temperature,
        )


@eager
def kernel_info_nce(
    *views: Any,
    gamma: float = 2.0,
    temperature: float | Tensor = 0.1,
    norm: float = 2.0,
    queue: Tensor | None = None,
    gathered: Tensor | Sequence[Tensor] | None = None,
    offset: int = 0,
    reduction: str = "mean",
    tile: int | None = None,
    with_stats: bool = False,
) -> Any:
    """InfoNCE of two views under one exponential kernel.

    With unit rows u and k(a, b) = exp(-|a - b|^gamma / t):

    L = -1/(2B) sum_i log( k(u_i, u_p(i)) / sum_{j != i} k(u_i, u_j) )

    Args:
        *views: two views [B, D], or one tensor [2, B, D].
        gamma: exponent in (0, 2]; 2 is the Gaussian kernel, 1 the Laplacian.
        temperature: t; a number, or a tensor [] that gets a gradient.
        norm: p >= 1 of the distance.
        queue: [K, D]; the first view alone is then the anchor, and the denominator is the queue alone, without the
            positive, as in the authors' MoCo code.
        gathered: both views [2, N, D] of all processes; pass the result of a differentiable gather.
        offset: where this process's samples begin among the N gathered.
        reduction: "mean", "sum" or "none" ([2 B], view after view; [B] with a queue).
        tile: see `contrast`.
        with_stats: also return Stats.

    Returns:
        The loss, or (loss, Stats).

    Raises:
        ValueError: gamma outside (0, 2], other than two views, queue beside gathered.

    Notes:
        gamma = 2 with the 2-norm costs what `nt_xent` costs, the others what `contrast` in strips costs: 32 B^2 D FLOP
        and memory O(B D + strip). Pairs that coincide get no gradient from each other below gamma = 2. On the sphere of
        radius r, the authors' sqrt(mu), the loss is that at temperature t / r^gamma.

    Relations:
        gamma = 2 is `nt_xent` at temperature t / 2, since |a - b|^2 = 2 - 2 cos.

    Example:
        >>> import torch
        >>> from nearfar.objectives import kernel_info_nce
        >>> z = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> round(float(kernel_info_nce(z, z, temperature=1.0)), 4)  # log(1 + 2 exp(-2))
        0.2395

    Source: Tan, Zhang, Yang, Yuan, "Contrastive Learning Is Spectral Clustering On Similarity Graph", ICLR 2024.
    """
    rows = _prepare(views, queue, gathered, offset)
    with no_autocast(rows.unit.device):
        loss, stats = _single(rows, gamma, temperature, norm, reduction, tile)
    return (loss, stats) if with_stats else loss


@eager
def kernel_mixture(
    *views: Any,
    mode: str = "loss_sum",
    gamma: float = 1.0,
    mixing: float = 0.5,
    temperature: float | Tensor = 0.1,
    gaussian_temperature: float | Tensor | None = None,
    norm: float = 2.0,
    queue: Tensor | None = None,
    gathered: Tensor | Sequence[Tensor] | None = None,
    offset: int = 0,
    reduction: str = "mean",
    tile: int | None = None,
    with_stats: bool = False,
) -> Any:
    """InfoNCE of two views under an exponential kernel and a Gaussian one.

    With L(gamma, t) as in `kernel_info_nce`:

        loss_sum    m L(gamma, t_1) + (1 - m) L(2, t_2)
        kernel_sum  one InfoNCE with k = m exp(-|a - b|^gamma / t_1) + (1 - m) exp(-|a - b|^2 / t_2)
        concat      loss_sum whose first term sees the first half of every unit row, and the second the second half

    Args:
        *views: two views [B, D], or one tensor [2, B, D].
        mode: "loss_sum", which the authors' code trains; "kernel_sum", of which their text speaks; or "concat".
        gamma: exponent of the first kernel in (0, 2].
        mixing: m in [0, 1], named lambda in the paper, which searches it; 0.2 in its MoCo code.
        temperature: t_1; a number, or a tensor [] that gets a gradient.
        gaussian_temperature: t_2; None: t_1, as the authors' SimCLR code. Their MoCo code has 0.1 and 0.3.
        norm: p >= 1 of the distance.
        queue: [K, D]; as in `kernel_info_nce`.
        gathered: both views [2, N, D] of all processes; pass the result of a differentiable gather.
        offset: where this process's samples begin among the N gathered.
        reduction: "mean", "sum" or "none" ([2 B], view after view; [B] with a queue).
        tile: see `contrast`.
        with_stats: also return Stats.

    Returns:
        The loss, or (loss, Stats).

    Raises:
        ValueError: gamma outside (0, 2], mixing outside [0, 1], a temperature not above zero, an odd D with "concat".

    Notes:
        Rows are of unit length as a whole, so that halves of "concat" are shorter. Cost as `kernel_info_nce`, for each
        kernel. In logarithms throughout; the authors' code clamps the sum of kernels at 1e-6 instead.

    Relations:
        mixing 1 or 0 is `kernel_info_nce` with gamma or with 2 (of a half with "concat").

    Example:
        >>> import torch
        >>> from nearfar.objectives import kernel_mixture
        >>> round(float(kernel_mixture(torch.ones(2, 3, 4), mode="kernel_sum")), 4)  # log(2 * 3 - 1)
        1.6094

    Source: as `kernel_info_nce`.
    """
    expect_choice("mode", mode, MODES)
    expect_choice("reduction", reduction, ("mean", "sum", "none"))
    expect(0 <= mixing <= 1, "mixing", "a number in [0, 1]", mixing)
    ExponentialKernel(gamma, norm)  # checks both
    second = temperature if gaussian_temperature is None else gaussian_temperature
    for name, value in (("temperature", temperature), ("gaussian_temperature", second)):
        expect_positive(name, float(value.detach() if isinstance(value, Tensor) else value))
    rows = _prepare(views, queue, gathered, offset)
    with no_autocast(rows.unit.device):
        if mode == "kernel_sum" and 0 < mixing < 1:
            kind = rows.unit.dtype
            first, second = (x.to(kind) if isinstance(x, Tensor) else x for x in (temperature, second))
            kernel = KernelSum(gamma, mixing, first, second, norm)
            loss, stats = rows.contrast(similarity=kernel, temperature=1.0, reduction=reduction, tile=tile)
        else:
            parts = rows.halves() if mode == "concat" else (rows, rows)
            terms, stats = [], Stats(0, 0, None)
            for share, part, power, t in zip(
                (mixing, 1 - mixing), parts, (gamma, 2.0), (temperature, second), strict=True
            ):  # fmt: skip
                if share > 0:
                    term, stats = _single(part, power, t, norm, reduction, tile)
                    terms.append(share * term)
            loss = sum(terms[1:], terms[0])
    return (loss, stats) if with_stats else loss


@dataclass(frozen=True)
class _Rows:
    """Anchors and candidates, of unit length as a whole, and which of them are a sample's two views."""

    unit: Tensor
    every: Tensor | None
    queue: Tensor | None
    place: Place
    whole: bool = True
    """of unit length, not a half of it"""

    def halves(self) -> tuple[_Rows, _Rows]:
        dim = self.unit.shape[1]
        expect(dim % 2 == 0, "views", "an even D with mode='concat'", dim)

        def cut(part: slice) -> _Rows:
            every, queue = (None if x is None else x[:, part] for x in (self.every, self.queue))
            return _Rows(self.unit[:, part], every, queue, self.place, whole=False)

        return cut(slice(0, dim // 2)), cut(slice(dim // 2, dim))

    def contrast(self, **options: Any) -> tuple[Tensor, Stats]:
        options |= {"with_stats": "counts"}
        if self.queue is not None:  # each anchor meets its own key and the queue
            num = self.place.num_local
            options |= {"extra": (self.queue,), "denominator": "negatives"}
            return contrast(self.unit[:num], own_positive=self.unit[num:].unsqueeze(1), **options)
        if self.every is None:
            return contrast(self.unit, targets=self.place.partner(), directions="self", **options)
        return contrast(self.unit, self.every, targets=self.place.partner(), own=self.place.own(), **options)


def _prepare(views: tuple[Any, ...], queue: Tensor | None, gathered: Any, offset: int) -> _Rows:
    z, num_views = stack("views", views[0] if len(views) == 1 else views)
    expect(num_views == 2, "views", "2", num_views)
    expect(z.is_floating_point(), "views", "floating point", z.dtype, TypeError)
    expect(gathered is None or queue is None, "queue", "none beside gathered", "a tensor")
    kind = accumulation(z)
    every = None if gathered is None else normalize(gather_views(gathered, 2).to(kind))
    num_all = len(z if every is None else every) // 2
    place = Place(2, len(z) // 2, num_all, offset, z.device)
    return _Rows(normalize(z.to(kind)), every, None if queue is None else normalize(queue.to(kind)), place)


def _single(
    rows: _Rows, gamma: float, temperature: float | Tensor, norm: float, reduction: str, tile: int | None
) -> tuple[Tensor, Stats]:  # fmt: skip
    kernel: Similarity = ExponentialKernel(gamma, norm)
    options: dict[str, Any] = {"reduction": reduction, "tile": tile}
    if gamma == 2 and norm == 2 and rows.whole:
        return rows.contrast(similarity="cosine", temperature=temperature / 2, **options)
    return rows.contrast(similarity=kernel, temperature=temperature, **options)


class KernelInfoNCE(nn.Module):
    """`kernel_info_nce` as a Module; see there.

    Args:
        gamma: exponent of the kernel.
        temperature: fixed, or where a learnt one starts.
        learnable_temperature: learn it.
        norm: p of the distance.
        tile: see `contrast`.
    """

    needs_negatives = True
    distributed = "gather_candidates"
    symmetric = True

    def __init__(
        self, gamma: float = 2.0, temperature: float = 0.1, *, learnable_temperature: bool = False, norm: float = 2.0,
        tile: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        ExponentialKernel(gamma, norm)  # checks both
        self.tau = Temperature(temperature, learnable_temperature)
        self.gamma, self.norm, self.tile = gamma, norm, tile

    def forward(self, *views: Any, **options: Any) -> Any:
        """The loss of two views; further options as `kernel_info_nce`."""
        return kernel_info_nce(
            *views, gamma=self.gamma, temperature=self.tau(), norm=self.norm, tile=self.tile, **options
        )  # fmt: skip


class KernelMixture(nn.Module):
    """`kernel_mixture` as a Module; see there.

    Args:
        mode: "loss_sum", "kernel_sum" or "concat".
        gamma: exponent of the first kernel.
        mixing: share of the first kernel.
        temperature: of the first kernel; fixed, or where a learnt one starts.
        gaussian_temperature: of the Gaussian; None: the same number.
        learnable_temperature: learn both, each on its own.
        norm: p of the distance.
        tile: see `contrast`.
    """

    needs_negatives = True
    distributed = "gather_candidates"
    symmetric = True

    def __init__(
        self, mode: str = "loss_sum", gamma: float = 1.0, mixing: float = 0.5, temperature: float = 0.1,
        gaussian_temperature: float | None = None, *, learnable_temperature: bool = False, norm: float = 2.0,
        tile: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        expect_choice("mode", mode, MODES)
        expect(0 <= mixing <= 1, "mixing", "a number in [0, 1]", mixing)
        ExponentialKernel(gamma, norm)  # checks both
        second = temperature if gaussian_temperature is None else gaussian_temperature
        self.tau = Temperature(temperature, learnable_temperature)
        self.gaussian_tau = Temperature(second, learnable_temperature)
        self.mode, self.gamma, self.mixing, self.norm, self.tile = mode, gamma, mixing, norm, tile

    def forward(self, *views: Any, **options: Any) -> Any:
        """The loss of two views; further options as `kernel_mixture`."""
        return kernel_mixture(
            *views, mode=self.mode, gamma=self.gamma, mixing=self.mixing, temperature=self.tau(),
            gaussian_temperature=self.gaussian_tau(), norm=self.norm, tile=self.tile, **options,
        )  # fmt: skip
