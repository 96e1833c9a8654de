"""Neighbours ranked again by how much their own neighbourhoods overlap.

Legend: A all rows (queries, then gallery), Q queries, G gallery, D features, M ranked rows, q x A one block of rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from nearfar._tiles import no_autocast
from nearfar.checks import expect
from nearfar.evaluate.knn import neighbours
from nearfar.prototypes._rows import TILE, checked


@torch.no_grad()
def k_reciprocal(
    x: Float[Tensor, "Q D"],
    gallery: Float[Tensor, "G D"] | None = None,
    *,
    num: int | None = None,
    k1: int = 20,
    k2: int = 6,
    weight: float = 0.3,
) -> tuple[Float[Tensor, "Q M"], Int[Tensor, "Q M"]]:
    """The nearest rows of the gallery after re-ranking by k-reciprocal encoding, nearest first.

    d*(q, g) = (1 - weight) (1 - sum_j min(V_qj, V_gj) / sum_j max(V_qj, V_gj)) + weight d(q, g)

    d is the squared distance of unit rows over its largest value in the row of q. V_q has exp(-d(q, j)), scaled to sum
    1, at the rows j that are among the k1 nearest of q and have q among theirs, and at those that such a row shares so
    with more than two thirds of its own k1 / 2; then V_q becomes the mean over the k2 nearest of q (q itself among
    them).

    Args:
        x: queries [Q, D], not zero.
        gallery: [G, D]; None: the other queries.
        num: M, rows to return for each query; None: all.
        k1: neighbours that have to be mutual, at most all other rows.
        k2: rows whose V are averaged; 1: no averaging.
        weight: share of the original distance, from 0 (overlap alone) to 1 (the original order).

    Returns:
        (d* [Q, M] in ascending order, rows of the gallery int64 [Q, M]).

    Raises:
        ValueError: rows that are zero or not finite, unequal widths, k1, k2 or num beyond the rows there are, weight
            outside [0, 1].

    Notes:
        V is sparse, about k1 k2 entries a row at most, and stays on the CPU with its products; distances are made in
        blocks of rows of 2^22 entries, three times. 6 A^2 D FLOP and A^2 additions; memory O(A (D + k1 k2) + block).

    Source: Zhong, Zheng, Cao, Li, "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR 2017.
    """
    with no_autocast(x.device):
        query = checked("x", x, normalize=True, distributed=False).x
        everything = query
        if gallery is not None:
            other = checked("gallery", gallery, normalize=True, distributed=False).x
            expect(other.shape[1] == query.shape[1], "gallery", f"width {query.shape[1]} of x", other.shape[1])
            everything = torch.cat([query, other.to(query)])
        total = len(everything)
        most = total - len(query) if gallery is not None else total - 1
        num = most if num is None else num
        expect(1 <= num <= most, "num", f"a number from 1 to {most}, the rows to rank", num)
        expect(1 <= k1 < total, "k1", f"a number from 1 to {total - 1}, the other rows", k1)
        expect(1 <= k2 <= k1 + 1, "k2", f"a number from 1 to k1 + 1 = {k1 + 1}", k2)
        expect(0 <= weight <= 1, "weight", "a number in [0, 1]", weight)
        farthest_A = _farthest(everything)
        rank = torch.cat([torch.arange(total, device=x.device)[:, None], neighbours(everything, k=k1)[1]], dim=1)
        encoding = _encoding(everything, farthest_A, rank.cpu().numpy(), k1, k2)
        return _rank(everything, len(query), farthest_A, encoding, num, weight, gallery is None)


def _farthest(x: Tensor) -> Tensor:
    """Largest squared distance of every row to any other; where all are equal 1, which leaves their 0 as it is."""
    size = max(1, TILE // len(x))
    least = torch.cat([(rows @ x.T).amin(1) for rows in x.split(size)])
    far = 2 - 2 * least
    return torch.where(far > 1e-6, far, 1.0)


def _encoding(x: Tensor, farthest_A: Tensor, rank: np.ndarray, k1: int, k2: int) -> Any:
    """V as a scipy matrix [A, A] of compressed rows."""
    total = len(rank)
    wide, narrow = _mutual(rank, k1), _mutual(rank, round(k1 / 2))
    shared = (wide @ narrow.T).multiply(wide).tocoo()  # of the narrow set of j, how many are in the wide set of i
    size = np.diff(narrow.indptr)
    kept = shared.data > 2 / 3 * size[shared.col]
    expanding = _matrix(np.ones(int(kept.sum()), np.float32), shared.row[kept], shared.col[kept], total)
    pattern = (wide + expanding @ narrow).tocoo()
    row, column = (torch.from_numpy(part.astype(np.int64)) for part in (pattern.row, pattern.col))
    step = max(1, TILE // x.shape[1])
    pairs = zip(row.to(x.device).split(step), column.to(x.device).split(step), strict=True)
    cosine = torch.cat([(x[i] * x[j]).sum(1) for i, j in pairs])
    value = (-(2 - 2 * cosine) / farthest_A[row.to(x.device)]).exp().cpu().numpy()
    encoding = _matrix(value, pattern.row, pattern.col, total)
    encoding = encoding.multiply((1 / encoding.sum(1))[:, None]).tocsr()
    if k2 > 1:
        near = rank[:, :k2]
        mean = _matrix(np.full(near.size, 1 / k2, value.dtype), np.arange(total).repeat(k2), near.ravel(), total)
        encoding = (mean @ encoding).tocsr()
    return encoding


def _mutual(rank: np.ndarray, k: int) -> Any:
    """1 where two rows are among each other's k nearest, and on the diagonal."""
    near = rank[:, : k + 1]
    total = len(near)
    listed = _matrix(np.ones(near.size, np.float32), np.arange(total).repeat(near.shape[1]), near.ravel(), total)
    return listed.multiply(listed.T).tocsr()


