"""Captions of scenes: tags, names, short, long, noisy, and wrong in one told detail.

What a caption says is put together as a statement of the grammar, so that what it promises can be checked by rules.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from nearfar.checks import expect, expect_choice
from nearfar.rng import Rng
from nearfar.worlds.factors import Factors
from nearfar.worlds.grammar import NUMBERS, Every, Exists, Ground, Is, Noun, Related, Statement, reword, text
from nearfar.worlds.rules import holds
from nearfar.worlds.scene import INVERSE, RELATIONS, Scene

T = TypeVar("T")

KINDS = ("tags", "names", "short", "long", "noisy", "wrong")
DETAILS = ("colour", "shape", "size", "texture", "swap", "relation", "count", "background")
SURE = 1.6  # a relation is told only where it holds by so many times its margin, and denied where its inverse does
_FILLERS = (
    "IMG_{n} {name}", "{name} for sale, free shipping", "best {word} photo {n}", "my {name} :)",
    "{name} - wallpaper {n}", "DSC{n} {word}", "untitled {word} ({n})", "look at this {name}!!",
)  # fmt: skip


@dataclass(frozen=True)
class Say:
    """What captions are like.

    Args:
        kind: tags "red circle, blue square"; names, a phrase that names all things; short, one thing, or two in a
            relation; long, sentences on everything; noisy, as texts found beside pictures are; wrong, a caption of the
            kind `base` with one detail changed so that it is false.
        mention: what is said of a thing, of "shape", "colour", "size" and "texture"; none: shape and colour, and all of
            them in long captions. Without shape a thing is an "object".
        noise: share of noisy captions that are about something which is not there.
        base: kind that a wrong caption starts from: names, short or long.
        details: what may be wrong, from `DETAILS`.
        words: other words for those of the grammar, e.g. {"red": "crimson"}.
    """

    kind: str = "short"
    mention: tuple[str, ...] = ()
    noise: float = 0.3
    base: str = "short"
    details: tuple[str, ...] = DETAILS
    words: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        expect_choice("kind", self.kind, KINDS)
        expect_choice("base", self.base, ("names", "short", "long"))
        for part in self.mention:
            expect_choice("mention", part, ("shape", "colour", "size", "texture"))
        for part in self.details:
            expect_choice("details", part, DETAILS)
        expect(len(self.details) > 0, "details", "at least one", self.details)
        expect(0 <= self.noise <= 1, "noise", "from 0 to 1", self.noise)


class Captions(NamedTuple):
    """`text`, one a scene; `true` bool [B], whether it is true; `detail`, what is wrong, or ""; `original`, the true
    caption that a wrong one was made from, or ""."""

    text: list[str]
    true: Tensor
    detail: list[str]
    original: list[str]


class Draws:
    """Choices of one scene, each the next of its uniform draws."""

    def __init__(self, values: Sequence[float]) -> None:
        self.values: Iterator[float] = itertools.cycle(values)

    def share(self) -> float:
        """In [0, 1)."""
        return next(self.values)

    def choose(self, options: Sequence[T]) -> T:
        """One of the options, all alike."""
        return options[int(self.share() * len(options))]

    def shuffled(self, options: Sequence[T]) -> list[T]:
        """All of the options."""
        keys = [self.share() for _ in options]
        return [options[i] for i in sorted(range(len(options)), key=keys.__getitem__)]


def captions(scenes: Sequence[Scene], say: Say, factors: Factors, index: Tensor, rng: Rng) -> Captions:
    """One caption a scene.

    Raises:
        ValueError: no detail of those allowed can be wrong in a scene.
    """
    write = _WRITERS[say.kind]
    draws = rng.uniform(index, f"worlds.say.{say.kind}", 64).tolist()
    written = [write(scene, say, factors, Draws(u)) for scene, u in zip(scenes, draws, strict=True)]
    said, true, detail, original = zip(*written, strict=True) if written else ((), (), (), ())
    return Captions(
        [reword(one, say.words) for one in said], torch.tensor(true, dtype=torch.bool),
        list(detail), [reword(one, say.words) for one in original],
    )  # fmt: skip


_Written = tuple[str, bool, str, str]


def describe(scene: Scene, i: int, mention: Sequence[str]) -> Noun:
    """A noun that says these values of thing i; a plain texture is not worth a word."""
    thing = scene.things[i]
    said = {part: getattr(thing, part) for part in mention}
    return Noun(**{part: value for part, value in said.items() if value != "plain"})


def _mention(say: Say, everything: bool = False) -> tuple[str, ...]:
    return say.mention or (("shape", "colour", "size", "texture") if everything else ("shape", "colour"))


def _tags(scene: Scene, say: Say, factors: Factors, draw: Draws) -> _Written:
    nouns = dict.fromkeys(describe(scene, i, _mention(say)) for i in range(len(scene.things)))
    return ", ".join(noun.words() for noun in draw.shuffled(list(nouns))), True, "", ""


def _counted(scene: Scene, mention: Sequence[str], draw: Draws) -> list[Statement]:
    """All things, each said once, with its number."""
    nouns = [describe(scene, i, mention) for i in range(len(scene.things))]
    found: list[Statement] = []
    for noun in draw.shuffled(list(dict.fromkeys(nouns))):
        # A noun without texture or size also fits things that are said with one, so the number is not exact then.
        num = nouns.count(noun)
        exact = Exists(noun, num, "exactly")
        found.append(exact if num > 1 and holds(exact, scene) else Exists(noun, num))
    return found


def _every(parts: Sequence[Statement]) -> Statement:
    return parts[0] if len(parts) == 1 else Every(tuple(parts))


def _names(scene: Scene, say: Say, draw: Draws) -> Statement:
    return _every(_counted(scene, _mention(say), draw))


def _short(scene: Scene, say: Say, draw: Draws) -> Statement:
    # The kind of relation comes first, so that none is rare because few pairs stand in it.
    for relation in draw.shuffled(("left of", "above", "in front of")):
        pairs = itertools.permutations(range(len(scene.things)), 2)
        found = [pair for pair in pairs if scene.holds(relation, *pair, SURE)]
        if found:
            i, j = draw.choose(found)
            if draw.share() < 0.5:
                i, j, relation = j, i, INVERSE[relation]
            return Related(describe(scene, i, _mention(say)), relation, describe(scene, j, _mention(say)))
    i = draw.choose(range(len(scene.things)))
    return Exists(describe(scene, i, _mention(say)))


def _long(scene: Scene, say: Say, draw: Draws) -> list[Statement]:
    mention = _mention(say, everything=True)
    texture = None if scene.ground == "plain" else scene.ground
    num = len(scene.things)
    first = Exists(Noun(), num, "exactly") if num > 1 else Exists(Noun(), 1, "exactly")
    found: list[Statement] = [Every((first, Ground(scene.background, texture)))]
    for i in draw.shuffled(range(num)):
        noun = describe(scene, i, mention)
        found.append(Is(noun, Noun(place=scene.place(i))) if scene.clear_place(i) else Exists(noun))
    for i, j in draw.shuffled(list(itertools.combinations(range(num), 2)))[:2]:
        for relation in draw.shuffled(RELATIONS):
            a, b = (i, j) if scene.holds(relation, i, j, SURE) else (j, i)
            if scene.holds(relation, a, b, SURE):
                nouns = (describe(scene, a, mention), describe(scene, b, mention))
                found.append(Related(nouns[0], relation, nouns[1]))
                break
    return found


def _sentence(statement: Statement) -> str:
    """With a capital and a full stop; what merely exists gets "there is"."""
    said = text(statement)
    first = statement.parts[0] if isinstance(statement, Every) else statement
    if isinstance(first, Exists):
        said = ("there is " if first.num == 1 else "there are ") + said
    elif isinstance(first, Related):
        relation = ("of the " if first.relation.startswith("same") else "") + first.relation
        said = said.replace(f" {relation} ", f" is {relation} ", 1)
    return said[0].upper() + said[1:] + "."


def _write(kind: str, scene: Scene, say: Say, draw: Draws) -> list[Statement]:
    if kind == "long":
        return _long(scene, say, draw)
    return [_names(scene, say, draw) if kind == "names" else _short(scene, say, draw)]


def _join(kind: str, parts: Sequence[Statement]) -> str:
    return " ".join(_sentence(part) for part in parts) if kind == "long" else text(parts[0])


def _right(scene: Scene, say: Say, factors: Factors, draw: Draws) -> _Written:
    return _join(say.kind, _write(say.kind, scene, say, draw)), True, "", ""


def _noisy(scene: Scene, say: Say, factors: Factors, draw: Draws) -> _Written:
    mention = _mention(say)
    unrelated = draw.share() < say.noise
    noun = describe(scene, draw.choose(range(len(scene.things))), mention)
    if unrelated:
        for _ in range(20):
            noun = Noun(**{part: draw.choose(factors.names[part]) for part in mention if part in ("shape", "colour")})
            if not holds(Exists(noun), scene):
                break
        else:
            raise ValueError(f"noise: expected names of things that are not there, received a scene with {noun.a()}")
    name = noun.words()
    word = draw.choose([name.split()[-1], name.split()[0]]) if not unrelated else name
    said = draw.choose((*_FILLERS, "{name}", "{word}"))
    said = said.format(name=name, word=word, n=1000 + int(9000 * draw.share()))
    return said, not unrelated, "unrelated" if unrelated else "", ""


def _wrong(scene: Scene, say: Say, factors: Factors, draw: Draws) -> _Written:
    parts = _write(say.base, scene, say, draw)
    for detail in draw.shuffled(say.details):
        for at in draw.shuffled(range(len(parts))):
            for changed in _changed(parts[at], detail, scene, factors, draw):
                if not holds(changed, scene):
                    new = [*parts[:at], changed, *parts[at + 1 :]]
                    return _join(say.base, new), False, detail, _join(say.base, parts)
    raise ValueError(f"details: expected one that can be wrong, received {say.details} for {_join(say.base, parts)!r}")


def _changed(statement: Statement, detail: str, scene: Scene, factors: Factors, draw: Draws) -> Iterator[Statement]:
    """The statement with one detail changed, in all ways, at random."""
    if isinstance(statement, Every):
        if detail == "swap" and all(isinstance(part, Exists) for part in statement.parts):
            yield from _swapped(statement)
        for at in draw.shuffled(range(len(statement.parts))):
            for part in _changed(statement.parts[at], detail, scene, factors, draw):
                yield Every((*statement.parts[:at], part, *statement.parts[at + 1 :]))
        return
    if detail in ("colour", "shape", "size", "texture"):
        for name in draw.shuffled(["noun", "first", "second"]):
            noun = getattr(statement, name, None)
            if noun is not None and getattr(noun, detail) is not None:
                for value in draw.shuffled(factors.names[detail]):
                    if value not in (getattr(noun, detail), "plain"):
                        yield replace(statement, **{name: replace(noun, **{detail: value})})
    elif detail == "swap" and isinstance(statement, Related):
        a, b = statement.first, statement.second
        for part in ("colour", "shape"):
            x, y = getattr(a, part), getattr(b, part)
            if x != y and None not in (x, y):
                yield replace(statement, first=replace(a, **{part: y}), second=replace(b, **{part: x}))
    elif detail == "relation" and isinstance(statement, Related):
        yield replace(statement, relation=INVERSE[statement.relation])
    elif detail == "count" and isinstance(statement, Exists) and statement.num + 1 < len(NUMBERS):
        yield Exists(statement.noun, statement.num + 1, "exactly")
    elif detail == "background" and isinstance(statement, Ground):
        for value in draw.shuffled(factors.backgrounds):
            if value != statement.colour:
                yield Ground(value, statement.texture)


def _swapped(statement: Every) -> Iterator[Statement]:
    """Two names with their colours exchanged."""
    for i, j in itertools.combinations(range(len(statement.parts)), 2):
        a, b = statement.parts[i], statement.parts[j]
        if isinstance(a, Exists) and isinstance(b, Exists) and None not in (a.noun.colour, b.noun.colour):
            parts = list(statement.parts)
            parts[i] = replace(a, noun=replace(a.noun, colour=b.noun.colour))
            parts[j] = replace(b, noun=replace(b.noun, colour=a.noun.colour))
            yield Every(tuple(parts))


_WRITERS: Mapping[str, Callable[[Scene, Say, Factors, Draws], _Written]] = {
    "tags": _tags, "names": _right, "short": _right, "long": _right, "noisy": _noisy, "wrong": _wrong,
}  # fmt: skip
