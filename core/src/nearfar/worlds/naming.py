"""Names of pixels by the nearest colour of a palette, and what the ground is.

Shapes: H side of the image, P pixels, C colours.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from nearfar.worlds.factors import Factors
from nearfar.worlds.render import Render
from nearfar.worlds.shapes import waves
from nearfar.worlds.style import rgb_of

_FAR = 0.22  # RGB distance from every colour at which a pixel has no name
_LIGHTER = 1.03


class Names:
    """Palette of a world with its shades.

    Attributes:
        colours: names, those of things first.
        rgb: [C, 3].
    """

    def __init__(self, factors: Factors, render: Render) -> None:
        self.factors, self.render = factors, render
        self.colours = tuple(dict.fromkeys((*factors.colours, *factors.backgrounds)))
        self.rgb = rgb_of(render.style.palette, self.colours)
        self.darkest = (1 - render.parts) * (1 - (render.texture if factors.textures != ("plain",) else 0))
        self._of_ground = torch.tensor([name in factors.backgrounds for name in self.colours])
        self._of_things = torch.tensor([name in factors.colours for name in self.colours])

    def __call__(self, image: Tensor) -> tuple[Tensor, int, Tensor] | None:
        """Number of a colour at every pixel [H, H], -1 for none; the ground's, and its mean RGB; None: unreadable."""
        pixels = image.flatten(1).T
        border = torch.ones(image.shape[1:], dtype=torch.bool)
        border[2:-2, 2:-2] = False
        as_ground = self._distance(pixels, 1 - self.render.ground)
        as_ground[:, ~self._of_ground] = math.inf
        nearest = as_ground.min(dim=1)
        at_border = nearest.indices[border.flatten() & (nearest.values < _FAR)]
        if len(at_border) == 0:
            return None
        ground = int(at_border.mode().values)
        if int((at_border == ground).sum()) < 0.5 * int(border.sum()):
            return None
        distance = self._distance(pixels, self.darkest)
        distance[:, ~self._of_things] = math.inf
        distance[:, ground] = as_ground[:, ground]
        best = distance.min(dim=1)
        label = torch.where(best.values < _FAR, best.indices, -1)
        if int((label < 0).sum()) > 0.3 * label.numel():
            return None
        ground_rgb = pixels[label == ground].mean(dim=0)
        unsure = (best.values >= _FAR / 2).nonzero()[:, 0]
        label[unsure] = self._mixed(pixels[unsure], label[unsure], best.values[unsure], ground, ground_rgb)
        return label.view(image.shape[1:]), ground, ground_rgb

    def _distance(self, pixels: Tensor, darkest: float) -> Tensor:
        """[P, C] from the nearest shade of each colour."""
        scale = (pixels @ self.rgb.T / self.rgb.square().sum(dim=1)).clamp(darkest, _LIGHTER)
        return (pixels[:, None] - scale[:, :, None] * self.rgb).square().sum(dim=2).sqrt()

    def _mixed(self, pixels: Tensor, label: Tensor, distance: Tensor, ground: int, ground_rgb: Tensor) -> Tensor:
        """Names of pixels that an outline crosses: half of a colour and half of the ground looks like neither."""
        colours = self._of_things.nonzero()[:, 0]
        colours = colours[colours != ground]
        for tone in (1.0, (1 + self.darkest) / 2):
            toward = tone * self.rgb[colours] - ground_rgb
            share = ((pixels - ground_rgb) @ toward.T / toward.square().sum(dim=1)).clamp(0, 1)
            left = (pixels[:, None] - ground_rgb - share[:, :, None] * toward).square().sum(dim=2).sqrt()
            nearest = left.min(dim=1)
            better = nearest.values < (distance / 2).clamp_max(_FAR / 2)
            most = share.gather(1, nearest.indices[:, None])[:, 0] >= 0.5
            label = torch.where(better, torch.where(most, colours[nearest.indices], ground), label)
            distance = torch.where(better, 2 * nearest.values, distance)
        return label

    def ground_texture(self, image: Tensor, is_ground: Tensor) -> str:
        """The texture whose waves, at whatever phase, explain most of how the ground's lightness varies."""
        inner = F.max_pool2d((~is_ground).float()[None, None], 3, stride=1, padding=1)[0, 0] == 0
        light = image.mean(dim=0)[inner]
        light = light - light.mean()
        grounds = self.factors.grounds
        best = ("plain", 0.2) if "plain" in grounds else (grounds[0], -1.0)
        if len(light) and float(light.square().mean()) > 1e-7:
            step = (torch.arange(self.render.size) + 0.5) / self.render.size / 0.2
            y, x = torch.meshgrid(step, step, indexing="ij")
            for name in grounds:
                if name != "plain":
                    basis = waves(name, x[inner], y[inner])
                    weights = torch.linalg.lstsq(basis, light[:, None]).solution
                    left = (light - (basis @ weights)[:, 0]).square().sum()
                    best = max(best, (name, 1 - float(left / light.square().sum())), key=lambda item: item[1])
        return best[0]


def noise_of(image: Tensor) -> float:
    """Standard deviation of independent noise, from second differences along both axes of differences of channels.

    Textures darken all channels alike, so differences of channels show them less. A product of two second differences
    has weights of square sum 36, a difference of channels twice the variance; the median of absolute values is 0.6745
    deviations, and outvotes edges.
    """
    chroma = image - image.roll(1, dims=0)
    second = chroma[:, 2:] - 2 * chroma[:, 1:-1] + chroma[:, :-2]
    mixed = second[:, :, 2:] - 2 * second[:, :, 1:-1] + second[:, :, :-2]
    return float(mixed.abs().flatten(1).median(dim=1).values.min()) / 0.6745 / 6 / math.sqrt(2)
