"""VICReg: loops in numpy, its three terms in closed form, laws, fewer samples than features.

Legend: V views, N samples, D embedding.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nearfar.objectives import VICReg, vicreg, vicreg_terms
from objectives.storage import largest

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def by_loops(z: Tensor, gamma: float, eps: float) -> tuple[float, float, float]:
    x = z.detach().numpy()
    num_views, _, dim = x.shape
    near = [np.mean((x[v] - x[w]) ** 2) for v in range(num_views) for w in range(v)]
    hinge, apart = [], []
    for view in x:
        covariance = np.cov(view, rowvar=False)
        hinge += [max(0.0, gamma - math.sqrt(covariance[d, d] + eps)) for d in range(dim)]
        apart.append(sum(covariance[d, e] ** 2 for d in range(dim) for e in range(dim) if d != e) / dim)
    return float(np.mean(near)), float(np.mean(hinge)), float(2 * np.mean(apart))


@pytest.mark.parametrize("num_views", [2, 4])
@pytest.mark.parametrize(("num", "dim"), [(9, 4), (3, 6)])
def test_equals_loops(num: int, dim: int, num_views: int) -> None:
    z = 0.8 * draw(num_views, num, dim) + draw(1, num, dim, seed=1) + 3
    for gamma, eps in ((1.0, 1e-4), (2.0, 0.3)):
        expected = by_loops(z, gamma, eps)
        assert [float(term) for term in vicreg_terms(z, gamma=gamma, eps=eps)] == pytest.approx(expected, rel=1e-10)
        total = 25 * expected[0] + 25 * expected[1] + expected[2]
        assert float(vicreg(z, gamma=gamma, eps=eps)) == pytest.approx(total, rel=1e-10)
        assert float(VICReg(1.0, 2.0, 3.0, gamma=gamma, eps=eps)(*z)) == pytest.approx(
            expected[0] + 2 * expected[1] + 3 * expected[2], rel=1e-10
        )


def test_closed_forms() -> None:
    corners = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=3)), dtype=F64)  # variance 8/7, uncorrelated
    assert [float(term) for term in vicreg_terms(corners, corners)] == [0.0, 0.0, 0.0]
    assert float(vicreg(corners, corners)) == 0.0
    short = vicreg_terms(corners / 2, corners / 2, eps=1e-12)
    assert float(short.variance) == pytest.approx(1 - math.sqrt(8 / 7) / 2)
    collapsed = vicreg_terms(torch.ones(2, 8, 5, dtype=F64), gamma=1.5, eps=1e-12)
    assert [float(term) for term in collapsed] == pytest.approx([0.0, 1.5, 0.0], abs=1e-5)  # gamma
    apart = vicreg_terms(torch.zeros(8, 3, dtype=F64), torch.full((8, 3), 3.0, dtype=F64))
    assert float(apart.invariance) == 9.0
    copies = corners[:, :1].expand(8, 4)  # one feature four times: 12 covariances of 8/7 over 4, of two views
    assert float(vicreg_terms(copies, copies).covariance) == pytest.approx(2 * 3 * (8 / 7) ** 2)


def test_laws() -> None:
    z = draw(3, 8, 4)
    order, features = torch.randperm(8), torch.tensor([2, 0, 3, 1])
    whole = vicreg(z)
    for same in (vicreg(z[:, order]), vicreg(z[:, :, features]), vicreg(z.flip(0)), vicreg(*z), vicreg(z + 5)):
        torch.testing.assert_close(same, whole)
    terms, moved = vicreg_terms(z), vicreg_terms(torch.stack([z[0], z[1, order.flip(0)], z[2]]))
    torch.testing.assert_close(moved[1:], terms[1:])  # pairing is the invariance's matter alone
    assert not torch.isclose(moved.invariance, terms.invariance)


def test_memory_is_that_of_the_smaller_side() -> None:
    z = torch.randn(2, 8, 300)
    assert largest(lambda: vicreg(z)) <= z.numel()


def test_derivatives_and_extremes() -> None:
    assert torch.autograd.gradcheck(vicreg, (0.5 * draw(2, 6, 3).requires_grad_(),))
    assert torch.autograd.gradcheck(vicreg, (0.5 * draw(3, 3, 5).requires_grad_(),))
    for dtype in (torch.float16, torch.bfloat16):
        z = (10 * draw(2, 6, 3)).to(dtype).requires_grad_()
        loss = vicreg(z)
        loss.backward()
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        assert torch.isfinite(z.grad).all()
    collapsed = torch.ones(2, 6, 3, requires_grad=True)
    vicreg(collapsed).backward()
    assert torch.isfinite(collapsed.grad).all()


@pytest.mark.parametrize(
    ("views", "options", "match"),
    [
        ((draw(1, 4, 3),), {}, "views: expected 2 or more views"),
        ((draw(2, 1, 3),), {}, "views: expected 2 or more samples"),
        ((draw(2, 4, 3),), {"covariance": -1.0}, "covariance: expected a finite number of 0 or more"),
        ((draw(2, 4, 3),), {"gamma": 0.0}, "gamma: expected a finite number > 0"),
        ((draw(2, 4, 3),), {"eps": 0.0}, "eps: expected a finite number > 0"),
    ],
)
def test_refuses(views: tuple[Tensor, ...], options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        vicreg(*views, **options)
    with pytest.raises(TypeError, match="views: expected floating point"):
        vicreg(torch.ones(2, 4, 3, dtype=torch.long))
