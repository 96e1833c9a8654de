"""From a layout to pixels and dense labels; each thing is drawn in its own box only.

Shapes: B scenes, K the most things of a scene, N things of a batch, P side of the box a thing is drawn in, H side of
the image.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nearfar.checks import expect
from nearfar.ragged import Ragged
from nearfar.rng import Rng
from nearfar.worlds.factors import Factors
from nearfar.worlds.joint import Joint
from nearfar.worlds.layout import ROUNDS, Layout, draw, place
from nearfar.worlds.shapes import DISTANCE, SYMMETRY, shade
from nearfar.worlds.style import Style, apply

_HALF = 0.5  # a pixel belongs to what covers this much of it


@dataclass(frozen=True)
class Render:
    """How scenes are drawn.

    Args:
        size: side of the image in pixels.
        parts: how much darker the lower part of a thing is than the upper one.
        texture: how much darker the dark places of a thing's texture are.
        ground: the same of the ground's texture.
        style: palette, weather, light, blur and noise.
    """

    size: int = 64
    parts: float = 0.12
    texture: float = 0.4
    ground: float = 0.15
    style: Style = field(default_factory=Style)

    def __post_init__(self) -> None:
        expect(8 <= self.size <= 1024, "size", "from 8 to 1024 pixels", self.size)
        for name in ("parts", "texture", "ground"):
            expect(0 <= getattr(self, name) <= 1, name, "from 0 to 1", getattr(self, name))


class Patches(NamedTuple):
    """Things drawn by themselves: scene `row` and `slot` [N], `pixel` int64 [N, P * P] of the image, `cover` from 0 to
    1 and `tone` [N, P * P], `upper` bool [N, P * P], `corner` int64 [N, 2] as (x, y), and P."""

    row: Tensor
    slot: Tensor
    pixel: Tensor
    cover: Tensor
    tone: Tensor
    upper: Tensor
    corner: Tensor
    side: int

    def of_slot(self, k: int) -> tuple[Tensor, Patches]:
        """Numbers among the N, and the things, of one slot."""
        here = (self.slot == k).nonzero()[:, 0]
        return here, Patches(*(part[here] for part in self[:-1]), side=self.side)


def patches(layout: Layout, factors: Factors, render: Render) -> Patches:
    """Every thing in a box of its own that holds the largest one."""
    row, slot = layout.present.nonzero(as_tuple=True)
    centre, radius = layout.centre[row, slot], layout.radius[row, slot]
    most = float(radius.max()) if len(radius) else 1.0
    side = min(math.ceil(2 * max(most, factors.largest * render.size)) + 3, render.size)
    corner = (centre - side / 2 + 0.5).floor().long().clamp(0, render.size - side)
    step = torch.arange(side)
    x = (corner[:, :1] + step + 0.5 - centre[:, :1]) / radius[:, None]
    y = (corner[:, 1:] + step + 0.5 - centre[:, 1:]) / radius[:, None]
    x, y = x[:, None, :], y[:, :, None]
    if bool((layout.angle != 0).any()):
        turn = torch.deg2rad(layout.angle[row, slot])[:, None, None]
        u, v = x * turn.cos() + y * turn.sin(), y * turn.cos() - x * turn.sin()
    else:
        u, v = x.expand(-1, side, -1), y.expand(-1, -1, side)
    distance, tone = torch.empty(len(row), side, side), torch.zeros(len(row), side, side)
    shape, texture = layout.shape[row, slot], layout.texture[row, slot]
    for number, name in enumerate(factors.shapes):
        here = (shape == number).nonzero()[:, 0]
        if len(here):
            distance[here] = DISTANCE[name](u[here], v[here])
    for number, name in enumerate(factors.textures):
        here = (texture == number).nonzero()[:, 0]
        if name != "plain" and len(here):
            tone[here] = shade(name, u[here], v[here])
    upper = v < 0
    tone = (1 - render.texture * tone) * torch.where(upper, 1.0, 1 - render.parts)
    pixel = (corner[:, 1:] + step)[:, :, None] * render.size + (corner[:, :1] + step)[:, None, :]
    cover = (_HALF - distance * radius[:, None, None]).clamp_(0, 1)
    return Patches(
        row, slot, pixel.flatten(1), cover.flatten(1), tone.flatten(1), upper.flatten(1), corner, side
    )  # fmt: skip


class Surfaces(NamedTuple):
    """Who is seen where: `instance` uint8 [B, H * H], 0 the ground and k + 1 the thing in slot k; `seen` bool
    [N, P * P]; `area` and `visible` int64 [B, K] in pixels, whole and seen; `overlap` int64 [B, K, K], pixels that two
    things share."""

    instance: Tensor
    seen: Tensor
    area: Tensor
    visible: Tensor
    overlap: Tensor


def surfaces(drawn: Patches, num: int, most: int, size: int) -> Surfaces:
    """Lays the things over each other from back to front."""
    instance = torch.zeros(num * size * size, dtype=torch.uint8)
    stack = torch.zeros(num * size * size, dtype=torch.int32)  # bit k: the thing in slot k is there, seen or not
    overlap = torch.zeros((num, most, most), dtype=torch.int64)
    solid = drawn.cover >= _HALF
    area, visible = torch.zeros((num, most), dtype=torch.int64), torch.zeros((num, most), dtype=torch.int64)
    area[drawn.row, drawn.slot] = solid.sum(dim=1)
    flat = drawn.pixel + (drawn.row * size * size)[:, None]
    for k in range(most):
        here = (drawn.slot == k).nonzero()[:, 0]
        if len(here):
            place, inside, row = flat[here], solid[here], drawn.row[here]
            below = stack[place]
            for j in range(k):
                shared = (((below >> j) & 1).bool() & inside).sum(dim=1)
                overlap[row, j, k] = overlap[row, k, j] = shared
            stack[place] = below | (inside * (1 << k)).to(torch.int32)
            instance[place] = torch.where(inside, k + 1, instance[place])
    seen = instance[flat] == (drawn.slot + 1)[:, None]
    visible[drawn.row, drawn.slot] = seen.sum(dim=1)
    return Surfaces(instance.view(num, size * size), seen, area, visible, overlap)


def settle(joint: Joint, render: Render, index: Tensor, rng: Rng) -> Layout:
    """Draws scenes and their positions, again and again for those where something does not fit or is hidden too far.

    Notes: a scene that has not found its places after the last of 8 rounds loses the things that do not fit.
    """
    factors = joint.factors
    layout = cells = draw(joint, render.style, render.size, index, rng)
    todo = torch.arange(len(index))
    for turn in range(ROUNDS):
        part, found = place(layout.take(todo), cells.take(todo), factors, render.size, rng, turn)
        if turn == ROUNDS - 1:
            part = dataclasses.replace(part, present=found)
            part = dataclasses.replace(part, present=found & unhidden(part, factors, render)).packed()
            return layout.put(todo, part)
        fine = (found == part.present).all(dim=1)
        fine[fine.clone()] = unhidden(part.take(fine.nonzero()[:, 0]), factors, render).all(dim=1)
        layout = layout.put(todo[fine], part.take(fine.nonzero()[:, 0]))
        todo = todo[~fine]
        if len(todo) == 0:
            break
    return layout


def unhidden(layout: Layout, factors: Factors, render: Render) -> Tensor:
    """bool [B, K]: slots whose thing shows enough of itself, or that are empty."""
    fine = torch.ones_like(layout.present)
    distance = (layout.centre[:, :, None] - layout.centre[:, None]).square().sum(dim=-1).sqrt()
    pairs = (layout.present[:, :, None] & layout.present[:, None]).triu(1)
    near = (pairs & (distance < layout.radius[:, :, None] + layout.radius[:, None] + 2)).flatten(1).any(dim=1)
    rows = near.nonzero()[:, 0]
    if len(rows):
        some = layout.take(rows)
        parts = patches(some, factors, render)
        shown = surfaces(parts, len(some), some.present.shape[1], render.size)
        fine[rows] = (shown.visible >= factors.visible * shown.area) | ~some.present
    return fine


def picture(layout: Layout, drawn: Patches, factors: Factors, render: Render) -> Tensor:
    """float [B, 3, H, H] before weather, blur and noise."""
    num, size = len(layout), render.size
    image = (layout.ground_rgb[:, :, None] * _ground(layout, factors, render)[:, None]).permute(1, 0, 2)
    image = image.reshape(3, -1).contiguous()
    contrast = layout.contrast[:, :, None]
    rgb = contrast * layout.rgb + (1 - contrast) * layout.ground_rgb[:, None]
    flat = drawn.pixel + (drawn.row * size * size)[:, None]
    for k in range(layout.present.shape[1]):
        here = (drawn.slot == k).nonzero()[:, 0]
        if len(here):
            place, cover, tone = flat[here], drawn.cover[here], drawn.tone[here]
            colour = rgb[drawn.row[here], k]
            for channel in range(3):
                below = image[channel][place]
                image[channel][place] = below + cover * (colour[:, channel, None] * tone - below)
    return image.view(3, num, size, size).transpose(0, 1)


def _ground(layout: Layout, factors: Factors, render: Render) -> Tensor:
    """Factor [B, H * H] on the ground's colour by its texture."""
    size = render.size
    tone = torch.ones((len(layout), size * size))
    step = (torch.arange(size) + 0.5) / size
    for number, name in enumerate(factors.grounds):
        here = (layout.ground == number).nonzero()[:, 0]
        if name != "plain" and len(here) and render.ground:
            phase = layout.phase[here]
            # Waves of the ground are as wide as those of a thing of 0.2 of the side.
            x, y = (step + phase[:, :1]) / 0.2, (step + phase[:, 1:]) / 0.2
            u, v = torch.broadcast_tensors(x[:, None, :], y[:, :, None])
            tone[here] = (1 - render.ground * shade(name, u, v)).flatten(1)
    return tone


