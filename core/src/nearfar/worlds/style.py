"""How a picture looks apart from what it shows: palette, weather, light, blur and noise.

All of it is arithmetic on single pixels and their neighbours, drawn by counter, so that a picture does not depend on
its batch. Shapes: B scenes, H and W the side of the image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from nearfar.checks import expect, expect_choice
from nearfar.rng import Rng

_CLEAR = {
    "red": (0.90, 0.12, 0.14), "orange": (1.00, 0.52, 0.05), "yellow": (0.98, 0.88, 0.10), "green": (0.10, 0.68, 0.20),
    "cyan": (0.10, 0.82, 0.86), "blue": (0.13, 0.28, 0.92), "purple": (0.58, 0.16, 0.78), "pink": (1.00, 0.50, 0.72),
    "white": (0.97, 0.97, 0.97), "grey": (0.46, 0.46, 0.46), "black": (0.05, 0.05, 0.05),
}  # fmt: skip


def _toned(tint: tuple[float, float, float], share: float, gain: float) -> dict[str, tuple[float, float, float]]:
    """The clear palette mixed with a tint and darkened."""
    mixed = {
        name: [(1 - share) * a + share * b for a, b in zip(rgb, tint, strict=True)] for name, rgb in _CLEAR.items()
    }
    return {name: (gain * r, gain * g, gain * b) for name, (r, g, b) in mixed.items()}


PALETTES: Mapping[str, Mapping[str, tuple[float, float, float]]] = {
    "clear": _CLEAR,
    "pastel": _toned((1.0, 1.0, 1.0), 0.35, 0.98),
    "dusk": _toned((0.25, 0.15, 0.55), 0.30, 0.85),
    "sepia": _toned((0.75, 0.55, 0.30), 0.40, 0.95),
}
WEATHER = ("clear", "fog", "rain", "snow", "shadow", "night")


@dataclass(frozen=True)
class Style:
    """Look of a picture.

    Args:
        palette: what the names of colours look like, from `PALETTES`.
        tint: largest deviation of each thing's and each ground's own RGB from the palette, in [0, 1] units.
        light: range of the factor on all values of a picture.
        weather: from `WEATHER`; fog pales what is far, rain and snow lie over everything, a shadow falls over a half
            plane, night darkens and cools.
        strength: of the weather, from 0 to 1.
        blur: standard deviation in pixels.
        noise: standard deviation of each value, in [0, 1] units.
    """

    palette: str = "clear"
    tint: float = 0.02
    light: tuple[float, float] = (1.0, 1.0)
    weather: str = "clear"
    strength: float = 0.5
    blur: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        expect_choice("palette", self.palette, PALETTES)
        expect_choice("weather", self.weather, WEATHER)
        expect(0 <= self.tint <= 0.5, "tint", "from 0 to 0.5", self.tint)
        expect(0 < self.light[0] <= self.light[1], "light", "a range above 0", self.light)
        expect(0 <= self.strength <= 1, "strength", "from 0 to 1", self.strength)
        expect(0 <= self.blur < 20, "blur", "at least 0 and below 20 pixels", self.blur)
        expect(0 <= self.noise <= 2, "noise", "from 0 to 2", self.noise)

    @property
    def plain(self) -> bool:
        """Whether a picture stays as it was drawn."""
        return self.light == (1, 1) and self.weather == "clear" and self.blur == 0 and self.noise == 0


def rgb_of(palette: str, names: tuple[str, ...]) -> Tensor:
    """float32 [N, 3] in [0, 1] of the colours with these names."""
    return torch.tensor([PALETTES[palette][name] for name in names])


def apply(image: Tensor, depth: Tensor, style: Style, index: Tensor, rng: Rng, frame: int = 0) -> Tensor:
    """Weather, light, blur and noise, in that order.

    Args:
        image: float [B, 3, H, W] in [0, 1].
        depth: [B, H, W] in [0, 1], 1 the farthest.
        frame: of a clip; light and noise are drawn for each anew.
    """
    image = _weather(image, depth, style, index, rng)
    rng = rng.at(view=frame)
    if style.light != (1, 1):
        low, high = style.light
        image = image * (low + (high - low) * rng.uniform(index, "worlds.light"))[:, :, None, None]
    if style.blur > 0:
        image = blurred(image, style.blur)
    if style.noise > 0:
        image = image + style.noise * rng.normal(index, "worlds.noise", image[0].numel()).view(image.shape)
    return image.clamp(0, 1)


def blurred(image: Tensor, sigma: float) -> Tensor:
    """A Gaussian of standard deviation `sigma` pixels over the last two axes, borders repeated."""
    reach = max(1, math.ceil(3 * sigma))
    weight = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(-reach, reach + 1)]
    for axis in (-1, -2):
        place = torch.arange(image.shape[axis])
        # Sums of shifted copies: a convolution may order its sums by the size of the batch.
        total = torch.zeros_like(image)
        for k, w in zip(range(-reach, reach + 1), weight, strict=True):
            total += image.index_select(axis, (place + k).clamp(0, len(place) - 1)) * (w / sum(weight))
        image = total
    return image


def _weather(image: Tensor, depth: Tensor, style: Style, index: Tensor, rng: Rng) -> Tensor:
    strength, (num, _, height, width) = style.strength, image.shape
    if style.weather == "clear" or strength == 0:
        return image
    y, x = torch.meshgrid(
        (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij"
    )  # fmt: skip
    u = rng.uniform(index, "worlds.weather", 64)
    if style.weather == "fog":
        alpha = (strength * (0.4 + 0.6 * depth))[:, None]
        return image + alpha * (0.78 - image)
    if style.weather == "night":
        cool = torch.tensor([0.22, 0.26, 0.42])[:, None, None]
        return image * (1 - strength + strength * cool)
    if style.weather == "shadow":
        angle = 2 * math.pi * u[:, 0, None, None]
        side = (x - 0.5) * angle.cos() + (y - 0.5) * angle.sin() + 0.3 * (u[:, 1, None, None] - 0.5)
        dark = (0.5 - side * 20).clamp(0, 1)
        return image * (1 - 0.6 * strength * dark)[:, None]
    drops = max(1, round(24 * strength))
    over = torch.zeros((num, height, width))
    for k in range(drops):
        dx, dy = x - u[:, 2 * k, None, None], y - u[:, 2 * k + 1, None, None]
        if style.weather == "snow":
            flake = (1.5 - (dx**2 + dy**2).sqrt() * 60).clamp(0, 1)
        else:  # a streak, slightly slanted
            flake = (1 - (dx + 0.25 * dy).abs() * 60).clamp(0, 1) * (dy.abs() < 0.08)
        over = torch.maximum(over, flake)
    opacity, tone = (0.95, 0.98) if style.weather == "snow" else (0.6, 0.80)
    return image + (opacity * over)[:, None] * (tone - image)
