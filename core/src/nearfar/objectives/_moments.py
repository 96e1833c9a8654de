"""What objectives of the batch's statistics share: views of all processes in one tensor, and norms of products.

Legend: V views, N rows of all processes, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nearfar._similarity import accumulation
from nearfar.checks import expect
from nearfar.objectives._shared import stack


def whole_views(views: tuple[Any, ...], *, least: int = 2) -> Tensor:
    """Views [V, N, D] of two samples or more, in the accumulation type."""
    given: Tensor | Sequence[Tensor] = views[0] if len(views) == 1 else views
    flat, num = stack("views", given, least=least)
    expect(flat.is_floating_point(), "views", "floating point", flat.dtype, TypeError)
    z = flat.unflatten(0, (num, -1))
    expect(z.shape[1] >= 2, "views", "2 or more samples, of which statistics are taken", z.shape[1])
    return z.to(accumulation(z))


def centred(z_VND: Tensor) -> Tensor:
    """Each view less its mean over samples."""
    return z_VND - z_VND.mean(1, keepdim=True)


def off_diagonal_norm(x_ND: Tensor, y_ND: Tensor, diagonal_D: Tensor) -> Tensor:
    """The sum of squares of x' y beside its diagonal, by N x N products where there are fewer samples than features.

    There |x' y|^2 = (x x') . (y y'), from which the diagonal is taken; no rank below D leaves the rest near zero.
    """
    if x_ND.shape[0] >= x_ND.shape[1]:
        return (x_ND.t() @ y_ND - torch.diag_embed(diagonal_D)).square().sum()
    gram = x_ND @ x_ND.t()
    return (gram * (gram if y_ND is x_ND else y_ND @ y_ND.t())).sum() - diagonal_D.square().sum()