def render_layout(layout: Layout, factors: Factors, render: Render, rng: Rng, frame: int = 0) -> dict[str, Any]:
    """Image, boxes and dense labels of scenes; the fields are those of `Scenes.sample`."""
    num, most, size = len(layout), layout.present.shape[1], render.size
    drawn = patches(layout, factors, render)
    shown = surfaces(drawn, num, most, size)
    image = picture(layout, drawn, factors, render)
    instance = shown.instance.long()
    lengths = layout.present.sum(dim=1)

    def by_instance(values: Tensor, ground: float) -> Tensor:
        """A value of every thing, spread over the pixels where it is seen."""
        table = torch.cat([torch.full((num, 1), ground, dtype=values.dtype), values], dim=1)
        return table.gather(1, instance).view(num, size, size)

    depth = by_instance(layout.depth, 1.0)
    part = torch.zeros(num * size * size, dtype=torch.uint8)
    flat = drawn.pixel + (drawn.row * size * size)[:, None]
    part[flat[shown.seen]] = torch.where(drawn.upper, 1, 2).to(torch.uint8)[shown.seen]
    salience = (layout.contrast * (layout.rgb - layout.ground_rgb[:, None]).square().sum(dim=-1).sqrt()) / math.sqrt(3)
    if not render.style.plain:
        image = apply(image, depth, render.style, layout.index, rng, frame)
    area = shown.area.clamp_min(1)
    shared = shown.overlap / torch.minimum(area[:, :, None], area[:, None])
    fields: dict[str, Any] = {
        "image": (image * 255 + 0.5).to(torch.uint8).contiguous(),
        "boxes": Ragged.from_lengths(_boxes(drawn, shown.seen), lengths),
        "visible": Ragged.from_lengths((shown.visible / area)[layout.present], lengths),
        "mask_instance": shown.instance.view(num, size, size),
        "mask_object": by_instance((layout.shape + 1).to(torch.uint8), 0),
        "mask_part": part.view(num, size, size),
        "depth_map": depth,
        "saliency": by_instance(salience, 0.0),
        "shared": shared,
        "overlap": _square(shared, layout.present),
    }
    return fields


def _square(shared: Tensor, present: Tensor) -> Ragged:
    """[n, n] of each scene's own things."""
    num = present.sum(dim=1)
    both = present[:, :, None] & present[:, None]
    return Ragged.from_lengths(shared[both], num * num, torch.stack([num, num], dim=1))


def _boxes(drawn: Patches, seen: Tensor) -> Tensor:
    """float [N, 4], the smallest box of the pixels that are seen, edges on whole numbers; zeros where none is."""
    seen = seen.view(-1, drawn.side, drawn.side)
    ends = []
    for axis, offset in ((1, drawn.corner[:, 0]), (2, drawn.corner[:, 1])):
        line = seen.any(dim=axis).long()
        ends.append((offset + line.argmax(dim=1), offset + drawn.side - line.flip(1).argmax(dim=1)))
    (x1, x2), (y1, y2) = ends
    return torch.stack([x1, y1, x2, y2], dim=1) * seen.flatten(1).any(dim=1)[:, None].float()


def upright(shape: str, angle: float) -> float:
    """The smallest angle at which a shape looks as it does at `angle`."""
    return angle % SYMMETRY[shape] if SYMMETRY[shape] else 0.0
