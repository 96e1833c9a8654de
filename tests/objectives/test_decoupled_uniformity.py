"""Decoupled uniformity: the oracles, priors and their kernels, shards, memory.

Legend: B batch, V views, D embedding, Q prior.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from nearfar.contrast import Stats
from nearfar.objectives import DecoupledUniformity, centroid_alignment, decoupled_uniformity, uniformity
from nearfar.objectives.decoupled_uniformity import median_distance, smooth, standardise
from objectives.sharding import PARTS, over_parts
from objectives.storage import largest

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def of_centroids(m: Tensor, t: float = 2.0) -> Tensor:
    upper = torch.triu_indices(len(m), len(m), 1)
    return torch.exp(-t * (m[upper[0]] - m[upper[1]]).square().sum(1)).mean().log()


@pytest.mark.oracle("decoupled_uniformity", 1)
def test_one_view_is_uniformity() -> None:
    z = draw(6, 3).requires_grad_()
    with pytest.warns(UserWarning, match="one view has nothing to align with"):
        found = decoupled_uniformity(z.unsqueeze(0), t=1.3)
    torch.testing.assert_close(found, uniformity(z, t=1.3))
    torch.testing.assert_close(torch.autograd.grad(found, z), torch.autograd.grad(uniformity(z, t=1.3), z))


@pytest.mark.oracle("decoupled_uniformity", 2)
def test_identical_views_and_collapse() -> None:
    z = draw(6, 3)
    torch.testing.assert_close(decoupled_uniformity(z, 2 * z, z), uniformity(z))
    assert float(decoupled_uniformity(torch.ones(3, 5, 4, dtype=F64))) == pytest.approx(0, abs=1e-12)
    assert float(centroid_alignment(z, 2 * z)) == pytest.approx(-1, rel=1e-12)


@pytest.mark.oracle("decoupled_uniformity", 3)
def test_a_narrow_and_a_wide_kernel() -> None:
    z, prior, ridge = draw(2, 6, 3), draw(6, 2, seed=1), 0.3
    m = normalize(z, dim=2).mean(0)
    found = decoupled_uniformity(z, prior=prior, sigma=1e-3, ridge=ridge)
    torch.testing.assert_close(found, of_centroids(m / (1 + ridge)))
    torch.testing.assert_close(smooth(m, prior, sigma=1e-3, ridge=ridge), m / (1 + ridge))
    assert float(decoupled_uniformity(z, prior=prior, sigma=1e6, ridge=ridge)) == pytest.approx(0, abs=1e-9)
    torch.testing.assert_close(smooth(m, prior, sigma=1e7, ridge=ridge), (m.sum(0) / (6 + ridge)).expand(6, -1))


@pytest.mark.oracle("decoupled_uniformity", 4)
@pytest.mark.parametrize(("kernel", "form"), [("rbf", "one hot"), ("rbf", "number"), ("cosine", "one hot")])
def test_labels_as_a_prior_give_class_means(kernel: str, form: str) -> None:
    """One-hot labels are orthogonal, and far apart for a narrow kernel: K is a block of ones a class."""
    labels, ridge = torch.tensor([0, 1, 0, 2, 1, 0]), 0.2
    prior = torch.eye(3, dtype=F64)[labels] if form == "one hot" else labels.to(F64)
    z = draw(2, 6, 3).requires_grad_()
    m = normalize(z, dim=2).mean(0)
    expected = of_centroids(torch.stack([m[labels == c].sum(0) / (int((labels == c).sum()) + ridge) for c in labels]))
    found = decoupled_uniformity(z, prior=prior, kernel=kernel, sigma=0.05, ridge=ridge)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, z), torch.autograd.grad(expected, z))


@pytest.mark.oracle("decoupled_uniformity", 5)
def test_brute_force_of_four() -> None:
    z, prior = draw(3, 4, 3).requires_grad_(), draw(4, 2, seed=1).requires_grad_()
    for kernel in ("rbf", "cosine"):
        for ridge in (0.01, None):
            a = prior.detach()
            if kernel == "rbf":
                matrix = torch.exp(-(a[:, None] - a[None]).square().sum(2) / (2 * 0.8**2))
            else:
                matrix = normalize(a, dim=1) @ normalize(a, dim=1).t()
            strength = 4**-0.5 if ridge is None else ridge
            m = (z / z.norm(dim=2, keepdim=True)).mean(0)
            mixed = torch.linalg.inv(matrix + strength * torch.eye(4, dtype=F64)) @ matrix @ m
            total = sum(torch.exp(-2 * (mixed[i] - mixed[j]).square().sum()) for i in range(4) for j in range(i))
            found = decoupled_uniformity(z, prior=prior, kernel=kernel, sigma=0.8, ridge=ridge)
            torch.testing.assert_close(found, torch.log(total / 6))
            grads = torch.autograd.grad(found, (z, prior), allow_unused=True)
            torch.testing.assert_close(grads[0], torch.autograd.grad(torch.log(total / 6), z)[0])
            assert grads[1] is None


@pytest.mark.oracle("decoupled_uniformity", 5)
def test_aligned_views_on_a_simplex_are_the_least() -> None:
    num, t = 5, 2.0
    corners = normalize(torch.eye(num, dtype=F64) - 1 / num, dim=1)
    least = -2 * t * num / (num - 1)
    assert float(decoupled_uniformity(corners, corners, t=t)) == pytest.approx(least, rel=1e-12)
    for seed in range(5):
        moved = corners + 0.2 * draw(2, num, num, seed=seed)
        assert float(decoupled_uniformity(moved, t=t)) > least


def test_it_aligns_views_by_itself() -> None:
    z = draw(2, 8, 4).requires_grad_()
    optimiser = torch.optim.Adam([z], lr=0.05)
    first = float(centroid_alignment(z.detach()))
    for _ in range(150):
        optimiser.zero_grad()
        decoupled_uniformity(z).backward()
        optimiser.step()
    assert first > -0.8
    assert float(centroid_alignment(z.detach())) < -0.99


def test_a_wide_prior_is_solved_in_samples_and_a_narrow_one_in_dimensions() -> None:
    m = draw(6, 3)
    narrow = draw(6, 2, seed=1)
    wide = torch.cat([narrow, torch.zeros(6, 20, dtype=F64)], 1)
    torch.testing.assert_close(smooth(m, narrow, kernel="cosine"), smooth(m, wide, kernel="cosine"))


def test_helpers_of_priors() -> None:
    prior = draw(9, 3)
    distances = torch.pdist(prior)
    assert median_distance(prior) == pytest.approx(float(distances.median()), rel=1e-9)
    z = draw(2, 9, 4)
    torch.testing.assert_close(
        decoupled_uniformity(z, prior=prior, sigma="median"),
        decoupled_uniformity(z, prior=prior, sigma=float(distances.median())),
    )
    units = torch.stack([3 + 1000 * prior[:, 0], prior[:, 1], torch.full((9,), 7.1, dtype=F64)], 1)
    scaled = standardise(units)
    torch.testing.assert_close(scaled.mean(0), torch.zeros(3, dtype=F64))
    torch.testing.assert_close(scaled.std(0, correction=0), torch.tensor([1.0, 1.0, 0.0], dtype=F64))
    with pytest.raises(ValueError, match="prior: expected rows of which at least half of the pairs differ"):
        median_distance(torch.zeros(4))


@pytest.mark.parametrize("sizes", PARTS)
@pytest.mark.parametrize("with_prior", [False, True])
def test_shards_equal_the_whole(with_prior: bool, sizes: list[int]) -> None:
    z = draw(2, 7, 4).requires_grad_()
    options: dict[str, Any] = {"prior": draw(7, 2, seed=1), "sigma": 1.0} if with_prior else {}
    whole = decoupled_uniformity(z, **options)

    def part(rows: slice, offset: int) -> tuple[Tensor, Stats]:
        return decoupled_uniformity(z[:, rows], gathered=z, offset=offset, with_stats=True, **options)

    parts = over_parts(sizes, part)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts, z), torch.autograd.grad(whole, z))


def test_gradcheck() -> None:
    z, prior = draw(2, 5, 3).requires_grad_(), draw(5, seed=1)
    assert torch.autograd.gradcheck(lambda x: decoupled_uniformity(x, prior=prior, sigma=0.7), z)


def test_large_batches_equal_stored_pairs_and_store_none() -> None:
    z = draw(3, 1700, 8).requires_grad_()
    found, expected = decoupled_uniformity(z), of_centroids(normalize(z, dim=2).mean(0))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, z), torch.autograd.grad(expected, z))
    assert 64 * 64 <= largest(lambda: decoupled_uniformity(z, tile=64).backward()) <= 1700 * 1700 / 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("t", [2.0, 100.0])
def test_extremes_are_finite(dtype: torch.dtype, t: float) -> None:
    prior = torch.ones(6, 2, dtype=dtype)
    for rows in (torch.ones(6, 4), torch.zeros(6, 4), torch.cat([torch.ones(3, 4), -torch.ones(3, 4)])):
        z = torch.stack([rows, rows]).to(dtype).requires_grad_()
        loss = decoupled_uniformity(z, prior=prior, kernel="cosine", t=t) + decoupled_uniformity(z, t=t)
        loss.backward()
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        assert torch.isfinite(z.grad).all()


def test_module() -> None:
    z, prior = draw(2, 5, 3), draw(5, 2, seed=1)
    module = DecoupledUniformity(1.5, sigma=0.4, ridge=0.1)
    torch.testing.assert_close(
        module(z, prior=prior), decoupled_uniformity(z, prior=prior, sigma=0.4, ridge=0.1, t=1.5)
    )
    torch.testing.assert_close(module(*z), decoupled_uniformity(z, t=1.5))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"t": 0.0}, "t: expected a finite number > 0"),
        ({"prior": draw(4, 2), "sigma": 1.0}, "prior: expected 5 rows"),
        ({"prior": torch.full((5, 2), math.nan), "sigma": 1.0}, "prior: expected finite values"),
        ({"prior": draw(5, 2)}, "sigma: expected a number or 'median'"),
        ({"prior": draw(5, 2), "sigma": "mean"}, "sigma: expected a number or 'median'"),
        ({"prior": draw(5, 2), "sigma": 0.0}, "sigma: expected a finite number > 0"),
        ({"prior": draw(5, 2), "sigma": 1.0, "ridge": 0.0}, "ridge: expected a finite number > 0"),
        ({"prior": draw(5, 2), "kernel": "linear"}, "kernel: expected one of"),
        ({"gathered": draw(2, 4, 3)}, "offset: expected 0 to -1"),
    ],
)
def test_refuses(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        decoupled_uniformity(draw(2, 5, 3), **arguments)


def test_refuses_views() -> None:
    with pytest.raises(ValueError, match=r"views: expected shape \[V, B, D\]"):
        decoupled_uniformity(draw(5, 3))
    with pytest.raises(ValueError, match="views: expected 2 or more samples"):
        decoupled_uniformity(draw(2, 1, 3))
