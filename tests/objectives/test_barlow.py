"""Barlow Twins: loops over features, closed forms, laws, fewer samples than features.

Legend: V views, N samples, D embedding.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nearfar.objectives import Barlow, barlow, barlow_terms
from objectives.storage import largest

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def corners() -> Tensor:
    """Eight samples whose three features are uncorrelated, of mean 0 and variance 1."""
    return torch.tensor(list(itertools.product([-1.0, 1.0], repeat=3)), dtype=F64)


def by_loops(z: Tensor, weight: float, eps: float) -> float:
    x = z.detach().numpy()
    pairs = []
    for v in range(len(x)):
        for w in range(v + 1, len(x)):
            total = 0.0
            for d in range(x.shape[2]):
                for e in range(x.shape[2]):
                    a, b = x[v, :, d], x[w, :, e]
                    covariance = np.mean((a - a.mean()) * (b - b.mean()))
                    c = covariance / np.sqrt((a.var() + eps) * (b.var() + eps))
                    total += (1 - c) ** 2 if d == e else weight * c**2
            pairs.append(total)
    return float(np.mean(pairs))


@pytest.mark.parametrize("num_views", [2, 3])
@pytest.mark.parametrize(("num", "dim"), [(9, 4), (4, 4), (3, 6)])
def test_equals_loops(num: int, dim: int, num_views: int) -> None:
    z = draw(num_views, num, dim) + 0.5 * draw(1, num, dim, seed=1) + 3
    for weight, eps in ((0.0051, 1e-5), (0.5, 0.1)):
        expected = by_loops(z, weight, eps)
        assert float(barlow(z, off_diagonal=weight, eps=eps)) == pytest.approx(expected, rel=1e-10)
        assert float(Barlow(weight, 0.1, eps=eps)(*z)) == pytest.approx(0.1 * expected, rel=1e-10)
    terms = barlow_terms(z)
    torch.testing.assert_close(barlow(z, off_diagonal=0.3), terms.invariance + 0.3 * terms.redundancy)


def test_the_cheaper_product_is_the_same() -> None:
    wide = draw(2, 7, 6).requires_grad_()  # D x D products; with features twice, N x N products of the same numbers
    twice = torch.cat([wide, wide], 2)
    # each feature's copy correlates with it: four blocks of the matrix, of which two hold the diagonal's values
    terms, double = barlow_terms(wide), barlow_terms(twice)
    torch.testing.assert_close(double.invariance, 2 * terms.invariance)
    cross = torch.stack([torch.corrcoef(torch.cat([*wide.detach()], 1).t())[d, d + 6] for d in range(6)])
    torch.testing.assert_close(double.redundancy, 4 * terms.redundancy + 2 * cross.square().sum(), rtol=1e-4, atol=1e-4)


def test_closed_forms() -> None:
    z = corners()
    zero = torch.tensor(0.0, dtype=F64)
    torch.testing.assert_close(barlow(z, z, eps=1e-12), zero, atol=1e-9, rtol=0)  # perfectly decorrelated
    torch.testing.assert_close(barlow(z, -z, eps=1e-12), zero + 3 * 4)
    unrelated = z[:, [1, 2, 0]]  # each feature is another one of the other view
    torch.testing.assert_close(barlow(z, unrelated, off_diagonal=0.5, eps=1e-12), zero + 3 + 0.5 * 3)
    copies = z[:, :1].expand(8, 4)  # one feature four times
    torch.testing.assert_close(barlow(copies, copies, off_diagonal=0.25, eps=1e-12), zero + 0.25 * 12)
    torch.testing.assert_close(barlow(torch.ones(2, 8, 5, dtype=F64)), zero + 5)  # collapse: D


def test_laws() -> None:
    z = draw(2, 8, 4)
    whole, order, features = barlow(z), torch.randperm(8), torch.tensor([2, 0, 3, 1])
    moved = 3 * z + torch.arange(4)
    for same in (barlow(z[:, order]), barlow(z[:, :, features]), barlow(z.flip(0)), barlow(z[0], z[1])):
        torch.testing.assert_close(same, whole)
    torch.testing.assert_close(barlow(moved), whole, rtol=1e-4, atol=1e-4)  # up to eps
    assert not torch.isclose(barlow(z[0], z[1, order.flip(0)]), whole)


def test_memory_is_that_of_the_smaller_side() -> None:
    z = torch.randn(2, 8, 300)
    assert largest(lambda: barlow(z)) <= z.numel()  # no matrix of 300 x 300


def test_derivatives_and_extremes() -> None:
    assert torch.autograd.gradcheck(barlow, (draw(2, 6, 3).requires_grad_(),))
    assert torch.autograd.gradcheck(barlow, (draw(2, 3, 5).requires_grad_(),))
    for dtype in (torch.float16, torch.bfloat16):
        z = (1e4 * draw(2, 6, 3)).to(dtype).requires_grad_()
        loss = barlow(z)
        loss.backward()
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        assert torch.isfinite(z.grad).all()
    collapsed = torch.ones(2, 6, 3, requires_grad=True)
    barlow(collapsed).backward()
    assert torch.isfinite(collapsed.grad).all()


@pytest.mark.parametrize(
    ("views", "options", "match"),
    [
        ((draw(1, 4, 3),), {}, "views: expected 2 or more views"),
        ((draw(2, 1, 3),), {}, "views: expected 2 or more samples"),
        ((draw(4, 3), draw(5, 3)), {}, "views: expected views of one shape"),
        ((draw(2, 4, 3),), {"off_diagonal": -1.0}, "off_diagonal: expected a finite number of 0 or more"),
        ((draw(2, 4, 3),), {"scale": 0.0}, "scale: expected a finite number > 0"),
        ((draw(2, 4, 3),), {"eps": 0.0}, "eps: expected a finite number > 0"),
    ],
)
def test_refuses(views: tuple[Tensor, ...], options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        barlow(*views, **options)
    with pytest.raises(TypeError, match="views: expected floating point"):
        barlow(torch.ones(2, 4, 3, dtype=torch.long))