def _matrix(value: np.ndarray, row: np.ndarray, column: np.ndarray, total: int) -> Any:
    from scipy.sparse import csr_array

    return csr_array((value, (row, column)), shape=(total, total))


def _rank(
    x: Tensor, num_queries: int, farthest_A: Tensor, encoding: Any, num: int, weight: float, alone: bool
) -> tuple[Tensor, Tensor]:
    total = len(x)
    by_column = encoding.tocsc()
    size = max(1, TILE // total)
    distances, indices = [], []
    for start in range(0, num_queries, size):
        stop = min(start + size, num_queries)
        common = torch.from_numpy(_common(encoding, by_column, start, stop)).to(x)
        final = (2 - 2 * (x[start:stop] @ x.T)) / farthest_A[start:stop, None]
        final = (1 - weight) * (1 - common / (2 - common)) + weight * final
        if alone:
            own = torch.arange(stop - start, device=x.device)
            final[own, own + start] = torch.inf
        else:
            final = final[:, num_queries:]
        value, index = final.topk(num, dim=1, largest=False)
        index, order = index.sort(dim=1)  # among equal distances the earlier row first
        value, order = value.gather(1, order).sort(dim=1, stable=True)
        distances.append(value)
        indices.append(index.gather(1, order))
    return torch.cat(distances), torch.cat(indices)


def _common(encoding: Any, by_column: Any, start: int, stop: int) -> np.ndarray:
    """Sum over j of min(V_ij, V_mj) for the rows i from `start` to `stop` and all m [q, A]."""
    first, last = encoding.indptr[start], encoding.indptr[stop]
    row = np.arange(stop - start).repeat(np.diff(encoding.indptr[start : stop + 1]))
    column, value = encoding.indices[first:last], encoding.data[first:last]
    length = np.diff(by_column.indptr)[column]
    # every entry (i, j) meets all entries (m, j) of its column
    places = np.arange(length.sum()) + (by_column.indptr[column] - (length.cumsum() - length)).repeat(length)
    both = np.minimum(value.repeat(length), by_column.data[places])
    flat = row.repeat(length) * encoding.shape[1] + by_column.indices[places]
    return np.bincount(flat, weights=both, minlength=(stop - start) * encoding.shape[1]).reshape(stop - start, -1)
