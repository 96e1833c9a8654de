"""W-MSE: views are whitened, so that they cannot collapse, and then drawn together.

Legend: V views, N rows of all processes, D embedding, I rounds, S sub-batches of n rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nearfar._compile import eager
from nearfar._similarity import normalize
from nearfar._tiles import no_autocast
from nearfar.checks import expect, expect_choice
from nearfar.objectives._moments import whole_views
from nearfar.whitening import inverse_root


class WhiteningStats(NamedTuple):
    """How well the covariances could be inverted.

    Args:
        condition: largest over smallest eigenvalue of the worst shrunk covariance; precision is lost with its root.
        num_blocks: covariances, over rounds, views and sub-batches.
    """

    condition: Tensor
    num_blocks: int


@eager
def whiten(x: Tensor, *, form: str = "cholesky", eps: float = 1e-3) -> Tensor:
    """Rows made uncorrelated with variance 1: z_i = W (x_i - mean), W' W = C^-1.

    C = (1 - eps) Cov(x) + eps I,  Cov with n - 1

    Args:
        x: [..., n, D], n > D.
        form: "cholesky", W = L^-1 of C = L L', which depends on the order of features; "zca", W = C^(-1/2), the
            whitening nearest to x, which turns with it.
        eps: share of the identity, in [0, 1).

    Returns:
        [..., n, D], in float32 (float64 for float64 input).

    Raises:
        ValueError: not more rows than features, an unknown form, eps outside [0, 1), a covariance without inverse.

    Notes:
        Covariance and factor in float64. 4 n D^2 + O(D^3) FLOP. First derivatives only with "zca", whose gradient is
        that of the function of a matrix and has no pole where eigenvalues are equal.

    Source: Kessy, Lewin, Strimmer, "Optimal Whitening and Decorrelation", The American Statistician 2018.
    """
    expect_choice("form", form, ("cholesky", "zca"))
    expect(x.ndim >= 2 and x.shape[-2] > x.shape[-1], "x", "shape [..., n, D], more rows than features",
           tuple(x.shape))  # fmt: skip
    with no_autocast(x.device):
        return _whiten(x, form, eps)[0]


def _whiten(x: Tensor, form: str, eps: float) -> tuple[Tensor, Tensor]:
    """Whitened rows and the shrunk covariances."""
    expect(0 <= eps < 1, "eps", "a number in [0, 1)", eps)
    wide = x.double()
    wide = wide - wide.mean(-2, keepdim=True)
    eye = torch.eye(x.shape[-1], dtype=wide.dtype, device=x.device)
    covariance = (1 - eps) * (wide.mT @ wide) / (x.shape[-2] - 1) + eps * eye
    if form == "zca":
        whitened = wide @ inverse_root(covariance)
    else:
        factor, bad = torch.linalg.cholesky_ex(covariance)
        expect(not bool(bad.any()), "views", "a covariance with an inverse (or eps > 0)", f"eps {eps:g}")
        whitened = torch.linalg.solve_triangular(factor, wide.mT, upper=False).mT
    return whitened.to(x.dtype if x.dtype == torch.float64 else torch.float32), covariance


@eager
def wmse(
    *views: Any,
    size: int = 0,
    order: Tensor | None = None,
    form: str = "cholesky",
    eps: float = 1e-3,
    with_stats: bool = False,
) -> Any:
    """Mean squared error between whitened views: what is spread in all directions cannot collapse.

    With each sub-batch of each view whitened by itself, w = W (z - mean):

    L = mean over rounds, pairs v < w and samples of 2 - 2 cos(w_vi, w_wi)

    Args:
        *views: z0 [N, D], z1 [N, D], ...; or one tensor [V, N, D]. Over several processes the rows of all of them, from
            a differentiable gather.
        size: rows of a sub-batch, the same samples in all views; 0: all at once. Where it does not divide N, some have
            more rows, so that none is left over.
        order: integers [I, N], for each round an order of the samples from which sub-batches are cut, equal on every
            process; None: one round in the order given.
        form: "cholesky" or "zca", see `whiten`.
        eps: share of the identity in each covariance, in [0, 1).
        with_stats: also return WhiteningStats.

    Returns:
        The loss, float32 (float64 for float64 input), from 0 to 4, or (loss, WhiteningStats).

    Raises:
        ValueError: sub-batches of not more rows than features, whose covariance has no inverse; an order that is no
            permutation; one view alone; eps outside [0, 1).

    Notes:
        Two to four times D rows make a good sub-batch: with few the whitening fits noise, and with n = D + 1 rows any
        two views become alike up to a rotation. Several rounds smooth over the choice. O(I V (N D^2 + (N / n) D^3)),
        covariances in float64. Every process computes the whole loss: give its term the same count everywhere.

    Relations:
        `regression` of embeddings whitened by `whiten`.

    Example:
        >>> import torch
        >>> from nearfar.objectives import wmse
        >>> z = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
        >>> round(abs(float(wmse(z, 5 * z + 1, eps=0.0))), 4)  # scale and shift are taken out
        0.0

    Source: Ermolov, Siarohin, Sangineto, Sebe, "Whitening for Self-Supervised Representation Learning", ICML 2021.
    """
    expect_choice("form", form, ("cholesky", "zca"))
    z = whole_views(views)
    num, dim = z.shape[1:]
    expect(size >= 0, "size", "0 or more", size)
    sizes = _sizes(num, size)
    expect(min(sizes) > dim, "size", f"more rows in a sub-batch than the {dim} features", min(sizes))
    with no_autocast(z.device):
        losses, conditions = [], []
        for rows in _orders(order, num):
            for part in _blocks(z if rows is None else z[:, rows.to(z.device)], sizes):
                white, covariance = _whiten(part, form, eps)
                losses.append(_apart(normalize(white)).sum())
                if with_stats:
                    conditions.append(_condition(covariance.detach()))
        rounds = 1 if order is None else len(order)
        loss = torch.stack(losses).sum() / (rounds * num)
    if not with_stats:
        return loss
    return loss, WhiteningStats(torch.stack(conditions).max(), rounds * len(z) * len(sizes))


def _sizes(num: int, size: int) -> list[int]:
    """Rows of each sub-batch, at most one apart, the larger ones first."""
    count = max(1, num // size) if size else 1
    share, rest = divmod(num, count)
    return [share + (k < rest) for k in range(count)]


def _orders(order: Tensor | None, num: int) -> list[Tensor | None]:
    if order is None:
        return [None]
    expect(order.ndim == 2 and order.shape[1] == num and len(order) > 0, "order", f"shape [I, {num}], I >= 1",
           tuple(order.shape))  # fmt: skip
    each = torch.arange(num, device=order.device)
    expect(not order.is_floating_point() and bool((order.sort(1).values == each).all()), "order",
           "permutations of the samples", "others")  # fmt: skip
    return list(order)


def _blocks(z_VND: Tensor, sizes: list[int]) -> Iterator[Tensor]:
    """Sub-batches [V, S, n, D] of equal sizes together: one or two of them."""
    start = 0
    for n in sorted(set(sizes), reverse=True):
        count = sizes.count(n)
        yield z_VND[:, start : start + count * n].unflatten(1, (count, n))
        start += count * n


def _apart(unit: Tensor) -> Tensor:
    """Mean over pairs of views of 2 - 2 cos, of unit rows [V, S, n, D]: sums of all views hold every pair at once."""
    num_views = len(unit)
    twice = unit.sum(0).square().sum(-1) - unit.square().sum((0, -1))
    return 2 - 2 * twice / (num_views * (num_views - 1))


def _condition(covariance: Tensor) -> Tensor:
    values = torch.linalg.eigvalsh(covariance)
    return (values[..., -1] / values[..., 0]).amax()


class WMSE(nn.Module):
    """`wmse` as a Module; see there.

    Args:
        size: rows of a sub-batch; 0: all at once.
        form: "cholesky" or "zca".
        eps: share of the identity in each covariance.
    """

    needs_negatives = False
    distributed = "gather_candidates"
    symmetric = True

    def __init__(self, size: int = 0, *, form: str = "cholesky", eps: float = 1e-3) -> None:
        super().__init__()
        expect_choice("form", form, ("cholesky", "zca"))
        self.size, self.form, self.eps = size, form, eps

    def forward(self, *views: Any, order: Tensor | None = None, with_stats: bool = False) -> Any:
        return wmse(*views, size=self.size, order=order, form=self.form, eps=self.eps, with_stats=with_stats)
