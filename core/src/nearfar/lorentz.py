"""The hyperboloid of curvature -c: maps at its root, distances, and cones of entailment.

A point is given by its D space components x; the time component x_t = sqrt(1/c + |x|^2) follows. Everything is
computed in float32 (float64 for float64 input), and finite with its gradient for finite input.

Source: Desai, Nickel, Rajpurohit, Johnson, Vedantam, "Hyperbolic Image-Text Representations", ICML 2023; cones: Ganea,
Becigneul, Hofmann, "Hyperbolic Entailment Cones for Learning Hierarchical Embeddings", ICML 2018.

Legend: D embedding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nearfar.checks import expect_positive

__all__ = ["distance", "exp_map", "exterior_angle", "half_aperture", "lift", "log_map"]

Curvature = float | Tensor
LARGEST = math.asinh(2.0**15)
"""largest sqrt(c) |v| of a lifted vector: float32 squares of its image are still far from overflow"""


def lift(x: Tensor, curvature: Curvature = 1.0) -> Tensor:
    """Time component of points, x_t = sqrt(1/c + |x|^2).

    Args:
        x: space components [..., D].
        curvature: c > 0.

    Returns:
        [...].
    """
    return torch.sqrt(1.0 / _curvature(curvature) + x.square().sum(-1))


def exp_map(v: Tensor, curvature: Curvature = 1.0) -> Tensor:
    """Point that a tangent vector at the root leads to, exp(v) = sinh(sqrt(c) |v|) v / (sqrt(c) |v|).

    Args:
        v: [..., D].
        curvature: c > 0; may carry gradient.

    Returns:
        Space components [..., D], in float32 (float64 for float64 input); |v| is its distance from the root.

    Notes:
        sqrt(c) |v| is held at asinh(2^15) or below. At v = 0 the derivative is the identity.
    """
    v = _wide(v)
    scaled = _norm(v) * _curvature(curvature) ** 0.5
    held = scaled.clamp(max=LARGEST)
    return v * (torch.sinh(held) / scaled).unsqueeze(-1)


def log_map(x: Tensor, curvature: Curvature = 1.0) -> Tensor:
    """Tangent vector at the root that leads to a point, the inverse of `exp_map`: asinh(sqrt(c) |x|) x / (sqrt(c) |x|).

    Args:
        x: space components [..., D].
        curvature: c > 0.

    Returns:
        [..., D].
    """
    x = _wide(x)
    scaled = _norm(x) * _curvature(curvature) ** 0.5
    return x * (torch.asinh(scaled) / scaled).unsqueeze(-1)


def distance(x: Tensor, y: Tensor, curvature: Curvature = 1.0) -> Tensor:
    """Geodesic distance of points row by row, acosh(-c <x, y>) / sqrt(c),  <x, y> = x . y - x_t y_t.

    Args:
        x, y: space components [..., D].
        curvature: c > 0.

    Returns:
        [...].

    Notes:
        As 2 asinh(sqrt(u / 2)) with u = c/2 (|x - y|^2 - (x_t - y_t)^2), which near points do not round to 0, as the
        acosh of nearly 1 does. Equal points get no gradient.
    """
    c = _curvature(curvature)
    u = _excess(_wide(x), _wide(y), c)
    positive = u > torch.finfo(u.dtype).tiny
    root = torch.sqrt(torch.where(positive, u / 2, 1.0))
    return torch.where(positive, 2 * torch.asinh(root), 0.0) / c**0.5


def half_aperture(x: Tensor, curvature: Curvature = 1.0, *, min_radius: float = 0.1) -> Tensor:
    """Half-aperture of the cone of points that x entails, asin(2 K / (sqrt(c) |x|)); pi/2 where |x| is small.

    Args:
        x: space components [..., D].
        curvature: c > 0.
        min_radius: K; within sqrt(c) |x| <= 2 K the cone is a half space.

    Returns:
        [...], angles.
    """
    expect_positive("min_radius", min_radius)
    x = _wide(x)
    ratio = 2 * min_radius / (_norm(x) * _curvature(curvature) ** 0.5)
    return torch.asin(_inside(ratio))


def exterior_angle(x: Tensor, y: Tensor, curvature: Curvature = 1.0) -> Tensor:
    """Angle at x between the geodesics from the root onwards and to y; 0 where y lies straight behind x.

    ext = acos( (y_t + c <x, y> x_t) / (|x| sqrt((c <x, y>)^2 - 1)) )

    Args:
        x, y: space components [..., D].
        curvature: c > 0.

    Returns:
        [...], from 0 to pi; pi/2 without gradient at y = x and x = 0, where there is none.
    """
    c = _curvature(curvature)
    x, y = _wide(x), _wide(y)
    u = _excess(x, y, c)  # (c <x, y>)^2 - 1 = u (u + 2)
    square = x.square().sum(-1)
    # In y_t + c <x, y> x_t the terms y_t cancel, since x_t^2 = 1/c + |x|^2.
    above = c * ((x * y).sum(-1) * lift(x, c) - square * lift(y, c))
    below = square * u * (u + 2)
    exists = below > (1e-16 if x.dtype == torch.float64 else 1e-8)
    return torch.acos(_inside(torch.where(exists, above / torch.where(exists, below, 1.0).sqrt(), 0.0)))


def _excess(x: Tensor, y: Tensor, c: Curvature) -> Tensor:
    """u = -c <x, y> - 1 >= 0, without the cancellation that near points have in it."""
    # x_t - y_t = (x - y) . (x + y) / (x_t + y_t)
    time = ((x - y) * (x + y)).sum(-1) / (lift(x, c) + lift(y, c))
    return (c / 2 * ((x - y).square().sum(-1) - time.square())).clamp_min(0.0)


def _curvature(c: Curvature) -> Curvature:
    number = float(c.detach()) if isinstance(c, Tensor) else c
    expect_positive("curvature", number)
    return c


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _eps(x: Tensor) -> float:
    return 1e-12 if x.dtype == torch.float64 else 1e-6


def _norm(x: Tensor) -> Tensor:
    """|x|, at least 1e-8; shorter vectors get no gradient from it."""
    square = x.square().sum(-1)
    return torch.where(square > 1e-16, square, 1e-16).sqrt()


def _inside(x: Tensor) -> Tensor:
    """x held so far within (-1, 1) that asin and acos have finite slopes."""
    return x.clamp(-1 + _eps(x), 1 - _eps(x))
