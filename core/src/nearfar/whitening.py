"""Whitening of features by the statistics of a batch, in groups of channels.

Legend: N rows, M rows that statistics are taken of, D channels, G groups of C = D / G channels.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from nearfar import distributed
from nearfar._compile import eager
from nearfar._tiles import no_autocast
from nearfar.checks import expect, expect_choice

ENGINES = ("eigh", "cholesky", "newton")


@eager
def group_whiten(
    x: Float[Tensor, "N D"],
    groups: int = 1,
    *,
    order: Tensor | None = None,
    rows: Tensor | None = None,
    engine: str = "eigh",
    eps: float = 1e-5,
    num_steps: int = 5,
) -> Float[Tensor, "N D"]:
    """Channels made uncorrelated with variance 1 within each of several groups.

    With the rows X_g of a group's channels, their mean m_g and their biased covariance C_g:

    Y_g = (X_g - m_g) W_g,  W_g' C_g W_g = I

    Args:
        x: [N, D].
        groups: G, a divisor of D; 1 whitens all channels together, D standardises each. 0: the smallest divisor from
            2 D / M on, so that a group has at most half as many channels as there are rows.
        order: a permutation [D] of the channels, from which groups are cut; every channel of the result stands where
            it stood. None: as they stand.
        rows: [M, D] of which mean and covariance are taken; None: x itself.
        engine: "eigh": W = C^(-1/2) (ZCA), with eigenvalues below eps lifted to eps; "cholesky": W = L^-T of
            C + eps I = L L', which depends on the order within a group; "newton": num_steps of Newton and Schulz
            towards (C + eps I)^(-1/2), without a factorisation.
        eps: see engine; above 0.
        num_steps: of "newton"; with few of them small eigenvalues stay small.

    Returns:
        [N, D], float32 (float64 for float64 input).

    Raises:
        ValueError: fewer than two rows; groups that do not divide D; an order that is no permutation.

    Notes:
        In float64 within, whatever the surrounding autocast. Gradients flow through mean, covariance and W; that of
        "eigh" is the one of a function of a matrix and has no pole where eigenvalues are equal, first derivatives
        only. With no more rows than channels of a group the whitened rows say little of the data: any M rows become a
        simplex. 2 (N + M) D C + O(D C^2) FLOP.

    Relations:
        `objectives.whiten` is one group with a share of the identity instead of a floor, and n - 1.

    Example:
        >>> import torch
        >>> x = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> round(float(group_whiten(x)[0, 0]), 4)  # sqrt 2: two of the four rows make all of the variance
        1.4142

    Source: Huang, Zhou, Zhu, Liu, Shao, "Iterative Normalization: Beyond Standardization towards Efficient Whitening",
    CVPR 2019 (newton); Hua et al., "On Feature Decorrelation in Self-Supervised Learning", ICCV 2021 (order).
    """
    source = x if rows is None else rows
    _check(x, source, engine, eps, num_steps)
    num, dim = source.shape
    groups = groups or group_count(dim, num)
    expect(groups >= 1 and dim % groups == 0, "groups", f"a divisor of the {dim} channels, or 0", groups)
    with no_autocast(x.device):
        wide, among = x.double(), source.double()
        if order is not None:
            order = _permutation(order, dim).to(x.device)
            wide, among = wide[:, order], among[:, order]
        mean_D = among.mean(0)
        centred_GMC = (among - mean_D).unflatten(1, (groups, -1)).transpose(0, 1)
        covariance_GCC = centred_GMC.mT @ centred_GMC / num
        own_GNC = centred_GMC if rows is None else (wide - mean_D).unflatten(1, (groups, -1)).transpose(0, 1)
        y_ND = _apply(own_GNC, covariance_GCC, engine, eps, num_steps).transpose(0, 1).flatten(1)
        if order is not None:
            y_ND = y_ND[:, order.argsort()]
        return y_ND.to(x.dtype if x.dtype == torch.float64 else torch.float32)


def group_count(dim: int, num: int) -> int:
    """The smallest number of groups that divides `dim` and leaves a group at most half as many channels as rows."""
    least = min(dim, max(1, math.ceil(2 * dim / num)))
    return next(count for count in range(least, dim + 1) if dim % count == 0)


def inverse_root(matrix: Tensor, floor: float = 0.0) -> Tensor:
    """C^(-1/2) of symmetric matrices [..., D, D], with eigenvalues below `floor` lifted to it.

    Raises:
        ValueError: an eigenvalue of 0 or less, without a floor.
    """
    return _InverseRoot.apply(matrix, floor)  # type: ignore[return-value]


def _check(x: Tensor, rows: Tensor, engine: str, eps: float, num_steps: int) -> None:
    expect_choice("engine", engine, ENGINES)
    expect(math.isfinite(eps) and eps > 0, "eps", "a finite number > 0", eps)
    expect(num_steps >= 1, "num_steps", "1 or more", num_steps)
    expect(x.is_floating_point(), "x", "floating point", x.dtype, TypeError)
    expect(x.ndim == 2, "x", "shape [N, D]", tuple(x.shape))
    fits = rows.ndim == 2 and rows.shape[1] == x.shape[1]
    expect(fits, "rows", f"shape [M, {x.shape[1]}]", tuple(rows.shape))
    expect(len(rows) >= 2, "x", "2 or more rows, of which statistics are taken", len(rows))


def _permutation(order: Tensor, dim: int) -> Tensor:
    whole = not order.is_floating_point() and order.shape == (dim,)
    fits = whole and torch.equal(order.sort().values, torch.arange(dim, device=order.device))
    expect(fits, "order", f"a permutation of {dim} channels", tuple(order.shape))
    return order


def _apply(x_GNC: Tensor, covariance_GCC: Tensor, engine: str, eps: float, num_steps: int) -> Tensor:
    """Rows times W of each group."""
    if engine == "eigh":
        return x_GNC @ inverse_root(covariance_GCC, eps)
    eye = torch.eye(covariance_GCC.shape[-1], dtype=covariance_GCC.dtype, device=covariance_GCC.device)
    lifted = covariance_GCC + eps * eye
    if engine == "cholesky":
        factor = torch.linalg.cholesky(lifted)
        return torch.linalg.solve_triangular(factor, x_GNC.mT, upper=False).mT
    trace = lifted.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    # the coupled form: rounding errors stay, where those of one iterate alone grow
    root, inverse = lifted / trace, eye.expand_as(lifted)
    for _ in range(num_steps):
        step = 1.5 * eye - 0.5 * inverse @ root
        root, inverse = root @ step, step @ inverse
    return x_GNC @ inverse * trace.rsqrt()


class _InverseRoot(Function):
    """f(C) = max(C, floor)^(-1/2) by eigenvalues."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, floor: float) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        if not floor:
            least = float(values.amin())
            expect(
                least > 0, "views", "a covariance with an inverse (or eps > 0)", f"a smallest eigenvalue of {least:.3g}"
            )
        ctx.save_for_backward(values, vectors)
        ctx.floor = floor
        return (vectors * values.clamp_min(floor).rsqrt()[..., None, :]) @ vectors.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        values, vectors = ctx.saved_tensors
        lifted = values.clamp_min(ctx.floor)
        root = lifted.sqrt()
        # (f(a) - f(b)) / (a - b) of f = x^(-1/2), which is smooth where a = b
        slope = -1 / (root[..., :, None] * root[..., None, :] * (root[..., :, None] + root[..., None, :]))
        # and how far the lifting moves a and b towards each other: 1 above the floor, 0 below it
        apart = values[..., :, None] - values[..., None, :]
        kept = (values > ctx.floor).to(values.dtype)
        moved = (lifted[..., :, None] - lifted[..., None, :]) / torch.where(apart == 0, 1.0, apart)
        slope = slope * torch.where(apart == 0, kept[..., :, None] * kept[..., None, :], moved)
        inner = vectors.mT @ ((grad + grad.mT) / 2) @ vectors
        return vectors @ (slope * inner) @ vectors.mT, None


