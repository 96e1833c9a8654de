"""k-means against scikit-learn, brute force, and the laws of its options."""

from __future__ import annotations

import importlib.util
import statistics

import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from nearfar.prototypes import _faiss, assign, kmeans

DIGITS = torch.from_numpy(load_digits().data).float()


def blobs(num: int = 30, dim: int = 4, clusters: int = 5) -> tuple[Tensor, Tensor]:
    """Rows around the ends of orthogonal axes, and whose they are."""
    label = torch.arange(clusters).repeat_interleave(num)
    return torch.eye(max(clusters, dim))[label] * 5 + 0.1 * torch.randn(len(label), max(clusters, dim)), label


def inertia(x: Tensor, label: Tensor, spherical: bool) -> float:
    """Of the best centroids for these labels."""
    x = (F.normalize(x, dim=1) if spherical else x).double()
    total = 0.0
    for c in label.unique():
        rows = x[label == c]
        centre = F.normalize(rows.mean(0), dim=0) if spherical else rows.mean(0)
        total += float((rows - centre).square().sum())
    return total


@pytest.mark.parametrize("spherical", [True, False])
@pytest.mark.parametrize("options", [{}, {"batch_size": 32}, {"init": "random", "num_restarts": 8}])
def test_finds_separate_blobs(spherical: bool, options: dict) -> None:
    x, truth = blobs()
    found = kmeans(x, 5, spherical=spherical, **options)
    for c in range(5):
        assert len(found.label[truth == c].unique()) == 1
    assert found.size.tolist() == [30] * 5
    assert found.inertia == pytest.approx(inertia(x, truth, spherical), rel=1e-3)


@pytest.mark.parametrize("spherical", [True, False])
@pytest.mark.parametrize("num", [10, 40])
def test_inertia_beside_sklearn(spherical: bool, num: int) -> None:
    """Mean over seeds within 2 percent: both stop in local minima, and neither is the better one always."""
    x = F.normalize(DIGITS, dim=1) if spherical else DIGITS
    ours = [kmeans(DIGITS, num, spherical=spherical, seed=seed) for seed in range(5)]
    labels = [torch.from_numpy(KMeans(num, n_init=1, random_state=seed).fit(x.numpy()).labels_) for seed in range(5)]
    theirs = statistics.mean(inertia(x, label, spherical) for label in labels)
    assert statistics.mean(found.inertia for found in ours) <= 1.02 * theirs
    for found in ours:
        assert found.inertia == pytest.approx(inertia(x, found.label, spherical), rel=1e-3)


def test_same_iterations_as_sklearn_from_the_same_start() -> None:
    start = DIGITS[torch.randperm(len(DIGITS))[:10]]
    ours = kmeans(DIGITS, 10, spherical=False, init=start, tolerance=0)
    theirs = KMeans(10, init=start.numpy(), n_init=1, tol=0, max_iter=100).fit(DIGITS.numpy())
    assert ours.inertia == pytest.approx(theirs.inertia_, rel=1e-6)
    assert torch.equal(ours.label, torch.from_numpy(theirs.labels_).long())
    torch.testing.assert_close(ours.centroid, torch.from_numpy(theirs.cluster_centers_).float(), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("spherical", [True, False])
def test_labels_are_the_nearest_centroids(spherical: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    found = kmeans(DIGITS, 20, spherical=spherical, num_iterations=4)
    x = F.normalize(DIGITS, dim=1) if spherical else DIGITS
    distance = torch.cdist(x.double(), found.centroid.double()).square()
    best, _ = distance.min(1)
    torch.testing.assert_close(distance.gather(1, found.label[:, None])[:, 0], best, atol=1e-3, rtol=1e-4)
    assert found.inertia == pytest.approx(float(best.sum()), rel=1e-4)
    assert torch.equal(found.size, found.label.bincount(minlength=20))
    if spherical:
        torch.testing.assert_close(found.centroid.norm(dim=1), torch.ones(20))
    label, away = assign(DIGITS, found.centroid, spherical=spherical)
    assert torch.equal(label, found.label)
    torch.testing.assert_close(away.double(), best, atol=1e-2, rtol=1e-4)
    monkeypatch.setattr("nearfar.prototypes._rows.TILE", 20 * 100)  # many blocks
    assert torch.equal(assign(DIGITS, found.centroid, spherical=spherical)[0], label)


@pytest.mark.parametrize("options", [{}, {"batch_size": 500}, {"init": "random"}])
def test_one_seed_one_result(options: dict) -> None:
    first, again = (kmeans(DIGITS[:400], 12, seed=3, **options) for _ in range(2))
    assert torch.equal(first.label, again.label)
    assert torch.equal(first.centroid, again.centroid)
    assert not torch.equal(first.centroid, kmeans(DIGITS[:400], 12, seed=4, **options).centroid)


def test_rows_far_from_zero_cluster_as_those_near_it() -> None:
    x, truth = blobs()
    found = kmeans(x + 3000, 5, spherical=False)
    assert found.size.tolist() == [30] * 5
    assert found.inertia == pytest.approx(inertia(x, truth, False), rel=1e-2)
    label, distance = assign(x + 3000, found.centroid, spherical=False)
    assert torch.equal(label, found.label)
    assert float(distance.double().sum()) == pytest.approx(found.inertia, rel=1e-6)


def test_more_restarts_are_no_worse() -> None:
    one, many = (kmeans(DIGITS[:500], 10, num_restarts=r).inertia for r in (1, 5))
    assert many <= one


@pytest.mark.parametrize("spherical", [True, False])
def test_spherical_ignores_lengths(spherical: bool) -> None:
    x = DIGITS[:300]
    longer = x * (1 + torch.arange(300)[:, None])
    same = torch.equal(kmeans(x, 6, spherical=spherical).label, kmeans(longer, 6, spherical=spherical).label)
    assert same == spherical


@pytest.mark.parametrize("spherical", [True, False])
def test_no_cluster_stays_below_min_size(spherical: bool) -> None:
    found = kmeans(DIGITS[:600], 40, spherical=spherical, min_size=8)
    assert int(found.size.min()) >= 8
    assert int(kmeans(DIGITS[:600], 40, spherical=spherical).size.min()) < 8  # or the test above says nothing
    assert found.inertia == pytest.approx(inertia(DIGITS[:600], found.label, spherical), rel=1e-3)


@pytest.mark.parametrize("options", [{}, {"batch_size": 4}, {"init": "random"}])
def test_equal_rows_still_fill_every_cluster(options: dict) -> None:
    found = kmeans(torch.ones(12, 3), 5, **options)
    assert sorted(found.label.unique().tolist()) == [0, 1, 2, 3, 4]
    assert found.inertia == pytest.approx(0, abs=1e-5)


def test_as_many_clusters_as_rows() -> None:
    x = torch.randn(9, 3)
    found = kmeans(x, 9, spherical=False)
    assert found.size.tolist() == [1] * 9
    assert found.inertia == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types(dtype: torch.dtype) -> None:
    found = kmeans(DIGITS[:200].to(dtype), 5)
    assert found.centroid.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert bool(found.centroid.isfinite().all())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(kmeans(DIGITS[:200].to(dtype), 5).label, found.label)


def test_no_distance_matrix_is_made() -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        entries = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, tuple | list) else (out,):
                if isinstance(x, Tensor):
                    self.entries = max(self.entries, x.numel())
            return out

    x, centroid = torch.randn(6000, 4), torch.randn(2000, 4)
    with Largest() as mode:
        assign(x, centroid)
    assert mode.entries <= 1 << 22 < 6000 * 2000


needs_faiss = pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="faiss is not installed")


