"""The hyperboloid: MERU's oracles of its geometry, finite gradients at the singular points."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nearfar.lorentz import distance, exp_map, exterior_angle, half_aperture, lift, log_map

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def inner(x: Tensor, y: Tensor, c: float) -> Tensor:
    return (x * y).sum(-1) - lift(x, c) * lift(y, c)


@pytest.mark.oracle("meru", 1)
@pytest.mark.parametrize("c", [0.1, 1.0, 1.5])
def test_maps_at_the_root(c: float) -> None:
    v = draw(50, 6)
    v = v / v.norm(dim=1, keepdim=True) * torch.linspace(0.01, 8, 50, dtype=F64)[:, None]
    x = exp_map(v, c)
    torch.testing.assert_close(log_map(x, c), v)
    torch.testing.assert_close(distance(torch.zeros_like(x), x, c), v.norm(dim=1))
    near = x[:25]
    torch.testing.assert_close(inner(near, near, c), torch.full((25,), -1 / c, dtype=F64), rtol=1e-6, atol=1e-6)


def test_the_distance_is_the_acosh_of_the_inner_product() -> None:
    x, y = exp_map(draw(40, 5), 0.7), exp_map(draw(40, 5, seed=1), 0.7)
    torch.testing.assert_close(distance(x, y, 0.7), torch.acosh(-0.7 * inner(x, y, 0.7)) / 0.7**0.5)


@pytest.mark.oracle("meru", 2)
def test_without_curvature_it_is_euclidean() -> None:
    x, y = draw(40, 5), draw(40, 5, seed=1)
    euclidean = (x - y).norm(dim=1)
    torch.testing.assert_close(distance(x, y, 1e-6), euclidean, rtol=1e-4, atol=0)
    torch.testing.assert_close(distance(x.float(), y.float(), 1e-6), euclidean.float(), rtol=1e-4, atol=0)


@pytest.mark.oracle("meru", 3)
def test_collinear_points_and_triangles() -> None:
    v = draw(20, 4)
    x = exp_map(v)
    onwards, back = (exterior_angle(x, exp_map(k * v)) for k in (1.7, 0.4))
    torch.testing.assert_close(onwards, torch.zeros_like(onwards), rtol=0, atol=2e-5)
    torch.testing.assert_close(back, torch.full_like(back, math.pi), rtol=0, atol=2e-5)
    points = exp_map(draw(3, 500, 4, seed=1))
    a, b, c = points
    assert (distance(a, c) <= distance(a, b) + distance(b, c) + 1e-12).all()


def test_the_exterior_angle_is_that_of_a_triangle() -> None:
    """The hyperbolic law of cosines gives the angle at x between root and y; the exterior one is the rest of pi."""
    x, y = exp_map(draw(30, 4)), exp_map(draw(30, 4, seed=1))
    a, b, side = distance(torch.zeros_like(x), x), distance(x, y), distance(torch.zeros_like(y), y)
    cosine = (torch.cosh(a) * torch.cosh(b) - torch.cosh(side)) / (torch.sinh(a) * torch.sinh(b))
    torch.testing.assert_close(exterior_angle(x, y), math.pi - torch.acos(cosine))


@pytest.mark.oracle("meru", 4)
@pytest.mark.parametrize("c", [0.25, 1.0])
def test_cones_narrow_outwards(c: float) -> None:
    radius = torch.linspace(0.02, 3, 200, dtype=F64) / c**0.5
    x = torch.stack([radius, torch.zeros_like(radius)], 1)
    angle = half_aperture(x, c, min_radius=0.1)
    wide = c**0.5 * radius <= 0.2
    assert (angle[wide] == math.asin(1 - 1e-12)).all()
    assert (angle[~wide] < math.asin(1 - 1e-12)).all()
    assert (angle[~wide].diff() < 0).all()
    torch.testing.assert_close(angle[~wide], torch.asin(0.2 / (c**0.5 * radius[~wide])))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, F64])
def test_finite_at_singular_points(dtype: torch.dtype) -> None:
    v = draw(6, 4)
    pairs = ((v, v), (v, 2 * v), (v, 0.5 * v), (v, -v), (0 * v, v), (v, 0 * v), (0 * v, 0 * v), (v, v + 1e-7),
             (100 * v, 100 * v + 1), (1e-6 * v, 1e-6 * v))  # fmt: skip
    for one, other in pairs:
        a, b = one.to(dtype).requires_grad_(), other.to(dtype).requires_grad_()
        c = torch.tensor(1.0, dtype=F64 if dtype == F64 else torch.float32, requires_grad=True)
        x, y = exp_map(a, c), exp_map(b, c)
        for value in (distance(x, y, c), exterior_angle(x, y, c), half_aperture(x, c), log_map(x, c)):
            grads = torch.autograd.grad(value.sum(), (a, b, c), retain_graph=True, allow_unused=True)
            assert torch.isfinite(value).all()
            assert all(torch.isfinite(g).all() for g in grads if g is not None)


def test_derivatives() -> None:
    a, b = draw(3, 4).requires_grad_(), draw(3, 4, seed=1).requires_grad_()
    c = torch.tensor(0.6, dtype=F64, requires_grad=True)
    for f in (distance, exterior_angle):
        assert torch.autograd.gradcheck(lambda a, b, c, f=f: f(exp_map(a, c), exp_map(b, c), c), (a, b, c))
    assert torch.autograd.gradcheck(lambda a, c: log_map(a, c), (a, c))
    assert torch.autograd.gradcheck(lambda a, c: half_aperture(a, c), (a, c))


def test_refuses() -> None:
    with pytest.raises(ValueError, match="curvature: expected a finite number > 0, received 0.0"):
        distance(draw(2, 3), draw(2, 3), 0.0)
    with pytest.raises(ValueError, match="min_radius: expected a finite number > 0"):
        half_aperture(draw(2, 3), min_radius=-1.0)
