"""What a world is made of: the values of every factor, and the few numbers that say how things are laid out."""

from __future__ import annotations

from dataclasses import dataclass

from nearfar.checks import expect, expect_choice

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "moon", "bar")
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink", "white", "grey", "black")
SIZES = ("tiny", "small", "medium", "large", "huge")
TEXTURES = ("plain", "striped", "dotted", "checked")
PLACES = ("top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right")

SCENE_FACTORS = ("background", "ground")
THING_FACTORS = ("shape", "colour", "size", "texture", "place")


@dataclass(frozen=True)
class Factors:
    """Values of the factors of a scene and of the things in it.

    Args:
        shapes: of things, from `SHAPES`.
        colours: of things, from `COLOURS`.
        sizes: of things, from `SIZES`, rising.
        radii: of each size, in shares of the side of the image.
        textures: of things, from `TEXTURES`.
        backgrounds: colours of the ground, from `COLOURS`; a thing never has the colour of its ground.
        grounds: textures of the ground, from `TEXTURES`.
        places: cells of a 3 x 3 grid, from `PLACES`, that the centre of a thing may lie in; none: anywhere, and place
            is then no factor of the joint distribution.
        num: least and most things of a scene.
        turn: range of orientations in degrees, clockwise; (0, 0): upright.
        contrast: range of a thing's contrast, its colour being mixed into that of the ground below 1.
        size_jitter: largest relative deviation from the radius of a size.
        overlap: deepest mutual penetration of two things, as a share of the smaller one's diameter.
        visible: share of a thing's area that is never hidden by nearer things.
        merge: whether things of one colour may touch, so that no edge shows between them.

    Raises:
        ValueError: an unknown or repeated value, sizes that cannot be told apart, ranges that are none.
    """

    shapes: tuple[str, ...] = SHAPES[:8]
    colours: tuple[str, ...] = COLOURS[:8]
    sizes: tuple[str, ...] = ("small", "large")
    radii: tuple[float, ...] = (0.1, 0.165)
    textures: tuple[str, ...] = ("plain", "striped", "dotted")
    backgrounds: tuple[str, ...] = ("black", "grey", "white")
    grounds: tuple[str, ...] = ("plain", "striped", "dotted")
    places: tuple[str, ...] = ()
    num: tuple[int, int] = (1, 4)
    turn: tuple[float, float] = (0.0, 0.0)
    contrast: tuple[float, float] = (1.0, 1.0)
    size_jitter: float = 0.08
    overlap: float = 0.45
    visible: float = 0.5
    merge: bool = False

    def __post_init__(self) -> None:
        known = {
            "shapes": SHAPES,
            "colours": COLOURS,
            "sizes": SIZES,
            "textures": TEXTURES,
            "backgrounds": COLOURS,
            "grounds": TEXTURES,
            "places": PLACES,
        }
        for name in known:
            values = getattr(self, name)
            for value in values:
                expect_choice(name, value, known[name])
            expect(len(set(values)) == len(values), name, "no value twice", values)
            expect(len(values) > 0 or name == "places", name, "at least one value", values)
        expect(len(self.radii) == len(self.sizes), "radii", f"one of each of the {len(self.sizes)} sizes", self.radii)
        expect(0 <= self.size_jitter < 0.5, "size_jitter", "at least 0 and below 0.5", self.size_jitter)
        for low, high in zip((0.0, *self.radii), self.radii, strict=False):
            apart = low * (1 + self.size_jitter) < high * (1 - self.size_jitter)
            expect(apart, "radii", "rising, without overlap within size_jitter", self.radii)
        expect(self.largest < 0.45, "radii", "at most 0.45 of the side, jitter included", self.largest)
        expect(1 <= self.num[0] <= self.num[1] <= 15, "num", "least <= most, from 1 to 15", self.num)
        expect(self.turn[0] <= self.turn[1], "turn", "a range", self.turn)
        expect(0 < self.contrast[0] <= self.contrast[1] <= 1, "contrast", "a range within (0, 1]", self.contrast)
        expect(0 <= self.overlap <= 1, "overlap", "from 0 to 1", self.overlap)
        expect(0 < self.visible <= 1, "visible", "above 0, at most 1", self.visible)

    @property
    def largest(self) -> float:
        """Largest radius of a thing, in shares of the side."""
        return self.radii[-1] * (1 + self.size_jitter)

    @property
    def names(self) -> dict[str, tuple[str, ...]]:
        """The values of every factor of the joint distribution, those of the scene first."""
        values = {
            "background": self.backgrounds,
            "ground": self.grounds,
            "shape": self.shapes,
            "colour": self.colours,
            "size": self.sizes,
            "texture": self.textures,
            "place": self.places,
        }
        return {name: value for name, value in values.items() if value}

    def id(self, factor: str, value: str) -> int:
        """The number of a value among those of its factor."""
        expect_choice("factor", factor, self.names)
        expect_choice(factor, value, self.names[factor])
        return self.names[factor].index(value)


def place_of(x: float, y: float, width: float, height: float) -> str:
    """The cell of the 3 x 3 grid that a point lies in."""
    column, row = min(int(3 * x / width), 2), min(int(3 * y / height), 2)
    return PLACES[3 * row + column]
