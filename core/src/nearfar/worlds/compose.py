"""Scenes from things that are given, and how well found scenes agree with true ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from nearfar.checks import expect
from nearfar.rng import Rng
from nearfar.worlds.layout import Layout
from nearfar.worlds.render import render_layout
from nearfar.worlds.scene import Scene, Thing
from nearfar.worlds.style import Style, rgb_of

if TYPE_CHECKING:
    from nearfar.worlds.scenes import Scenes


def layout_of(world: Scenes, scene: Scene, index: int = 0) -> Layout:
    """The layout that draws a scene, in the colours of the world's palette.

    Raises:
        ValueError: a value that the world's factors lack.
    """
    factors, palette = world.factors, world.render.style.palette
    things = scene.things
    num = max(len(things), 1)

    def ids(factor: str) -> torch.Tensor:
        found = [factors.id(factor, getattr(thing, factor)) for thing in things]
        return torch.tensor([found + [0] * (num - len(found))])

    def numbers(name: str) -> torch.Tensor:
        return torch.tensor([[float(getattr(thing, name)) for thing in things] + [0.0] * (num - len(things))])

    colour = ids("colour")
    return Layout(
        index=torch.tensor([index]),
        background=torch.tensor([factors.id("background", scene.background)]),
        ground=torch.tensor([factors.id("ground", scene.ground)]),
        ground_rgb=rgb_of(palette, (scene.background,)),
        phase=torch.zeros(1, 2),
        present=torch.arange(num)[None] < len(things),
        shape=ids("shape"), colour=colour, size=ids("size"), texture=ids("texture"),
        centre=torch.stack([numbers("x"), numbers("y")], dim=-1),
        radius=numbers("radius"), angle=numbers("angle"), contrast=numbers("contrast"), depth=numbers("depth"),
        rgb=rgb_of(palette, factors.colours)[colour],
    )  # fmt: skip


def compose(world: Scenes, things: Sequence[Thing], background: str, ground: str) -> Scene:
    """A scene of things from back to front, with boxes, visible shares and overlaps as drawing them gives."""
    render = replace(world.render, style=Style(world.render.style.palette))
    layout = layout_of(world, Scene(tuple(things), background, ground, render.size, render.size))
    drawn = render_layout(layout, world.factors, render, Rng())
    return world.scenes({**layout.columns(), **drawn})[0]


@dataclass(frozen=True)
class Agreement:
    """How well found scenes agree with true ones.

    Args:
        precision: share of found things that match a true one.
        recall: share of true things that are matched.
        f1: harmonic mean of the two, 2 m / (found + true) with m matches.
        background: share of scenes whose ground has the right colour.
        unreadable: share of scenes that were not read; their things count as missed.
    """

    precision: float
    recall: float
    f1: float
    background: float
    unreadable: float


def agreement(
    found: Sequence[Scene | None],
    truth: Sequence[Scene],
    of: Sequence[str] = ("shape", "colour", "size"),
    min_overlap: float = 0.5,
) -> Agreement:
    """Matches things of found and true scenes.

    Args:
        found: None: unreadable.
        truth: as many.
        of: values in which two things must agree.
        min_overlap: and the least intersection over union of their boxes; 0 asks for none.
    """
    expect(len(found) == len(truth) > 0, "found", f"{max(len(truth), 1)} scenes as in truth", len(found))
    matches = num_found = num_true = grounds = unreadable = 0
    for scene, true in zip(found, truth, strict=True):
        num_true += len(true.things)
        if scene is None:
            unreadable += 1
            continue
        num_found += len(scene.things)
        grounds += scene.background == true.background
        left = list(true.things)
        for thing in scene.things:
            fits = [
                other for other in left
                if all(getattr(thing, name) == getattr(other, name) for name in of)
                and box_iou(thing.box, other.box) >= min_overlap
            ]  # fmt: skip
            if fits:
                left.remove(max(fits, key=lambda other, box=thing.box: box_iou(box, other.box)))
                matches += 1
    return Agreement(
        precision=matches / max(num_found, 1),
        recall=matches / max(num_true, 1),
        f1=2 * matches / max(num_found + num_true, 1),
        background=grounds / len(truth),
        unreadable=unreadable / len(truth),
    )


def box_iou(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union of two boxes (x1, y1, x2, y2)."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    both = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return both / max(sum(areas) - both, 1e-9)
