"""Neighbour graphs against sorted similarity matrices."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nearfar.prototypes import knn_graph, neighbour_graph, smooth


def dense(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(cosines, whether j is among the k nearest of i)."""
    cosine = F.normalize(x.double(), dim=1) @ F.normalize(x.double(), dim=1).T
    order = cosine.clone().fill_diagonal_(-2).argsort(dim=1, descending=True, stable=True)[:, :k]
    return cosine, torch.zeros_like(cosine).scatter_(1, order, 1).bool()


@pytest.mark.parametrize("symmetric", ["none", "either", "both"])
@pytest.mark.parametrize("k", [1, 4, 29])
def test_equals_the_sorted_matrix(symmetric: str, k: int) -> None:
    x = torch.randn(30, 5)
    graph = knn_graph(x, k, symmetric=symmetric)
    cosine, listed = dense(x, k)
    expected = {"none": listed, "either": listed | listed.T, "both": listed & listed.T}[symmetric]
    assert graph.is_coalesced()
    assert graph.layout == torch.sparse_coo
    assert graph._nnz() == int(expected.sum())
    row, column = graph.indices()
    assert bool(expected[row, column].all())
    assert not bool((row == column).any())
    torch.testing.assert_close(graph.values().double(), cosine[row, column], atol=1e-6, rtol=1e-5)
    assert bool((graph.indices() == graph.clone().coalesce().indices()).all())
    torch.testing.assert_close(graph.to_dense().double(), torch.where(expected, cosine, 0.0), atol=1e-6, rtol=1e-5)


def test_lists_of_neighbours_keep_the_larger_value() -> None:
    value, index = torch.tensor([[0.9], [0.2], [0.5]]), torch.tensor([[1], [0], [0]])
    either = neighbour_graph(value, index, symmetric="either").to_dense()
    torch.testing.assert_close(either, torch.tensor([[0, 0.9, 0.5], [0.9, 0, 0], [0.5, 0, 0]]))
    both = neighbour_graph(value, index, symmetric="both").to_dense()
    torch.testing.assert_close(both, torch.tensor([[0, 0.9, 0], [0.9, 0, 0], [0, 0, 0]]))


def test_smoothing() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    graph = neighbour_graph(torch.tensor([[3.0, 1.0], [1.0, 1.0], [2.0, 0.0], [0.0, 0.0]]),
                            torch.tensor([[1, 2], [0, 3], [0, 1], [0, 1]]))  # fmt: skip
    found = smooth(graph, x, self_weight=0.5)
    expected = torch.stack([
        ((3 * x[1] + x[2]) / 4 + 0.5 * x[0]) / 1.5,
        ((x[0] + x[3]) / 2 + 0.5 * x[1]) / 1.5,
        (x[0] + 0.5 * x[2]) / 1.5,
        x[3],  # no weight at all: itself
    ])  # fmt: skip
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad.sum(), torch.tensor(12.0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    x = torch.randn(20, 8).to(dtype)
    graph = knn_graph(x, 3)
    assert torch.equal(graph.to_dense(), knn_graph(x.float(), 3).to_dense())
    assert bool(smooth(graph * 0, x).isfinite().all())


@pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="faiss is not installed")
@pytest.mark.parametrize("twice", [False, True])
def test_faiss_finds_the_same(twice: bool) -> None:
    x = torch.randn(40, 6)
    x = torch.cat([x, x, x]) if twice else x
    ours, theirs = (knn_graph(x, 5, backend=backend).to_dense() for backend in ("torch", "faiss"))
    # among equals it may choose others
    torch.testing.assert_close(ours.sort(1).values, theirs.sort(1).values, atol=1e-5, rtol=0)
    assert not theirs.diagonal().any()
    assert twice or bool(((ours != 0) == (theirs != 0)).all())


def test_complaints() -> None:
    x = torch.randn(5, 2)
    for k in (0, 5):
        with pytest.raises(ValueError, match=f"k: expected a number from 1 to 4, the other rows, received {k}"):
            knn_graph(x, k)
    with pytest.raises(ValueError, match="symmetric: expected one of 'none', 'either', 'both'"):
        knn_graph(x, 2, symmetric="mutual")
    with pytest.raises(ValueError, match="backend: expected one of"):
        knn_graph(x, 2, backend="annoy")
    with pytest.raises(ValueError, match="x: expected rows that are not zero"):
        knn_graph(x * 0, 2)
    value, index = torch.ones(3, 2), torch.tensor([[1, 2], [0, 2], [0, 1]])
    with pytest.raises(ValueError, match=r"value: expected the shape \(3, 2\) of index"):
        neighbour_graph(value[:2], index)
    with pytest.raises(ValueError, match="index: expected rows from 0 to 2"):
        neighbour_graph(value, index + 1)
    with pytest.raises(ValueError, match="index: expected every neighbour once a row, received some twice"):
        neighbour_graph(value, index * 0)
    graph = neighbour_graph(value, index)
    with pytest.raises(ValueError, match=r"graph: expected a sparse \[4, 4\]"):
        smooth(graph, torch.randn(4, 2))
    with pytest.raises(ValueError, match=r"graph: expected a sparse \[3, 3\]"):
        smooth(graph.to_dense(), torch.randn(3, 2))
    with pytest.raises(ValueError, match="graph: expected entries >= 0"):
        smooth(-graph, torch.randn(3, 2))
    with pytest.raises(ValueError, match="self_weight: expected 0 or more"):
        smooth(graph, torch.randn(3, 2), self_weight=-1.0)
