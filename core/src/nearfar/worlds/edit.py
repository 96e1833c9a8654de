"""Pairs of scenes that differ in one told thing, or in several.

Shapes: B scenes, K the most things of a scene.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch

from nearfar.batch import Batch, take
from nearfar.checks import expect, expect_choice
from nearfar.rng import Rng
from nearfar.worlds.factors import COLOURS, PLACES, SHAPES, SIZES, TEXTURES
from nearfar.worlds.grammar import Noun
from nearfar.worlds.layout import SLOTS, Layout, apart
from nearfar.worlds.parse import Reader, tokens
from nearfar.worlds.render import unhidden
from nearfar.worlds.rules import which
from nearfar.worlds.say import Draws, describe
from nearfar.worlds.scene import Scene
from nearfar.worlds.style import rgb_of

if TYPE_CHECKING:
    from nearfar.worlds.scenes import Scenes

EDITS = ("recolour", "reshape", "resize", "retexture", "move", "add", "remove", "background")
_FACTOR = {"recolour": "colour", "reshape": "shape", "resize": "size", "retexture": "texture"}
_ROUNDS = 40


@dataclass(frozen=True)
class Change:
    """One difference between two scenes.

    Args:
        kind: from `EDITS`.
        noun: the thing as it was before, or, if it is added, as it is.
        to: the new value or place; "" if there is none.
    """

    kind: str
    noun: Noun = field(default_factory=Noun)
    to: str = ""

    def text(self) -> str:
        """As a sentence, without capital and full stop."""
        match self.kind:
            case "add":
                return f"{self.noun.a()} appears"
            case "remove":
                return f"the {self.noun.words()} disappears"
            case "move":
                return f"the {self.noun.words()} moves to the {self.to}"
            case "background":
                return f"the background becomes {self.to}"
            case "reshape":
                return f"the {self.noun.words()} becomes a {self.to}"
        return f"the {self.noun.words()} becomes {self.to}"

    @classmethod
    def parse(cls, sentence: str) -> Change | None:
        """What a sentence as `text` writes it says; None for others."""
        reader = Reader([word for word in tokens(sentence) if word != "."])
        if reader.take("the background becomes"):
            to = reader.take(*COLOURS)
            return cls("background", to=to) if to and reader.done else None
        noun = reader.one()
        if noun is None:
            return None
        found = None
        if reader.take("appears"):
            found = cls("add", noun)
        elif reader.take("disappears"):
            found = cls("remove", noun)
        elif reader.take("moves to the"):
            to = reader.take(*sorted(PLACES, key=len, reverse=True))
            found = cls("move", noun, to) if to else None
        elif reader.take("becomes"):
            reader.take("a", "an")
            kinds = {"recolour": COLOURS, "reshape": SHAPES, "resize": SIZES, "retexture": TEXTURES}
            for kind, values in kinds.items():
                to = None if found else reader.take(*values)
                found = cls(kind, noun, to) if to else found
        return found if reader.done else None


class Edited(NamedTuple):
    """`before` and `after`, batches of the same scenes; `changes` of each, in the order of `text`, whose sentences they
    are; `row` int64, of the batch that was given: scenes that no change fits are left out."""

    before: Batch
    after: Batch
    changes: list[tuple[Change, ...]]
    text: list[str]
    row: torch.Tensor


def edit(world: Scenes, batch: Batch, rng: Rng, kinds: Sequence[str] = EDITS, num: tuple[int, int] = (1, 1)) -> Edited:
    """Changes each scene in `num` ways, to another that obeys the factors' rules of overlap.

    Args:
        kinds: from `EDITS`, drawn anew for every change.
        num: least and most changes of a scene; each is of another thing.

    Raises:
        ValueError: none of these changes fits any scene, e.g. to remove the only thing.
    """
    for kind in kinds:
        expect_choice("kinds", kind, EDITS)
    expect(len(kinds) > 0, "kinds", "at least one", kinds)
    expect(1 <= num[0] <= num[1], "num", "least <= most, from 1", num)
    scenes = world.scenes(batch)
    layout = _padded(Layout.of(batch), num[1])
    after = layout
    changes: list[tuple[Change, ...]] = [()] * len(layout)
    todo = torch.arange(len(layout))
    for turn in range(_ROUNDS):
        # What is changed is drawn once, so that changes that seldom fit are no rarer; in the end anything goes.
        kept = rng.uniform(layout.index[todo], f"worlds.edit.kinds.{max(turn - _ROUNDS // 2, 0)}", 1 + num[1]).tolist()
        draws = rng.uniform(layout.index[todo], f"worlds.edit.{turn}", 128).tolist()
        part, rows = layout.take(todo), []
        part = Layout(**{f.name: getattr(part, f.name).clone() for f in dataclasses.fields(part)})
        for at, (row, k, u) in enumerate(zip(todo.tolist(), kept, draws, strict=True)):
            wanted = num[0] + int(k[0] * (num[1] + 1 - num[0]))
            chosen = [kinds[int(share * len(kinds))] for share in k[1 : 1 + wanted]]
            proposed = _propose(world, scenes[row], part, at, chosen, Draws(u))
            if proposed is not None:
                changes[row] = proposed
                rows.append(at)
        picked = torch.tensor(rows, dtype=torch.int64)
        part = part.take(picked).packed()
        fine = _allowed(world, part)
        after = after.put(todo[picked][fine], part.take(fine.nonzero()[:, 0]))
        left = torch.ones(len(todo), dtype=torch.bool)
        left[picked[fine]] = False
        todo = todo[left]
        if len(todo) == 0:
            break
    done = torch.ones(len(layout), dtype=torch.bool)
    done[todo] = False
    row = done.nonzero()[:, 0]
    expect(len(row) > 0 or len(layout) == 0, "kinds", "changes that fit a scene", tuple(kinds))
    made = [changes[i] for i in row.tolist()]
    text = [". ".join(change.text() for change in some) for some in made]
    return Edited(take(batch, row), world.draw(after.take(row), rng), made, text, row)


def _padded(layout: Layout, num: int) -> Layout:
    """With room for `num` more things."""
    slots = {}
    for name in SLOTS:
        value = getattr(layout, name)
        slots[name] = torch.cat([value, value.new_zeros((len(value), num, *value.shape[2:]))], dim=1)
    return dataclasses.replace(layout, **slots)


def _propose(
    world: Scenes, scene: Scene, layout: Layout, row: int, kinds: Sequence[str], draw: Draws
) -> tuple[Change, ...] | None:
    """Writes changes of these kinds into one row of the layout; None where they do not fit."""
    free = draw.shuffled(range(len(scene.things)))
    changes: list[Change] = []
    for kind in kinds:
        if kind in ("add", "background"):
            if any(change.kind == "background" for change in changes):
                return None
            change = (_add if kind == "add" else _background)(world, scene, layout, row, draw)
        else:
            if not free:
                return None
            i = free.pop()
            noun = own_name(scene, i)
            if noun is None or (kind == "remove" and not (layout.present[row].sum() > 1)):
                return None
            change = _change(world, scene, layout, row, i, kind, noun, draw)
        if change is None:
            return None
        changes.append(change)
    return tuple(changes)


def own_name(scene: Scene, i: int) -> Noun | None:
    """The shortest description that fits thing i alone."""
    for num in range(1, 5):
        noun = describe(scene, i, ("shape", "colour", "size", "texture")[:num])
        if which(noun, scene) == [i]:
            return noun
    return None


def _change(
    world: Scenes, scene: Scene, layout: Layout, row: int, i: int, kind: str, noun: Noun, draw: Draws
) -> Change | None:
    factors, side = world.factors, world.render.size
    if kind == "remove":
        layout.present[row, i] = False
        return Change(kind, noun)
    if kind == "move":
        reach = float(layout.radius[row, i]) + 1
        x, y = (reach + (side - 2 * reach) * draw.share() for _ in range(2))
        layout.centre[row, i] = torch.tensor([x, y])
        place = _clear_place(x, y, side)
        return Change(kind, noun, place) if place not in (None, scene.place(i)) else None
    factor = _FACTOR[kind]
    old = getattr(scene.things[i], factor)
    values = [value for value in factors.names[factor] if value not in (old, scene.background)]
    if not values:
        return None
    new = draw.choose(values)
    getattr(layout, factor)[row, i] = factors.id(factor, new)
    if kind == "recolour":  # the thing's own deviation from the palette stays
        was, now = rgb_of(world.render.style.palette, (old, new))
        layout.rgb[row, i] = (layout.rgb[row, i] - was + now).clamp(0, 1)
    elif kind == "resize":
        layout.radius[row, i] *= factors.radii[factors.id("size", new)] / factors.radii[factors.id("size", old)]
    return Change(kind, noun, new)


def _add(world: Scenes, scene: Scene, layout: Layout, row: int, draw: Draws) -> Change | None:
    """A new thing in front of all others."""
    factors, side = world.factors, world.render.size
    at = int(layout.present[row].long().argmin())
    said = {name: draw.choose(factors.names[name]) for name in ("shape", "colour", "size", "texture")}
    if said["colour"] == scene.background:
        return None
    for name, value in said.items():
        getattr(layout, name)[row, at] = factors.id(name, value)
    radius = factors.radii[factors.id("size", said["size"])] * side
    x, y = (radius + 1 + (side - 2 * radius - 2) * draw.share() for _ in range(2))
    layout.centre[row, at] = torch.tensor([x, y])
    layout.radius[row, at], layout.contrast[row, at] = radius, factors.contrast[1]
    layout.angle[row, at] = factors.turn[0] + (factors.turn[1] - factors.turn[0]) * draw.share()
    there = layout.depth[row][layout.present[row]]
    layout.depth[row, at] = 0.9 * (float(there.min()) if len(there) else 1.0)
    layout.rgb[row, at] = rgb_of(world.render.style.palette, (said["colour"],))[0]
    layout.present[row, at] = True
    place = _clear_place(x, y, side)
    said = {name: value for name, value in said.items() if value != "plain"}
    return Change("add", Noun(**said, place=place)) if place else None


def _background(world: Scenes, scene: Scene, layout: Layout, row: int, draw: Draws) -> Change | None:
    names = world.factors.backgrounds
    taken = {world.factors.colours[c] for c in layout.colour[row][layout.present[row]].tolist()}
    values = [name for name in names if name != scene.background and name not in taken]
    if not values:
        return None
    new = draw.choose(values)
    was, now = rgb_of(world.render.style.palette, (scene.background, new))
    layout.background[row] = names.index(new)
    layout.ground_rgb[row] = (layout.ground_rgb[row] - was + now).clamp(0, 1)
    return Change("background", to=new)


def _clear_place(x: float, y: float, side: int) -> str | None:
    """The cell of the 3 x 3 grid, unless the point is near a line of it."""
    shares = (3 * x / side, 3 * y / side)
    clear = all(abs(share - line) > 0.15 for share, line in itertools.product(shares, (1, 2)))
    return PLACES[3 * min(int(shares[1]), 2) + min(int(shares[0]), 2)] if clear else None


def _allowed(world: Scenes, layout: Layout) -> torch.Tensor:
    """bool [B]: things lie within the picture, as far apart as the factors ask, and show enough of themselves."""
    factors, side = world.factors, world.render.size
    reach = layout.radius[:, :, None]
    inside = ((layout.centre >= reach) & (layout.centre <= side - reach)).all(dim=2) | ~layout.present
    fits = apart(
        layout.centre[:, :, None], layout.radius[:, :, None], layout.colour[:, :, None],
        layout.centre[:, None], layout.radius[:, None], layout.colour[:, None], factors,
    )  # fmt: skip
    pairs = (layout.present[:, :, None] & layout.present[:, None]).triu(1)
    fine = inside.all(dim=1) & (fits | ~pairs).flatten(1).all(dim=1)
    return fine & unhidden(layout, factors, world.render).all(dim=1)
