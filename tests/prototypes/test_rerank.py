"""k-reciprocal re-ranking against loops over sets and dense matrices."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nearfar.prototypes import k_reciprocal, neighbour_graph, smooth


def looped(x: Tensor, k1: int, k2: int, weight: float) -> np.ndarray:
    """d* of all pairs, with the sets of the paper written out."""
    x = F.normalize(x.double(), dim=1).numpy()
    total = len(x)
    distance = np.maximum(2 - 2 * x @ x.T, 0)
    np.fill_diagonal(distance, -1)  # a row is its own nearest
    rank = [np.argsort(row, kind="stable").tolist() for row in distance]
    np.fill_diagonal(distance, 0)
    distance = distance / distance.max(1, keepdims=True)

    def mutual(i: int, k: int) -> set[int]:
        return {j for j in rank[i][: k + 1] if i in rank[j][: k + 1]}

    encoding = np.zeros((total, total))
    for i in range(total):
        wide = mutual(i, k1)
        grown = set(wide)
        for j in wide:
            narrow = mutual(j, round(k1 / 2))
            if len(narrow & wide) > 2 / 3 * len(narrow):
                grown |= narrow
        for j in grown:
            encoding[i, j] = np.exp(-distance[i, j])
        encoding[i] /= encoding[i].sum()
    encoding = np.stack([encoding[rank[i][:k2]].mean(0) for i in range(total)])
    overlap = np.array([[np.minimum(a, b).sum() / np.maximum(a, b).sum() for b in encoding] for a in encoding])
    return (1 - weight) * (1 - overlap) + weight * distance


@pytest.mark.parametrize(
    ("k1", "k2", "weight"), [(8, 3, 0.3), (7, 3, 0.3), (5, 1, 0.0), (20, 6, 0.3), (39, 40, 0.5), (1, 2, 0.3)]
)
def test_equals_the_loops(k1: int, k2: int, weight: float, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(40, 3, dtype=torch.float64)
    expected = torch.from_numpy(looped(x, k1, k2, weight))
    monkeypatch.setattr("nearfar.prototypes.rerank.TILE", 40 * 7)  # several blocks of rows
    distance, index = k_reciprocal(x, k1=k1, k2=k2, weight=weight)
    assert distance.shape == (40, 39)
    torch.testing.assert_close(distance, expected.gather(1, index))
    assert bool((distance[:, 1:] >= distance[:, :-1]).all())
    own = torch.arange(40)[:, None]
    assert torch.equal(torch.cat([index, own], 1).sort(1).values, torch.arange(40).expand(40, 40))
    fewer, nearest = k_reciprocal(x, num=5, k1=k1, k2=k2, weight=weight)
    torch.testing.assert_close(fewer, distance[:, :5])
    torch.testing.assert_close(expected.gather(1, nearest), expected.gather(1, index[:, :5]))


def test_queries_and_gallery() -> None:
    query, gallery = torch.randn(34, 4, dtype=torch.float64).split([9, 25])
    expected = torch.from_numpy(looped(torch.cat([query, gallery]), 6, 3, 0.3))[:9, 9:]
    distance, index = k_reciprocal(query, gallery, k1=6, k2=3)
    assert distance.shape == (9, 25)
    torch.testing.assert_close(distance, expected.gather(1, index))


@pytest.mark.oracle("capro", 5)
def test_limits_of_reranking_and_smoothing() -> None:
    x = torch.randn(30, 4)
    cosine = F.normalize(x, dim=1) @ F.normalize(x, dim=1).T
    original = cosine.fill_diagonal_(-2).argsort(dim=1, descending=True)[:, :29]
    assert torch.equal(k_reciprocal(x, weight=1.0, k1=8, k2=3)[1], original)
    same = torch.cat([x, 2 * x[:1]])  # row 30 has the direction of row 0
    distance, index = k_reciprocal(same, weight=0.0, k1=8, k2=3)
    assert int(index[0, 0]) == 30
    assert float(distance[0, 0]) == pytest.approx(0, abs=1e-6)
    s = torch.randn(5, 3)
    alone = neighbour_graph(torch.ones(5, 1), torch.arange(5)[:, None])
    torch.testing.assert_close(smooth(alone, s), s)
    others = torch.stack([torch.arange(5)[torch.arange(5) != i] for i in range(5)])
    torch.testing.assert_close(smooth(neighbour_graph(torch.ones(5, 4), others), s, self_weight=0.25),
                               s.mean(0).expand(5, 3))  # fmt: skip


def test_it_repairs_neighbours_of_a_crowded_class() -> None:
    """A hub between two tight groups is listed by both, but lists back few of them."""
    group = F.normalize(torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]), dim=1).repeat_interleave(12, 0)
    x = group + 0.25 * torch.randn(24, 3)
    label = torch.arange(24) // 12
    plain = (F.normalize(x, dim=1) @ F.normalize(x, dim=1).T).fill_diagonal_(-2).topk(11).indices
    ranked = k_reciprocal(x, num=11, k1=10, k2=4)[1]
    share = [float((label[found] == label[:, None]).double().mean()) for found in (plain, ranked)]
    assert share[1] >= share[0]


def test_all_rows_equal() -> None:
    distance, _ = k_reciprocal(torch.ones(6, 2), k1=5, k2=2)
    torch.testing.assert_close(distance, torch.zeros(6, 5), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    x = torch.randn(30, 4).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        distance, index = k_reciprocal(x, k1=5, k2=2)
    expected, same = k_reciprocal(x.float(), k1=5, k2=2)
    assert torch.equal(index, same)
    assert torch.equal(distance, expected)


def test_complaints() -> None:
    x = torch.randn(8, 3)
    with pytest.raises(ValueError, match="k1: expected a number from 1 to 7, the other rows, received 20"):
        k_reciprocal(x)
    with pytest.raises(ValueError, match="k2: expected a number from 1 to k1 \\+ 1 = 4, received 6"):
        k_reciprocal(x, k1=3)
    with pytest.raises(ValueError, match="num: expected a number from 1 to 7, the rows to rank, received 8"):
        k_reciprocal(x, num=8, k1=3, k2=2)
    with pytest.raises(ValueError, match=r"weight: expected a number in \[0, 1\]"):
        k_reciprocal(x, k1=3, k2=2, weight=1.5)
    with pytest.raises(ValueError, match="gallery: expected width 3 of x, received 2"):
        k_reciprocal(x, x[:, :2], k1=3, k2=2)
    with pytest.raises(ValueError, match="gallery: expected rows that are not zero"):
        k_reciprocal(x, x * 0, k1=3, k2=2)
    with pytest.raises(ValueError, match="x: expected finite features"):
        k_reciprocal(x / 0, k1=3, k2=2)
