"""Outlines of things as signed distances in a unit disc, negative within.

A thing's own frame has u to the right and v down; its circumscribed radius is 1, so that a size means the same for all
shapes. Distances are exact near edges, which is where coverage of a pixel is read off.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def circle(u: Tensor, v: Tensor) -> Tensor:
    """A disc."""
    return torch.hypot(u, v) - 0.92


def ring(u: Tensor, v: Tensor) -> Tensor:
    """A disc with a round hole."""
    return (torch.hypot(u, v) - 0.72).abs() - 0.24


def square(u: Tensor, v: Tensor) -> Tensor:
    """Upright on its side."""
    return _box(u, v, 0.71, 0.71)


def bar(u: Tensor, v: Tensor) -> Tensor:
    """A rectangle, wider than high."""
    return _box(u, v, 0.94, 0.34)


def cross(u: Tensor, v: Tensor) -> Tensor:
    """Two bars of one length."""
    return torch.minimum(_box(u, v, 0.93, 0.31), _box(u, v, 0.31, 0.93))


def triangle(u: Tensor, v: Tensor) -> Tensor:
    """Equilateral, a corner up."""
    v = v - 0.08
    return torch.maximum(v, 0.5 * math.sqrt(3) * u.abs() - 0.5 * v) - 0.48


def star(u: Tensor, v: Tensor) -> Tensor:
    """Five points, one up."""
    outer, inner, half = 1.0, 0.43, math.pi / 5
    # Folded to one half of one point: the tip lies on the first axis, the notch at the angle `half`.
    angle = torch.atan2(u.abs(), -v)
    angle = (angle - 2 * half * torch.round(angle / (2 * half))).abs()
    radius = torch.hypot(u, v)
    x, y = radius * angle.cos(), radius * angle.sin()
    dx, dy = inner * math.cos(half) - outer, inner * math.sin(half)
    return ((x - outer) * dy - y * dx) / math.hypot(dx, dy)


def heart(u: Tensor, v: Tensor) -> Tensor:
    """Two discs on the upper sides of a square that stands on a corner."""
    u = u.abs()
    side = 0.545  # of the square, halved
    reach = side / math.sqrt(2)
    v = v - 0.18
    corner = torch.maximum((u + v).abs(), (u - v).abs()) / math.sqrt(2) - side
    return torch.minimum(corner, torch.hypot(u - reach, v + reach) - side)


def moon(u: Tensor, v: Tensor) -> Tensor:
    """A crescent, open to the right."""
    u = u - 0.1
    return torch.maximum(torch.hypot(u, v) - 0.95, 0.72 - torch.hypot(u - 0.55, v))


def _box(u: Tensor, v: Tensor, a: float, b: float) -> Tensor:
    return torch.maximum(u.abs() - a, v.abs() - b)


DISTANCE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    function.__name__: function for function in (circle, square, triangle, star, cross, ring, heart, moon, bar)
}

# Degrees after which a shape looks like itself again; 0: at any angle.
SYMMETRY = {
    "circle": 0.0, "ring": 0.0, "square": 90.0, "cross": 90.0, "triangle": 120.0, "star": 72.0, "heart": 360.0,
    "moon": 360.0, "bar": 180.0,
}  # fmt: skip


_WAVE = 2 * math.pi / 0.62  # radians over a unit of length
_CHECK = _WAVE / 1.3


def shade(texture: str, u: Tensor, v: Tensor) -> Tensor:
    """How dark a texture is in a thing's own frame, from 0 to 1."""
    if texture == "plain":
        return torch.zeros_like(u)
    if texture == "striped":
        return _edge((_WAVE * (u + v) / math.sqrt(2)).sin())
    if texture == "dotted":
        return _edge(1.3 * (_WAVE * u).cos() * (_WAVE * v).cos() - 0.3)
    return _edge(1.6 * (_CHECK * u).sin() * (_CHECK * v).sin())


def waves(texture: str, u: Tensor, v: Tensor) -> Tensor:
    """[N, k] waves whose sums give a texture at any phase, roughly, at points u, v [N]."""
    if texture == "striped":
        along = _WAVE * (u + v) / math.sqrt(2)
        return torch.stack([along.cos(), along.sin()], dim=1)
    rate = _WAVE if texture == "dotted" else _CHECK
    across, down = (rate * u, rate * v)
    return torch.stack([f * g for f in (across.cos(), across.sin()) for g in (down.cos(), down.sin())], dim=1)


def _edge(wave: Tensor) -> Tensor:
    """A wave steepened to a band, with a soft edge."""
    return (0.5 + 1.2 * wave).clamp_(0, 1)
