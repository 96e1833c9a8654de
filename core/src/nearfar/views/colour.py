"""Colour of views: brightness, contrast, saturation, hue and grey, as one affine map a sample or step by step.

Fast path. The four steps of the jitter, grey, gain and normalisation are linear in a pixel's channels apart from the
mean that contrast refers to, so they compose to one matrix and one offset a sample, and blur and resampling, whose
weights sum to one, commute with them. It differs from the exact path in three ways: the steps keep one order
(brightness, contrast, saturation, hue), values are clamped once at the end instead of after each, and hue turns the
chroma plane of YIQ rather than the hexagon of HSV, so that it keeps a pixel's luma.

Exact path. Each sample has a random order of the four steps, values are clamped after each, and hue is that of HSV.

Shapes: B samples, C channels, P pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from nearfar.config import ImageViewConfig
from nearfar.rng import Rng

LUMA = (0.299, 0.587, 0.114)
_TO_YIQ = torch.tensor([LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112)], dtype=torch.float64)
_TURN = torch.tensor([[0, 0, 0], [0, 0, 1], [0, -1, 0]], dtype=torch.float64)  # red towards green, as in HSV
_GREY = torch.tensor([LUMA] * 3, dtype=torch.float64)
_QUARTER = torch.linalg.solve(_TO_YIQ, _TURN @ _TO_YIQ)
# Saturation s and hue h give GREY + s cos(h) CHROMA + s sin(h) QUARTER.
_BASIS = torch.stack([_GREY, torch.eye(3, dtype=torch.float64) - _GREY, _QUARTER]).float()


@dataclass(frozen=True)
class Colour:
    """What happens to the colours of each sample [B]; factors are 1 and shifts 0 where nothing does."""

    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    gray: Tensor
    sigma: Tensor
    solarize: Tensor
    gain: Tensor
    order: Tensor

    def __getitem__(self, rows: slice) -> Colour:
        return Colour(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def draw(config: ImageViewConfig, index: Tensor, rng: Rng) -> Colour:
    """Random parameters of every sample; `sigma` is 0 where there is no blur, `order` [B, 4] the jitter's steps."""
    u = rng.uniform(index, "views.colour", 14)
    on = u[:, 0] < config.jitter

    def factor(column: int, spread: float) -> Tensor:
        low = max(0.0, 1 - spread)
        return torch.where(on, low + (1 + spread - low) * u[:, column], 1.0)

    def between(column: int, ends: tuple[float, float]) -> Tensor:
        return ends[0] + (ends[1] - ends[0]) * u[:, column]

    return Colour(
        brightness=factor(1, config.brightness),
        contrast=factor(2, config.contrast),
        saturation=factor(3, config.saturation),
        hue=torch.where(on, between(4, (-config.hue, config.hue)), 0.0),
        gray=u[:, 5] < config.grayscale,
        sigma=torch.where(u[:, 6] < config.blur, between(7, config.blur_sigma), 0.0),
        solarize=u[:, 8] < config.solarize,
        gain=between(9, config.gain),
        order=u[:, 10:].argsort(dim=1),
    )


def affine(colour: Colour, num_in: int, num_out: int, mean: Tensor) -> tuple[Tensor, Tensor]:
    """One map [B, num_out, num_in] and offset [B, num_out, 1] for jitter, grey and gain.

    Args:
        mean: [B, num_in], mean of each channel.
    """
    weights = mean.new_tensor(LUMA)
    grey = mean[:, 0] if num_in == 1 else mean @ weights
    scale = colour.contrast * colour.brightness * colour.gain
    offset = (1 - colour.contrast) * colour.brightness * colour.gain * grey
    if num_in == 3 and num_out == 3:
        angle, saturation = 2 * math.pi * colour.hue, torch.where(colour.gray, 0.0, colour.saturation)
        parts = torch.stack([torch.ones_like(angle), saturation * angle.cos(), saturation * angle.sin()], dim=1)
        matrix = (parts[:, :, None, None] * _BASIS.to(mean.device)).sum(dim=1) * scale[:, None, None]
    else:  # grey throughout: saturation and hue have nothing to act on
        into = weights[None] if num_in == 3 else mean.new_ones(num_out, 1)
        matrix = into * scale[:, None, None]
    return matrix, offset[:, None, None].expand(-1, num_out, 1)


def exact(image: Tensor, colour: Colour) -> Tensor:
    """Jitter in each sample's own order, then grey, on [B, C, H, W] in [0, 1]; steps that change nothing are left out.

    Source: torchvision's ColorJitter and RandomGrayscale define the steps.
    """
    image = image.clone()
    steps = (
        (adjust_brightness, colour.brightness, 1.0),
        (adjust_contrast, colour.contrast, 1.0),
        (adjust_saturation, colour.saturation, 1.0),
        (adjust_hue, colour.hue, 0.0),
    )
    for place in range(4):
        for number, (function, value, neutral) in enumerate(steps):
            rows = ((colour.order[:, place] == number) & (value != neutral)).nonzero()[:, 0]
            if len(rows):
                image[rows] = function(image[rows], value[rows])
    rows = colour.gray.nonzero()[:, 0]
    if len(rows):
        image[rows] = luma(image[rows]).expand(-1, image.shape[1], -1, -1)
    return image


def luma(image: Tensor) -> Tensor:
    """[B, 1, H, W]; an image of one channel is its own."""
    if image.shape[1] == 1:
        return image
    red, green, blue = image.unbind(dim=1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue)[:, None]


def _blend(image: Tensor, other: Tensor | float, factor: Tensor) -> Tensor:
    factor = factor[:, None, None, None]
    return (image * factor + other * (1 - factor)).clamp_(0, 1)


def adjust_brightness(image: Tensor, factor: Tensor) -> Tensor:
    """Towards black, or away from it."""
    return _blend(image, 0.0, factor)


def adjust_contrast(image: Tensor, factor: Tensor) -> Tensor:
    """Towards the image's mean luma, or away from it."""
    return _blend(image, luma(image).mean(dim=(1, 2, 3), keepdim=True), factor)


def adjust_saturation(image: Tensor, factor: Tensor) -> Tensor:
    """Towards each pixel's luma, or away from it."""
    return image if image.shape[1] == 1 else _blend(image, luma(image), factor)


def adjust_hue(image: Tensor, shift: Tensor) -> Tensor:
    """Turns the hue of HSV by `shift` turns; value and saturation stay.

    A channel is v - c clip(min(k, 4 - k), 0, 1) with k = (n + 6h) mod 6, n = 5, 3, 1, v the largest channel and c the
    range of the three.
    """
    if image.shape[1] == 1:
        return image
    red, green, blue = image.unbind(dim=1)
    value = image.amax(dim=1)
    chroma = value - image.amin(dim=1)
    safe = torch.where(chroma > 0, chroma, 1.0)
    hue = torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    hue = torch.where(value == red, (green - blue) / safe, hue)
    hue = hue + 6 * shift[:, None, None]
    out = [(hue + place) % 6 for place in (5, 3, 1)]
    return torch.stack([value - chroma * torch.minimum(k, 4 - k).clamp(0, 1) for k in out], dim=1)
