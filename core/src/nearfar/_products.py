"""One product of a tile, by the faster of two libraries.

torch multiplies float32 matrices on the CPU by MKL. oneDNN, which torch carries for its compiler, is a tenth to a
fifth faster on processors that MKL does not favour, when rows are long (`nearfar benchmark objectives`: clip_512).
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

LONG = 192
"""length of rows from which oneDNN's packing of an operand pays off"""


@functools.cache
def onednn() -> object | None:
    """oneDNN's product x w^T, or None where this build of torch has none or another form of it."""
    try:
        product = torch.ops.mkldnn._linear_pointwise
        x = torch.tensor([[1.0, 2.0]])
        fits = bool((product(x, x, None, "none", [], "") == 5).all())
    except (AttributeError, RuntimeError, TypeError):
        return None
    return product if fits else None


def by_onednn(a: Tensor) -> bool:
    """Whether products of such rows go to oneDNN."""
    return (
        a.device.type == "cpu"
        and a.dtype == torch.float32
        and a.shape[1] >= LONG
        and torch.backends.mkldnn.enabled
        and onednn() is not None
    )


def outer(a: Tensor, c: Tensor, alpha: float) -> Tensor | None:
    """alpha a c^T by oneDNN, or None where it would not be faster."""
    if not by_onednn(a):
        return None
    scaled = a if alpha == 1.0 else a * alpha
    return onednn()(scaled, c, None, "none", [], "")  # type: ignore[operator]
