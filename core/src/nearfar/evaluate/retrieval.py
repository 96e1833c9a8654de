"""How well rows find the other members of their class.

Letters: N rows, D features, q queries of one tile, r other members of the class.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from nearfar.checks import expect
from nearfar.evaluate import inputs
from nearfar.evaluate.score import Score, bootstrap, wilson

TILE = 2**23  # similarities held at a time


def retrieval(
    x: Float[Tensor, "N D"],
    y: Int[Tensor, " N"],
    ks: Sequence[int] = (1, 5, 10),
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Score]:
    """Recall@k, mean average precision and MAP@R by cosine, every row a query against all others.

    With the other members of the query's class at ranks p_1 < ... < p_r among the N - 1 others: recall@k is the share
    of queries with p_1 <= k; "map" the mean of sum_i (i / p_i) / r; "map@r" the same sum over p_i <= r only
    (Musgrave et al., A Metric Learning Reality Check, ECCV 2020).

    Args:
        x: features.
        y: class ids.
        ks: cuts of recall.
        confidence: of the intervals: Wilson's for recall, bootstrap over queries for the means.
        seed: of the bootstrap.

    Returns:
        "recall@k" for each k, "map", "map@r". `n` counts the queries; a row without another member of its class is no
        query, but stays a candidate for the others.

    Raises:
        ValueError: no class with two rows, a cut outside [1, N - 1], non-finite features (the row is named).

    Notes:
        Among equal similarities other classes come first, so collapsed features score badly rather than by luck. Time
        is that of N^2 similarities and their sort, memory a tile.
    """
    x = inputs.normalised(inputs.features("x", x))
    y = inputs.labels("y", y, len(x)).to(x.device)
    for k in ks:
        expect(1 <= k < len(x), "ks", f"cuts in [1, {len(x) - 1}], the other rows", k)
    order = y.argsort(stable=True)
    x, sizes = x[order], y[order].unique_consecutive(return_counts=True)[1].tolist()
    expect(max(sizes) >= 2, "y", "a class with at least 2 rows", "only single rows")
    first, precision, precision_r, start = [], [], [], 0
    for size in sizes:
        tile = max(1, TILE // len(x))
        for begin in range(start, start + size, tile) if size > 1 else ():
            rank = _ranks(x, start, size, begin, min(begin + tile, start + size))
            number = torch.arange(1, size, device=x.device)
            share = number / rank.double()
            first.append(rank[:, 0])
            precision.append(share.mean(1))
            precision_r.append(torch.where(rank < size, share, 0.0).mean(1))
        start += size
    first = torch.cat(first)
    scores = {f"recall@{k}": wilson(int((first <= k).sum()), len(first), confidence) for k in ks}
    scores["map"] = bootstrap(torch.cat(precision), confidence, seed=seed)
    scores["map@r"] = bootstrap(torch.cat(precision_r), confidence, seed=seed)
    return scores


def _ranks(x: Tensor, start: int, size: int, begin: int, end: int) -> Tensor:
    """[q, r]: ranks of the class's other members, in order, for the queries begin:end of the class start:start+size."""
    cosine = x[begin:end] @ x.T
    own = cosine[:, start : start + size]
    keep = torch.ones_like(own, dtype=torch.bool)
    rows = torch.arange(end - begin, device=x.device)
    keep[rows, rows + begin - start] = False
    positive = _ascending(own[keep].view(end - begin, size - 1))
    negative = _ascending(torch.cat([cosine[:, :start], cosine[:, start + size :]], 1))
    before = negative.shape[1] - torch.searchsorted(negative, positive)  # others at least as similar
    return torch.arange(1, size, device=x.device) + before.flip(1)


def _ascending(x: Tensor) -> Tensor:
    # numpy sorts rows of plain floats about five times as fast as torch on the CPU
    return torch.from_numpy(np.sort(x.numpy(), axis=1)) if x.device.type == "cpu" else x.sort(dim=1).values
