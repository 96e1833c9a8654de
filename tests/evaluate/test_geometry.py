from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from scipy.special import i0e, iv

from nearfar.evaluate import collapse, geometry


def test_measures_equal_numpy() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2500, 6, generator=generator) * torch.tensor([3.0, 2, 1, 0.5, 0.1, 0]) + 0.3  # over two tiles
    views = z + 0.1 * torch.randn(2500, 6, generator=generator)
    found = geometry(z, views)
    u, v = (a.double().numpy() / np.linalg.norm(a.double().numpy(), axis=1, keepdims=True) for a in (z, views))
    assert found["alignment"] == pytest.approx(((u - v) ** 2).sum(1).mean(), rel=1e-5)
    assert found["uniformity"] == pytest.approx(np.log(np.exp(-2 * pdist(u, "sqeuclidean")).mean()), rel=1e-5)
    s = np.linalg.svd(z.double().numpy(), compute_uv=False)
    share = s / s.sum()
    assert found["effective_rank"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-5)
    assert found["std"] == pytest.approx(u.std(0).mean() * math.sqrt(6), rel=1e-5)
    assert found["dead_dimensions"] == 1
    assert (found["rows"], found["dimensions"]) == (2500, 6)
    assert "alignment" not in geometry(z)


def test_uniform_rows_have_the_values_theory_gives() -> None:
    z = torch.randn(6000, 2, generator=torch.Generator().manual_seed(1))
    found = geometry(z)
    assert found["uniformity"] == pytest.approx(math.log(i0e(4.0)), abs=0.02)  # on the circle: exp(-4) I_0(4)
    assert found["effective_rank"] == pytest.approx(2, abs=0.01)
    assert found["std"] == pytest.approx(1, abs=0.02)
    three = geometry(torch.randn(6000, 3, generator=torch.Generator().manual_seed(1)))
    sphere = math.sqrt(math.pi / 8) * iv(0.5, 4.0) * math.exp(-4)  # on the sphere in 3-d: sinh(4) exp(-4) / 4
    assert three["uniformity"] == pytest.approx(math.log(sphere), abs=0.02)
    assert sphere == pytest.approx(math.sinh(4) * math.exp(-4) / 4)


def test_a_sample_stands_for_all_and_is_seeded() -> None:
    z = torch.randn(4000, 4, generator=torch.Generator().manual_seed(2))
    whole, part = geometry(z), geometry(z, max_rows=1000)
    assert part == geometry(z, max_rows=1000)
    assert part["uniformity"] != whole["uniformity"]
    assert part["uniformity"] == pytest.approx(whole["uniformity"], abs=0.03)


def test_more_dimensions_than_rows() -> None:
    z = torch.eye(5, 40)
    assert geometry(z)["effective_rank"] == pytest.approx(5)
    assert geometry(z)["dead_dimensions"] == 35


def test_collapse_is_told_in_plain_words() -> None:
    generator = torch.Generator().manual_seed(0)
    healthy = torch.randn(500, 32, generator=generator)
    assert collapse(geometry(healthy)) is None
    assert collapse(geometry(healthy.relu() + 0.1)) is None  # features after a ReLU, all in one orthant
    clusters = torch.randn(10, 32, generator=generator)[torch.arange(500) % 10]
    assert collapse(geometry(clusters + 0.01 * healthy)) is None  # ten classes, tight
    assert "nearly the same" in collapse(geometry(torch.ones(500, 32) + 1e-3 * healthy))
    assert "nearly the same" in collapse(geometry(torch.zeros(500, 32)))
    line = torch.randn(500, 1, generator=generator) @ torch.randn(1, 32, generator=generator)
    assert "dimensional collapse: embeddings use about 1.0 of 32" in collapse(geometry(line))
    dead = healthy * (torch.arange(32) < 10)
    assert "22 of 32 dimensions are the same for every sample" in collapse(geometry(dead))


def test_zero_rows_are_finite_and_bad_input_is_named() -> None:
    zero = geometry(torch.zeros(4, 3))
    assert all(math.isfinite(value) for value in zero.values())
    assert zero["effective_rank"] == 0
    with pytest.raises(ValueError, match="z: expected at least 2 rows, received 1"):
        geometry(torch.ones(1, 3))
    with pytest.raises(ValueError, match="z: expected finite features"):
        geometry(torch.full((2, 2), torch.nan))
    with pytest.raises((ValueError, TypeError), match="views"):
        geometry(torch.ones(3, 2), torch.ones(2, 2))
    with pytest.raises(ValueError, match="max_rows"):
        geometry(torch.ones(3, 2), max_rows=1)
