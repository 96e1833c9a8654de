"""Statements about a scene: what they mean and how they are written; `nearfar.worlds.parse` reads them back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from nearfar.worlds.factors import SHAPES

NUMBERS = (
    "no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
    "fourteen", "fifteen", "sixteen",
)  # fmt: skip
DIRECTIONS: Mapping[str, tuple[int, int]] = {
    "left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "up left": (-1, -1), "up right": (1, -1),
    "down left": (-1, 1), "down right": (1, 1),
}  # fmt: skip
PLURAL = {shape: shape + ("es" if shape == "cross" else "s") for shape in (*SHAPES, "object")}


@dataclass(frozen=True)
class Noun:
    """What is said of a thing; None: nothing."""

    shape: str | None = None
    colour: str | None = None
    size: str | None = None
    texture: str | None = None
    place: str | None = None

    def words(self, plural: bool = False) -> str:
        """Without an article, e.g. "small red circle at the top"."""
        head = self.shape or "object"
        parts = [part for part in (self.size, self.texture, self.colour) if part]
        text = " ".join([*parts, PLURAL[head] if plural else head])
        return text + (f" at the {self.place}" if self.place else "")

    def a(self) -> str:
        """With the indefinite article."""
        text = self.words()
        return ("an " if text[0] in "aeiou" else "a ") + text


@dataclass(frozen=True)
class Exists:
    """There are so many: `how` is "least", "exactly" or "most"."""

    noun: Noun
    num: int = 1
    how: str = "least"


@dataclass(frozen=True)
class Related:
    """Some thing stands in a relation to another one."""

    first: Noun
    relation: str
    second: Noun


@dataclass(frozen=True)
class Is:
    """Some thing that is `noun` is, or is not, also what `what` says."""

    noun: Noun
    what: Noun
    negated: bool = False


@dataclass(frozen=True)
class Ground:
    """Colour and texture of the ground; None: nothing is said."""

    colour: str | None = None
    texture: str | None = None

    def words(self) -> str:
        """Without an article."""
        return " ".join([*(part for part in (self.texture, self.colour) if part), "background"])


@dataclass(frozen=True)
class More:
    """There are more of the first than of the second."""

    first: Noun
    second: Noun


@dataclass(frozen=True)
class Moves:
    """Some thing moves in a direction of `DIRECTIONS`, or "not" at all."""

    noun: Noun
    direction: str


@dataclass(frozen=True)
class Every:
    """All of these hold."""

    parts: tuple[Statement, ...]


Statement = Exists | Related | Is | Ground | More | Moves | Every


def text(statement: Statement) -> str:
    """A statement as a phrase, without capital and full stop."""
    match statement:
        case Exists(noun, 1, "least"):
            return noun.a()
        case Exists(noun, num, how):
            lead = {"exactly": "exactly " if num == 1 else "", "least": "at least ", "most": "at most "}[how]
            return f"{lead}{NUMBERS[num]} {noun.words(plural=num != 1)}"
        case Related(first, relation, second):
            if relation.startswith("same"):
                return f"{first.a()} of the {relation} {second.a()}"
            return f"{first.a()} {relation} {second.a()}"
        case Is(noun, what, negated):
            said = " ".join(part for part in (what.size, what.texture, what.colour) if part)
            said = what.a() if what.shape else said
            said = said if what.shape or not what.place else f"{said} at the {what.place}".strip()
            return f"{noun.a()} is {'not ' if negated else ''}{said}"
        case Ground():
            return "on a " + statement.words() if statement.words()[0] not in "aeiou" else "on an " + statement.words()
        case More(first, second):
            return f"there are more {first.words(plural=True)} than {second.words(plural=True)}"
        case Moves(noun, direction):
            return f"{noun.a()} {'stands still' if direction == 'not' else 'moves ' + direction}"
        case Every(parts):
            phrases = [text(part) for part in parts]
            if isinstance(parts[-1], Ground) and len(parts) > 1:
                rest = parts[0] if len(parts) == 2 else Every(parts[:-1])
                return f"{text(rest)} {phrases[-1]}"
            return phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]
    raise TypeError(f"statement: expected one of this grammar, received {type(statement).__name__}")


def reword(sentence: str, words: Mapping[str, str]) -> str:
    """A sentence with some words replaced by others, e.g. {"red": "crimson"}; plurals follow."""
    for old, new in words.items():
        sentence = re.sub(rf"\b{re.escape(old)}(s|es)?\b", lambda found, new=new: new + (found[1] or ""), sentence)
    return sentence
