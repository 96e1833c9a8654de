"""Graphs of nearest neighbours, sparse, and features smoothed along them.

Legend: N rows, D features, k neighbours.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nearfar._similarity import accumulation
from nearfar._tiles import no_autocast
from nearfar.checks import expect, expect_choice
from nearfar.evaluate.knn import neighbours
from nearfar.prototypes import _faiss
from nearfar.prototypes._rows import checked


def knn_graph(
    x: Float[Tensor, "N D"], k: int, *, symmetric: str = "none", backend: str = "torch"
) -> Float[Tensor, "N N"]:
    """Each row's k nearest others by cosine, exact, as a sparse matrix.

    Args:
        x: rows [N, D], none of them zero.
        k: neighbours, from 1 to N - 1; among equal cosines the earlier row (with faiss any).
        symmetric: see `neighbour_graph`.
        backend: "torch", or "faiss" where it is installed.

    Returns:
        Sparse COO [N, N], coalesced, without self loops; entry (i, j) is the cosine of rows i and j.

    Raises:
        ValueError: k outside 1 to N - 1, rows that are zero or not finite, an unknown option.
        ImportError: backend="faiss" without faiss.

    Notes:
        2 N^2 D FLOP in tiles with a running top k; memory O(N (D + k) + tile).
    """
    expect_choice("backend", backend, ("torch", "faiss"))
    expect_choice("symmetric", symmetric, ("none", "either", "both"))
    with no_autocast(x.device):
        rows = checked("x", x, normalize=True, distributed=False).x
        expect(1 <= k < len(rows), "k", f"a number from 1 to {len(rows) - 1}, the other rows", k)
        cosine, index = _faiss.neighbours(rows, k) if backend == "faiss" else neighbours(rows, k=k)
    return neighbour_graph(cosine, index, symmetric=symmetric)


def neighbour_graph(
    value: Float[Tensor, "N k"], index: Int[Tensor, "N k"], *, symmetric: str = "none"
) -> Float[Tensor, "N N"]:
    """A sparse matrix from lists of neighbours, as `k_reciprocal` and `evaluate.neighbours` give them.

    Args:
        value: what stands at (i, index[i, j]).
        index: other rows, from 0 to N - 1.
        symmetric: "none": as listed; "either": also where only the other lists a row, the larger value of both; "both":
            only where each lists the other, again the larger value.

    Returns:
        Sparse COO [N, N], coalesced.

    Raises:
        ValueError: unequal shapes, rows outside the matrix, an unknown option.
    """
    expect_choice("symmetric", symmetric, ("none", "either", "both"))
    expect(index.ndim == 2 and value.shape == index.shape, "value", f"the shape {tuple(index.shape)} of index",
           tuple(value.shape))  # fmt: skip
    num = len(index)
    expect(bool(((index >= 0) & (index < num)).all()), "index", f"rows from 0 to {num - 1}", "others")
    place = torch.arange(num, device=index.device).repeat_interleave(index.shape[1]) * num + index.flatten()
    value = value.detach().flatten()
    if symmetric != "none":
        back = index.flatten() * num + torch.arange(num, device=index.device).repeat_interleave(index.shape[1])
        both, to, times = torch.cat([place, back]).unique(return_inverse=True, return_counts=True)
        top = value.new_full((len(both),), -torch.inf).scatter_reduce_(0, to, value.repeat(2), "amax")
        kept = times == 2 if symmetric == "both" else times > 0
        place, value = both[kept], top[kept]
    else:
        place, order = place.sort()
        value = value[order]
        expect(bool((place[1:] > place[:-1]).all()), "index", "every neighbour once a row", "some twice")
    return torch.sparse_coo_tensor(torch.stack([place // num, place % num]), value, (num, num), is_coalesced=True,
                                   check_invariants=False)  # fmt: skip


def smooth(graph: Float[Tensor, "N N"], x: Float[Tensor, "N D"], *, self_weight: float = 0.0) -> Float[Tensor, "N D"]:
    """Every row's weighted mean over its neighbours, and itself.

    x_i <- (sum_j A_ij x_j / sum_j A_ij + w x_i) / (1 + w), and x_i itself where row i of A is empty

    Args:
        graph: A, sparse [N, N], non-negative.
        x: rows [N, D].
        self_weight: w, 0 or more.

    Returns:
        [N, D]; gradients flow to `x`.

    Raises:
        ValueError: a graph of another size or with negative entries, w negative.

    Source: Wu et al., "Simplifying Graph Convolutional Networks", ICML 2019; Qin et al., "CAPro", NeurIPS 2023.
    """
    expect(graph.is_sparse and tuple(graph.shape) == (len(x), len(x)), "graph", f"a sparse [{len(x)}, {len(x)}]",
           f"{graph.layout} {tuple(graph.shape)}")  # fmt: skip
    expect(self_weight >= 0, "self_weight", "0 or more", self_weight)
    graph = graph.coalesce()
    value = graph.values()
    expect(bool((value >= 0).all()), "graph", "entries >= 0", "negative ones")
    row, column = graph.indices()
    dtype = accumulation(x)
    with no_autocast(x.device):
        wide, value = x.to(dtype), value.to(dtype)
        total = value.new_zeros(len(x)).index_add_(0, row, value)
        share = value / total[row].clamp(min=torch.finfo(dtype).tiny)
        matrix = torch.sparse_coo_tensor(torch.stack([row, column]), share, graph.shape, is_coalesced=True,
                                         check_invariants=False)  # fmt: skip
        mean = (torch.sparse.mm(matrix, wide) + self_weight * wide) / (1 + self_weight)
        return torch.where((total > 0)[:, None], mean, wide)