@needs_faiss
@pytest.mark.parametrize("spherical", [True, False])
def test_faiss_iterates_alike(spherical: bool) -> None:
    ours, theirs = (
        kmeans(DIGITS, 10, spherical=spherical, tolerance=0, backend=backend) for backend in ("torch", "faiss")
    )
    assert theirs.inertia == pytest.approx(ours.inertia, rel=1e-3)
    assert float((ours.label == theirs.label).double().mean()) > 0.99


def test_faiss_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(ImportError, match="pip install faiss-cpu"):
        kmeans(DIGITS[:50], 3, backend="faiss")
    with pytest.raises(ImportError, match="pip install faiss-cpu"):
        _faiss.load()


def test_complaints() -> None:
    x = torch.rand(10, 3)
    with pytest.raises(
        ValueError, match="num_clusters: expected a number from 1 to 10, the rows there are, received 11"
    ):
        kmeans(x, 11)
    with pytest.raises(ValueError, match="min_size: expected a number from 1 to 2, rows over clusters, received 3"):
        kmeans(x, 5, min_size=3)
    with pytest.raises(ValueError, match="x: expected finite features, received 1 rows with nan or inf, first 4"):
        kmeans(torch.where(torch.arange(10)[:, None] == 4, torch.nan, x), 2)
    with pytest.raises(ValueError, match="x: expected rows that are not zero.*received 1 zero rows, first 2"):
        kmeans(torch.where(torch.arange(10)[:, None] == 2, 0.0, x), 2)
    with pytest.raises(ValueError, match=r"x: expected shape \[N, D\]"):
        kmeans(x[0], 1)
    with pytest.raises(ValueError, match="x: expected one row or more"):
        kmeans(x[:0], 1)
    with pytest.raises(TypeError, match="x: expected floating point"):
        kmeans(x.long(), 2)
    with pytest.raises(ValueError, match="init: expected one of 'k-means\\+\\+', 'random'"):
        kmeans(x, 2, init="kmeans")
    with pytest.raises(ValueError, match=r"init: expected shape \(2, 3\)"):
        kmeans(x, 2, init=x[:3])
    with pytest.raises(ValueError, match="backend: expected one of"):
        kmeans(x, 2, backend="numpy")
    with pytest.raises(ValueError, match="batch_size: expected None with backend='faiss'"):
        kmeans(x, 2, backend="faiss", batch_size=4)
    for name, value in (("num_iterations", 0), ("num_restarts", 0), ("batch_size", 0), ("tolerance", -1.0)):
        with pytest.raises(ValueError, match=f"{name}: expected"):
            kmeans(x, 2, **{name: value})
    with pytest.raises(ValueError, match=r"x: expected shape \[N, 3\]"):
        assign(x[:, :2], x[:2])
    with pytest.raises(ValueError, match=r"centroid: expected shape \[K, D\]"):
        assign(x, x[:0])