class GroupWhitening(nn.Module):
    """`group_whiten` as a Module; see there.

    In evaluation mode it returns its input: statistics of an evaluation batch would make a row depend on its company.

    Args:
        groups: G; 0 chooses by the number of rows.
        engine: "eigh", "cholesky" or "newton".
        eps: floor, or what is added to the diagonal.
        num_steps: of "newton".
        synchronised: take statistics of the rows of all processes; else of this one's.
    """

    def __init__(
        self,
        groups: int = 0,
        *,
        engine: str = "eigh",
        eps: float = 1e-5,
        num_steps: int = 5,
        synchronised: bool = True,
    ) -> None:
        super().__init__()
        expect_choice("engine", engine, ENGINES)
        expect(groups >= 0, "groups", "0 or more", groups)
        self.groups, self.engine, self.eps = groups, engine, eps
        self.num_steps, self.synchronised = num_steps, synchronised

    def forward(self, x: Tensor, order: Tensor | None = None, rows: Tensor | None = None) -> Tensor:
        """Whitened rows [N, D].

        Args:
            x: [N, D].
            order: a permutation of the channels; draw a new one for every call where groups are to be shuffled.
            rows: [M, D] of this process, of which statistics are taken; None: x.
        """
        if not self.training:
            return x
        if self.synchronised and distributed.world() > 1:
            rows = distributed.gather(x if rows is None else rows)
        return group_whiten(
            x, self.groups, order=order, rows=rows, engine=self.engine, eps=self.eps, num_steps=self.num_steps
        )
