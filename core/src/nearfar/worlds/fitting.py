"""Fits one thing to pixels by rendering it.

Shapes: P pixels, N guesses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nearfar.worlds.factors import Factors
from nearfar.worlds.render import Render
from nearfar.worlds.shapes import DISTANCE, SYMMETRY, shade

TURN_STEP = 15.0  # degrees
_COVERED = 0.02  # error a pixel of lying under something else


@dataclass
class Guess:
    """One thing under one hypothesis, with its error."""

    shape: str
    colour: int
    texture: str
    x: float
    y: float
    radius: float
    angle: float
    error: float = math.inf


class Window(NamedTuple):
    """Pixels [P] about a thing: where they are, whether they show it or the ground, and products of colours.

    With the ground g, a pixel p and a thing's colour c: `far` = |g - p|^2, `along` = c (g - p), `aside` = g (g - p).
    """

    x: Tensor
    y: Tensor
    known: Tensor
    far: Tensor
    along: Tensor
    aside: Tensor
    cc: float
    cg: float
    gg: float

    def error(self, cover: Tensor, tone: Tensor) -> Tensor:
        """|g + cover (tone c - g) - p|^2 of every guess and pixel, at most 0.5."""
        square = self.cc * tone.square() - 2 * self.cg * tone + self.gg
        return (self.far + cover * (cover * square + 2 * (tone * self.along - self.aside))).clamp_max(0.5)


def window(
    guesses: Sequence[Guess], reach: int, image: Tensor, label: Tensor, ground: int, ground_rgb: Tensor, rgb: Tensor
) -> Window:
    """The pixels that the guesses, all of the colour `rgb`, may touch.

    Args:
        reach: pixels from a centre.
        label: [H, H] numbers of colours.
    """
    x1, y1 = (max(0, int(min(getattr(guess, axis) for guess in guesses)) - reach) for axis in "xy")
    x2, y2 = (int(max(getattr(guess, axis) for guess in guesses)) + reach + 1 for axis in "xy")
    names = label[y1:y2, x1:x2]
    step_y, step_x = (torch.arange(start, start + num) + 0.5 for start, num in zip((y1, x1), names.shape, strict=True))
    y, x = torch.meshgrid(step_y, step_x, indexing="ij")
    known = (names == ground) | (names == guesses[0].colour)
    off = ground_rgb - image[:, y1:y2, x1:x2].flatten(1).T
    return Window(
        x.flatten(), y.flatten(), known.flatten(), off.square().sum(dim=1), off @ rgb, off @ ground_rgb,
        float(rgb @ rgb), float(rgb @ ground_rgb), float(ground_rgb @ ground_rgb),
    )  # fmt: skip


def frame(radius: Tensor | float, angle: Tensor | float, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Offsets from a thing's centre in its own frame."""
    turn = torch.deg2rad(torch.as_tensor(angle, dtype=torch.float32))
    u, v = x * turn.cos() + y * turn.sin(), y * turn.cos() - x * turn.sin()
    return u / radius, v / radius


def cover(shape: str, radius: Tensor | float, u: Tensor, v: Tensor) -> Tensor:
    """Share of each pixel that a shape covers, at points of its own frame."""
    return (0.5 - DISTANCE[shape](u, v) * radius).clamp(0, 1)


def _moves(step: float, turns: bool) -> list[tuple[float, ...]]:
    """Staying, and a step along each of x, y, radius and, if things are turned, angle."""
    sizes = (step, step, step, 8 * step)[: 4 if turns else 3]
    one = [
        tuple(sign * size if at == axis else 0.0 for at in range(4))
        for axis, size in enumerate(sizes)
        for sign in (1, -1)
    ]
    return [(0.0, 0.0, 0.0, 0.0), *one]


def fit(
    guess: Guess, view: Window, factors: Factors, render: Render, steps: Sequence[float], first: bool = False
) -> Guess:
    """Position, radius, angle and texture that render nearest to the pixels, by ever finer steps.

    Args:
        steps: in pixels; angles move by 8 degrees a pixel.
        first: whether the angle may be that of another symmetric position.
    """
    turns = factors.turn[0] < factors.turn[1]
    rounds = [_moves(step, turns) for step in steps]
    if first and turns:
        # Outlines repeat at some angles at which shades and textures do not, so those are told apart first.
        period = SYMMETRY[guess.shape] or TURN_STEP
        rounds.insert(0, [(0, 0, 0, k * period) for k in range(round(360 / period))])
    for moves in rounds:
        trial = torch.tensor([guess.x, guess.y, guess.radius, guess.angle]) + torch.tensor(moves)
        cx, cy, radius, angle = (part[:, None] for part in trial.unbind(dim=1))
        u, v = frame(radius, angle, view.x - cx, view.y - cy)
        covered = cover(guess.shape, radius, u, v)
        unseen = _COVERED * (covered * ~view.known).sum(dim=1)
        shaded = torch.where(v < 0, 1.0, 1 - render.parts)
        for name in factors.textures:
            tone = shaded if name == "plain" else shaded * (1 - render.texture * shade(name, u, v))
            error = (view.error(covered, tone) * view.known).sum(dim=1) + unseen
            value, i = error.min(dim=0)
            if float(value) < guess.error:
                x, y, r, a = trial[int(i)].tolist()
                guess = Guess(guess.shape, guess.colour, name, x, y, r, a, float(value))
    return guess
