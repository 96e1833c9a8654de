"""Information of a correlation: closed forms, numpy, what changes nothing, masks and constant rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from nearfar.objectives import correlation_information, gaussian_information

F64 = torch.float64


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.oracle("micse", 2)
@pytest.mark.parametrize("rho", [-0.9, 0.5, 0.8, 0.99])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_known_correlations(rho: float, dtype: torch.dtype) -> None:
    u, noise = draw(2, 100_000, dtype=dtype)
    v = rho * u + math.sqrt(1 - rho**2) * noise
    expected = -0.5 * math.log(1 - rho**2)
    assert float(correlation_information(u[None], v[None])) == pytest.approx(expected, rel=0.02)


def test_rows_are_those_of_numpy() -> None:
    u, v = draw(5, 40), draw(5, 40, seed=1) + draw(5, 40)
    rho = np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(u.numpy(), v.numpy(), strict=True)])
    np.testing.assert_allclose(correlation_information(u, v).numpy(), -0.5 * np.log(1 - rho**2), rtol=1e-10)
    one = gaussian_information(u[0, :, None], v[0, :, None])
    torch.testing.assert_close(correlation_information(u, v)[0], one)


@pytest.mark.oracle("micse", 3)
def test_independent_rows_have_little_and_equal_rows_what_the_clamp_allows() -> None:
    num = 150
    u, v = draw(4000, num, dtype=torch.float32), draw(4000, num, seed=1, dtype=torch.float32)
    assert float(correlation_information(u, v).mean()) == pytest.approx(1 / (2 * num), rel=0.15)
    for eps in (1e-6, 1e-3):
        found = correlation_information(u[:3], u[:3], eps=eps)
        torch.testing.assert_close(found, torch.full((3,), -0.5 * math.log(eps)))
        torch.testing.assert_close(correlation_information(u[:3], -u[:3], eps=eps), found)


@pytest.mark.oracle("micse", 4)
def test_affine_maps_of_a_row_change_nothing() -> None:
    u, v = draw(6, 50), draw(6, 50, seed=1) + draw(6, 50)
    expected = correlation_information(u, v)
    for scale, shift in ((3.0, 0.0), (0.01, 7.0), (-2.0, 1.0)):
        torch.testing.assert_close(correlation_information(scale * u + shift, v), expected)
        torch.testing.assert_close(correlation_information(u, scale * v + shift), expected)
    torch.testing.assert_close(correlation_information(v, u), expected)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(correlation_information(u[:, order], v[:, order]), expected)


def test_what_is_masked_counts_for_nothing() -> None:
    u, v = draw(3, 20), draw(3, 20, seed=1)
    mask = draw(3, 20, seed=2) > 0
    expected = torch.cat([correlation_information(a[m][None], b[m][None]) for a, b, m in zip(u, v, mask, strict=True)])
    torch.testing.assert_close(correlation_information(u, v, mask), expected)
    wild = torch.where(mask, u, float("-inf")).requires_grad_()
    found = correlation_information(wild, torch.where(mask, v, float("nan")), mask)
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found.sum(), wild)
    assert torch.isfinite(gradient).all()
    assert (gradient[~mask] == 0).all()
    assert (gradient[mask] != 0).all()


def test_constant_rows_have_none_and_no_gradient() -> None:
    u = torch.stack([torch.full((30,), 0.1), torch.full((30,), -3.3), torch.zeros(30)]).requires_grad_()
    found = correlation_information(u, draw(3, 30, dtype=torch.float32))
    found.sum().backward()
    assert (found == 0).all()
    assert (u.grad == 0).all()
    mask = torch.zeros(3, 30, dtype=torch.bool)
    mask[0, 0] = True
    assert (correlation_information(draw(3, 30), draw(3, 30), mask) == 0).all()
    small = 1e-3 * draw(1, 30, dtype=torch.float32) + 5
    assert float(correlation_information(small, small)) == pytest.approx(-0.5 * math.log(1e-6))


def test_gradients_and_precision() -> None:
    u, v = draw(3, 12).requires_grad_(), draw(3, 12, seed=1).requires_grad_()
    mask = draw(3, 12, seed=2) > -0.5
    assert torch.autograd.gradcheck(lambda a, b: correlation_information(a, b, mask), (u, v))
    half = correlation_information(u.bfloat16(), v.bfloat16())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, correlation_information(u, v).float(), atol=0.02, rtol=0.05)
    equal = u.detach().clone().requires_grad_()
    correlation_information(equal, equal.detach()).sum().backward()
    assert (equal.grad == 0).all()


def test_bad_input() -> None:
    u = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"u: expected shape \[R, N\], received \(3,\)"):
        correlation_information(u[0], u[0])
    with pytest.raises(ValueError, match=r"v: expected the shape of u, \(2, 3\), received \(1, 3\)"):
        correlation_information(u, u[:1])
    with pytest.raises(ValueError, match=r"mask: expected the shape of u, \(2, 3\), received \(2, 2\)"):
        correlation_information(u, u, torch.ones(2, 2, dtype=torch.bool))
    for eps in (0.0, 1.0):
        with pytest.raises(ValueError, match=r"eps: expected a number in \(0, 1\)"):
            correlation_information(u, u, eps=eps)
