"""Checks that every evaluator makes of its features and labels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from nearfar.checks import expect


def features(name: str, x: Tensor) -> Tensor:
    """Finite features [N, D] without gradient, in fp32 or fp64, or an error that names the row."""
    expect(x.ndim == 2, name, "shape [N, D]", tuple(x.shape))
    expect(x.shape[0] >= 1 and x.shape[1] >= 1, name, "at least one row and one column", tuple(x.shape))
    x = x.detach()
    x = x if x.dtype == torch.float64 else x.float()
    if not bool(x.isfinite().all()):
        bad = (~x.isfinite()).any(1).nonzero().flatten()
        raise ValueError(f"{name}: expected finite features, received {len(bad)} rows with nan or inf, first {bad[0]}")
    return x


def labels(name: str, y: Tensor, num_rows: int) -> Tensor:
    """Class ids [N] as int64, one a row of the features."""
    expect(not (y.is_floating_point() or y.is_complex()), name, "integer class ids", y.dtype, TypeError)
    expect(y.shape == (num_rows,), name, f"shape ({num_rows},), one label a row", tuple(y.shape))
    return y.detach().long()


def classes(name: str, y: Tensor) -> tuple[Tensor, Tensor]:
    """(sorted class ids [C], index [N] into them), of at least two classes."""
    ids, index = y.unique(return_inverse=True)
    expect(len(ids) >= 2, name, "labels of at least 2 classes", f"only class {ids.tolist()}")
    return ids, index


def same_width(train_x: Tensor, test_x: Tensor) -> None:
    """Train and test features have one width and one device."""
    expect(test_x.shape[1] == train_x.shape[1], "test_x", f"width {train_x.shape[1]} of train_x", test_x.shape[1])
    expect(test_x.device == train_x.device, "test_x", f"the device {train_x.device} of train_x", test_x.device)


def normalised(x: Tensor) -> Tensor:
    """Rows of unit length; a zero row stays zero, at cosine 0 to everything."""
    return F.normalize(x, dim=1)
