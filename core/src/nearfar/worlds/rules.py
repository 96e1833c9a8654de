"""Whether a sentence is true of a scene, and what the answer to a question is."""

from __future__ import annotations

from collections.abc import Mapping

from nearfar.worlds.grammar import (
    DIRECTIONS,
    Every,
    Exists,
    Ground,
    Is,
    More,
    Moves,
    Noun,
    Related,
    Statement,
    reword,
)  # fmt: skip
from nearfar.worlds.parse import parse
from nearfar.worlds.scene import Scene


def fits(noun: Noun, scene: Scene, i: int) -> bool:
    """Whether thing i is what the noun says."""
    thing = scene.things[i]
    return (
        noun.shape in (None, thing.shape)
        and noun.colour in (None, thing.colour)
        and noun.size in (None, thing.size)
        and noun.texture in (None, thing.texture)
        and (noun.place is None or noun.place == scene.place(i))
    )


def which(noun: Noun, scene: Scene) -> list[int]:
    """The things that are what the noun says."""
    return [i for i in range(len(scene.things)) if fits(noun, scene, i)]


def holds(statement: Statement, scene: Scene) -> bool:
    """Whether a statement is true of a scene.

    Raises:
        ValueError: a statement on motion about a still scene.
    """
    match statement:
        case Exists(noun, num, how):
            count = len(which(noun, scene))
            return {"least": count >= num, "exactly": count == num, "most": count <= num}[how]
        case Related(first, relation, second):
            seconds = which(second, scene)
            return any(scene.holds(relation, i, j) for i in which(first, scene) for j in seconds)
        case Is(noun, what, negated):
            return any(fits(what, scene, i) != negated for i in which(noun, scene))
        case Ground(colour, texture):
            return colour in (None, scene.background) and texture in (None, scene.ground)
        case More(first, second):
            return len(which(first, scene)) > len(which(second, scene))
        case Moves(noun, direction):
            return any(_direction(scene, i) == direction for i in which(noun, scene))
        case Every(parts):
            return all(holds(part, scene) for part in parts)
    raise TypeError(f"statement: expected one of the grammar, received {type(statement).__name__}")


def true(sentence: str, scene: Scene, words: Mapping[str, str] | None = None) -> bool | None:
    """Whether a sentence, or several, are true of a scene; None for what is not of the grammar.

    An indefinite or definite article says that there is at least one, a number that there are exactly so many.

    Args:
        words: other words that the sentence may use, as given to `Say`.

    >>> from nearfar.worlds import Scene, Thing
    >>> scene = Scene((Thing("circle", "red", "small", "plain", 9, 9, 6),), "black", "plain", 64, 64)
    >>> true("a small red circle on a black background", scene), true("two circles", scene), true("hello", scene)
    (True, False, None)
    """
    statement = parse(reword(sentence, {new: old for old, new in (words or {}).items()}))
    return None if statement is None else holds(statement, scene)


def _direction(scene: Scene, i: int) -> str:
    motion = scene.things[i].motion
    if motion is None:
        raise ValueError("scene: expected one of a clip, whose things have a motion, received a still picture")
    dx, dy = motion
    signs = ((dx > 0) - (dx < 0), (dy > 0) - (dy < 0))
    return next((name for name, signs_of in DIRECTIONS.items() if signs_of == signs), "not")
