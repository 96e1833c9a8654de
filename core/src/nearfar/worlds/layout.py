"""Where everything of a scene is, as padded tensors, before it is drawn.

Things stand from back to front. Coordinates are pixels with edges on whole numbers, as in `nearfar.views`. Shapes: B
scenes, K the most things of a scene, T tries of a position.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nearfar.batch import Batch
from nearfar.ragged import Ragged
from nearfar.rng import Rng
from nearfar.worlds.factors import PLACES, THING_FACTORS, Factors
from nearfar.worlds.joint import Joint
from nearfar.worlds.style import Style, rgb_of

_TRIES = 24
ROUNDS = 8


@dataclass(frozen=True)
class Layout:
    """Scenes as rows of numbers; slots that are not `present` hold anything.

    Args:
        index: int64 [B].
        background, ground: int64 [B], ids of the ground's colour and texture.
        ground_rgb: float [B, 3] as it is drawn.
        phase: float [B, 2], offset of the ground's texture in shares of the side.
        present: bool [B, K], true in the first slots of a row.
        shape, colour, size, texture: int64 [B, K], ids among the values of their factor.
        centre: float [B, K, 2] as (x, y) in pixels.
        radius: float [B, K] in pixels.
        angle: float [B, K], clockwise, in degrees.
        contrast: float [B, K].
        depth: float [B, K], falling from slot to slot; the ground is at 1.
        rgb: float [B, K, 3] of the colour at contrast 1.
    """

    index: Tensor
    background: Tensor
    ground: Tensor
    ground_rgb: Tensor
    phase: Tensor
    present: Tensor
    shape: Tensor
    colour: Tensor
    size: Tensor
    texture: Tensor
    centre: Tensor
    radius: Tensor
    angle: Tensor
    contrast: Tensor
    depth: Tensor
    rgb: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def take(self, rows: Tensor) -> Layout:
        """Some scenes."""
        return Layout(**{field.name: getattr(self, field.name)[rows] for field in dataclasses.fields(self)})

    def put(self, rows: Tensor, part: Layout) -> Layout:
        """These scenes replaced by those of `part`."""
        new = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name).clone()
            value[rows] = getattr(part, field.name)
            new[field.name] = value
        return Layout(**new)

    def packed(self, order: Tensor | None = None) -> Layout:
        """Things that are present first, in their order, or in that of `order` [B, K], which rises."""
        key = torch.arange(self.present.shape[1]).expand_as(self.present).float() if order is None else order
        move = torch.where(self.present, key, math.inf).argsort(dim=1, stable=True)
        new = {}
        for name in SLOTS:
            value = getattr(self, name)
            new[name] = value.gather(1, move if value.ndim == 2 else move[:, :, None].expand_as(value))
        return dataclasses.replace(self, **new)

    def columns(self) -> dict[str, Tensor | Ragged]:
        """Fields of a batch: one row a scene, things as Ragged."""
        lengths = self.present.sum(dim=1)
        fields: dict[str, Tensor | Ragged] = {
            "index": self.index,
            "num": lengths,
            **{name: getattr(self, name) for name in ("background", "ground", "ground_rgb", "phase")},
        }
        for name in SLOTS[1:]:
            fields[name] = Ragged.from_lengths(getattr(self, name)[self.present], lengths)
        return fields

    @classmethod
    def of(cls, batch: Batch) -> Layout:
        """The layout that a batch of a world was drawn from, whatever rows of it were taken."""
        lengths = batch["num"]
        most = max(int(lengths.max()) if len(lengths) else 0, 1)
        present = torch.arange(most) < lengths[:, None]
        slots = {"present": present}
        for name in SLOTS[1:]:
            values = batch[name].values
            padded = values.new_zeros((len(lengths), most, *values.shape[1:]))
            padded[present] = values
            slots[name] = padded
        rows = {name: batch[name] for name in ("index", "background", "ground", "ground_rgb", "phase")}
        return cls(**rows, **slots)


SLOTS = ("present", "shape", "colour", "size", "texture", "centre", "radius", "angle", "contrast", "depth", "rgb")


def draw(joint: Joint, style: Style, side: int, index: Tensor, rng: Rng) -> Layout:
    """Everything but positions, which `place` gives."""
    factors = joint.factors
    drawn = joint.draw(index, rng)
    present = drawn["present"]
    num, most = present.shape

    def between(name: str, low: float, high: float) -> Tensor:
        return low + (high - low) * rng.uniform(index, f"worlds.{name}", most)

    radii = torch.tensor(factors.radii)[drawn["size"]] * side
    tint = style.tint * (2 * rng.uniform(index, "worlds.tint", 3 * (most + 1)) - 1).view(num, most + 1, 3)
    ground = rgb_of(style.palette, factors.backgrounds)[drawn["background"]]
    layout = Layout(
        index=index,
        background=drawn["background"],
        ground=drawn["ground"],
        ground_rgb=(ground + tint[:, 0]).clamp(0, 1),
        phase=rng.uniform(index, "worlds.phase", 2),
        present=present,
        **{name: drawn[name] for name in THING_FACTORS[:-1]},
        centre=torch.zeros((num, most, 2)) if "place" not in drawn else _cell_centre(drawn["place"], factors, side),
        radius=radii * between("radius", 1 - factors.size_jitter, 1 + factors.size_jitter),
        angle=between("angle", *factors.turn),
        contrast=between("contrast", *factors.contrast),
        depth=0.1 + 0.8 * rng.uniform(index, "worlds.depth", most),
        rgb=(rgb_of(style.palette, factors.colours)[drawn["colour"]] + tint[:, 1:]).clamp(0, 1),
    )
    return layout.packed(-layout.depth)


def _cell_centre(place: Tensor, factors: Factors, side: int) -> Tensor:
    """The middle of each thing's cell [B, K, 2]; `place` moves things within their cells."""
    number = torch.tensor([PLACES.index(name) for name in factors.places])[place]
    return (torch.stack([number % 3, number // 3], dim=-1).float() + 0.5) * (side / 3)


def place(layout: Layout, cell: Layout, factors: Factors, side: int, rng: Rng, turn: int) -> tuple[Layout, Tensor]:
    """Positions at random that keep things apart as far as the factors ask.

    Args:
        layout: scenes to be placed.
        cell: the layout as it was drawn, whose centres are those of the cells if place is a factor.
        turn: number of this attempt.

    Returns:
        the layout, and bool [B, K]: things that found a position.
    """
    num, most = layout.present.shape
    u = rng.uniform(layout.index, f"worlds.place.{turn}", 2 * most * _TRIES).view(num, most, _TRIES, 2)
    reach = layout.radius + 1
    low, high = reach[:, :, None].expand(-1, -1, 2), side - reach[:, :, None].expand(-1, -1, 2)
    if factors.places:
        low = torch.maximum(low, torch.minimum(cell.centre - side / 6, high))
        high = torch.maximum(torch.minimum(high, cell.centre + side / 6), low)
    spots = low[:, :, None] + (high - low)[:, :, None] * u
    centre = torch.zeros_like(layout.centre)
    found = torch.zeros_like(layout.present)
    rows = torch.arange(num)
    for k in range(most):
        fits = torch.ones((num, _TRIES), dtype=torch.bool)
        for j in range(k):
            fits &= apart(
                spots[:, k], layout.radius[:, k, None], layout.colour[:, k, None],
                centre[:, j, None], layout.radius[:, j, None], layout.colour[:, j, None], factors,
            ) | ~found[:, j, None]  # fmt: skip
        found[:, k] = fits.any(dim=1) & layout.present[:, k]
        centre[:, k] = spots[rows, k, fits.long().argmax(dim=1)]
    return dataclasses.replace(layout, centre=centre), found


def apart(
    first: Tensor, radius: Tensor, colour: Tensor, second: Tensor, radius_2: Tensor, colour_2: Tensor, factors: Factors
) -> Tensor:
    """Whether two things stand as far apart as the factors ask, judged by their discs."""
    distance = (first - second).square().sum(dim=-1).sqrt()
    closer = 2 * factors.overlap * torch.minimum(radius, radius_2)
    if not factors.merge:
        closer = torch.where(colour == colour_2, -2.0, closer)
    return distance >= radius + radius_2 - closer
