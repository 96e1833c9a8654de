"""A scene in words and numbers, as it is known or as it was read from pixels, and the relations that hold in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from nearfar.checks import expect_choice
from nearfar.worlds.factors import place_of

# The first six are those of a scene graph; the others are their inverses or follow from a thing's own values.
RELATIONS = ("left of", "above", "in front of", "bigger than", "same colour as", "same shape as")
INVERSE = {
    "left of": "right of", "above": "below", "in front of": "behind", "bigger than": "smaller than",
    "same colour as": "same colour as", "same shape as": "same shape as", "same size as": "same size as",
}  # fmt: skip
INVERSE |= {second: first for first, second in INVERSE.items()}

ASIDE = 0.08  # of the side: centres this far apart stand left, right, above, below
IN_FRONT = 0.03  # of the smaller area: things that share this much stand in front of each other
BIGGER = 1.25  # ratio of radii


@dataclass(frozen=True)
class Thing:
    """One thing of a scene.

    Args:
        shape, colour, size, texture: names of its values.
        x, y: centre in pixels, edges on whole numbers.
        radius: in pixels.
        angle: clockwise, in degrees.
        contrast: of its colour with that of the ground, from 0 to 1.
        depth: from 0, near, to 1, the ground.
        box: of the pixels that are seen, (x1, y1, x2, y2).
        visible: share of its area that is seen.
        motion: (dx, dy) in pixels a frame; None in a still picture.
    """

    shape: str
    colour: str
    size: str
    texture: str
    x: float
    y: float
    radius: float
    angle: float = 0.0
    contrast: float = 1.0
    depth: float = 0.5
    box: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    visible: float = 1.0
    motion: tuple[float, float] | None = None


@dataclass(frozen=True)
class Scene:
    """Things on a ground.

    Args:
        things: from back to front.
        background: name of the ground's colour.
        ground: name of its texture.
        width, height: of the picture in pixels.
        overlap: for things i and j the share of the smaller one's area that both cover.
    """

    things: tuple[Thing, ...]
    background: str
    ground: str
    width: int
    height: int
    overlap: tuple[tuple[float, ...], ...] = field(default=(), repr=False)

    def place(self, i: int) -> str:
        """The cell of the 3 x 3 grid in which thing i has its centre."""
        thing = self.things[i]
        return place_of(thing.x, thing.y, self.width, self.height)

    def clear_place(self, i: int, margin: float = 0.03) -> bool:
        """Whether thing i is not near a line of that grid; `margin` is a share of the side."""
        thing = self.things[i]
        shares = (thing.x / self.width, thing.y / self.height)
        return all(abs(share - line) >= margin for share in shares for line in (1 / 3, 2 / 3))

    def holds(self, relation: str, i: int, j: int, strict: float = 1.0) -> bool:
        """Whether thing i stands in a relation to thing j.

        Args:
            relation: one of `RELATIONS` or its inverse.
            strict: above 1 it must hold by that many times the usual margin, so that small errors do not matter.
        """
        expect_choice("relation", relation, INVERSE)
        if i == j:
            return False
        if relation in ("right of", "below", "behind", "smaller than"):
            return self.holds(INVERSE[relation], j, i, strict)
        a, b = self.things[i], self.things[j]
        if relation == "left of":
            return b.x - a.x > ASIDE * strict * self.width
        if relation == "above":
            return b.y - a.y > ASIDE * strict * self.height
        if relation == "in front of":
            return a.depth < b.depth and self.overlap[i][j] > IN_FRONT * strict
        if relation == "bigger than":
            return a.radius > BIGGER * b.radius
        value = relation.split()[1]
        return getattr(a, value) == getattr(b, value)

    def graph(self) -> Iterator[tuple[int, str, int]]:
        """Every (i, relation, j) that holds, of `RELATIONS`."""
        for relation in RELATIONS:
            for i in range(len(self.things)):
                for j in range(len(self.things)):
                    if self.holds(relation, i, j):
                        yield i, relation, j
