"""faiss, where it is installed and asked for.

Legend: N rows, D features, K centroids, k neighbours.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
from torch import Tensor


def load() -> Any:
    """The module, or an error that says how to get it."""
    try:
        return importlib.import_module("faiss")
    except ImportError as error:
        raise ImportError("backend: expected 'torch', or faiss installed (pip install faiss-cpu)") from error


def train(x: Tensor, centroid_KD: Tensor, spherical: bool, num_iterations: int) -> Tensor:
    """Centroids [K, D] after faiss's iterations from given ones, on all rows."""
    faiss = load()
    num, dim = centroid_KD.shape
    run = faiss.Kmeans(
        dim, num, niter=num_iterations, spherical=spherical, min_points_per_centroid=1, max_points_per_centroid=len(x)
    )  # fmt: skip
    run.train(_rows(x), init_centroids=_rows(centroid_KD))
    return torch.from_numpy(run.centroids).to(x)


def neighbours(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(cosines, rows) of the k nearest other rows [N, k]; `x` of unit length."""
    faiss = load()
    index = faiss.IndexFlatIP(x.shape[1])
    rows = _rows(x)
    index.add(rows)
    value, found = (torch.from_numpy(part).to(x.device) for part in index.search(rows, k + 1))
    # a row finds itself, among its equals not always first; where equals crowd it out, the last one goes
    own = found == torch.arange(len(x), device=x.device)[:, None]
    own[:, -1] |= ~own.any(1)
    return value[~own].view(-1, k), found[~own].view(-1, k)


def _rows(x: Tensor) -> np.ndarray:
    return np.ascontiguousarray(x.detach().float().cpu().numpy())
