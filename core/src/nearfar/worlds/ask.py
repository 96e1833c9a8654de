"""Questions about scenes, with answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nearfar.checks import expect, expect_choice
from nearfar.rng import Rng
from nearfar.worlds.factors import Factors
from nearfar.worlds.grammar import Exists, More, Noun, Related, Statement, text
from nearfar.worlds.parse import Reader, tokens
from nearfar.worlds.rules import holds, which
from nearfar.worlds.say import SURE, Draws, describe
from nearfar.worlds.scene import INVERSE, RELATIONS, Scene

QUESTIONS = ("exist", "relation", "more", "count", "colour", "shape", "size", "texture", "place", "background")
_VALUES = ("colour", "shape", "size", "texture", "place")


class Questions(NamedTuple):
    """`text` and `answer`, one a question; `kind`, of `QUESTIONS`; `row` int64 [Q], the scene that each is about."""

    text: list[str]
    answer: list[str]
    kind: list[str]
    row: Tensor


def answer(question: str, scene: Scene) -> str | None:
    """The answer: "yes" or "no", digits, or the name of a value.

    Returns:
        None for what is no question of the grammar, or asks for a value of a thing that is not there or not alone.
    """
    words = tokens(question)
    if not words or words[-1] != "?":
        return None
    reader = Reader(words[:-1])
    if reader.take("how many"):
        found = reader.noun()
        if found is None or not reader.take("are there") or not reader.done:
            return None
        return str(len(which(found[0], scene)))
    if reader.take("what colour is the background"):
        return scene.background if reader.done else None
    if reader.take("where is"):
        return _value("place", reader, scene)
    for value in _VALUES[:-1]:
        if reader.take(f"what {value} is"):
            return _value(value, reader, scene)
    if reader.take("is the background"):
        reader = Reader(["the", "background", "is", *reader.words[reader.at :]])
    elif reader.take("is there", "are there"):
        reader = Reader(["there", "are", *reader.words[reader.at :]])
    elif reader.take("is"):
        reader = Reader(reader.words[reader.at :])
    else:
        return None
    statement = reader.clause()
    if statement is None or not reader.done:
        return None
    return "yes" if holds(statement, scene) else "no"


def _value(value: str, reader: Reader, scene: Scene) -> str | None:
    noun = reader.one()
    if noun is None or not reader.done:
        return None
    found = which(noun, scene)
    if len(found) != 1:
        return None
    return scene.place(found[0]) if value == "place" else getattr(scene.things[found[0]], value)


def questions(
    scenes: Sequence[Scene],
    factors: Factors,
    index: Tensor,
    rng: Rng,
    *,
    kinds: Sequence[str] = QUESTIONS,
    num: int = 1,
    yes: float = 0.5,
    nouns: Sequence[Noun] = (),
) -> Questions:
    """Up to `num` different questions a scene.

    Args:
        kinds: from `QUESTIONS`; each question's is drawn from them.
        num: questions a scene.
        yes: share of questions with the answer yes among those that have yes or no for an answer.
        nouns: what questions of existence ask for; by default things that are there, and, to be denied, names that
            differ from them in one value. Of given ones those that are there are asked for where the answer is yes.

    Notes: a kind that a scene has no question of (such as a value of a thing that has no name of its own) is left out.
    """
    expect(num >= 1, "num", "1 or more", num)
    expect(len(kinds) > 0, "kinds", "at least one", kinds)
    expect(0 <= yes <= 1, "yes", "from 0 to 1", yes)
    for kind in kinds:
        expect_choice("kinds", kind, QUESTIONS)
    asked: list[tuple[str, str, str, int]] = []
    draws = rng.uniform(index, "worlds.ask", 128).tolist()
    for row, (scene, u) in enumerate(zip(scenes, draws, strict=True)):
        draw, seen = Draws(u), set()
        for _ in range(8 * num):
            if len(seen) == num:
                break
            kind = draw.choose(kinds)
            found = _ask(kind, scene, factors, draw, draw.share() < yes, nouns)
            if found is not None and found[0] not in seen:
                seen.add(found[0])
                asked.append((*found, kind, row))
    texts, answers, names, rows = (list(part) for part in zip(*asked, strict=True)) if asked else ([], [], [], [])
    return Questions(texts, answers, names, torch.tensor(rows, dtype=torch.int64))


def _ask(
    kind: str, scene: Scene, factors: Factors, draw: Draws, yes: bool, nouns: Sequence[Noun]
) -> tuple[str, str] | None:
    if kind == "background":
        return "What colour is the background?", scene.background
    if kind in _VALUES:
        return _ask_value(kind, scene, draw)
    if kind == "count":
        options = [noun for noun, _ in _names(scene, factors, draw)]
        noun = options[int(draw.share() ** 2 * len(options))]
        return f"How many {noun.words(plural=True)} are there?", str(len(which(noun, scene)))
    for statement in _STATEMENTS[kind](scene, factors, draw, nouns):
        if holds(statement, scene) == yes:
            said = text(statement)
            lead, said = ("Are there", said.removeprefix("there are ")) if kind == "more" else ("Is there", said)
            return f"{lead} {said}?", "yes" if yes else "no"
    return None


def _ask_value(kind: str, scene: Scene, draw: Draws) -> tuple[str, str] | None:
    for i in draw.shuffled(range(len(scene.things))):
        for mention in (("shape",), ("colour",), ("shape", "colour"), ("shape", "size"), ("shape", "colour", "size")):
            noun = describe(scene, i, [part for part in mention if part != kind])
            if which(noun, scene) == [i] and (kind != "place" or scene.clear_place(i)):
                lead = "Where is" if kind == "place" else f"What {kind} is"
                value = scene.place(i) if kind == "place" else getattr(scene.things[i], kind)
                return f"{lead} the {noun.words()}?", value
    return None


def _names(scene: Scene, factors: Factors, draw: Draws) -> list[tuple[Noun, bool]]:
    """Names of things that are there, then near misses, each in random order."""
    there = [
        noun
        for i in range(len(scene.things))
        for noun in (describe(scene, i, mention) for mention in (("shape",), ("colour",), ("shape", "colour")))
    ]
    there = draw.shuffled(list(dict.fromkeys(there)))
    misses = []
    for noun in there:
        for part in ("shape", "colour"):
            if getattr(noun, part) is not None:
                value = draw.choose(factors.names[part])
                other = Noun(**{"shape": noun.shape, "colour": noun.colour, part: value})
                if not which(other, scene):
                    misses.append(other)
    return [(noun, True) for noun in there] + [(noun, False) for noun in dict.fromkeys(misses)]


def _existence(scene: Scene, factors: Factors, draw: Draws, nouns: Sequence[Noun]) -> Iterator[Statement]:
    names = draw.shuffled(list(nouns)) if nouns else [noun for noun, _ in _names(scene, factors, draw)]
    for noun in names:
        yield Exists(noun)


def _relation(scene: Scene, factors: Factors, draw: Draws, nouns: Sequence[Noun]) -> Iterator[Statement]:
    for i in draw.shuffled(range(len(scene.things))):
        for j in draw.shuffled(range(len(scene.things))):
            for relation in draw.shuffled(RELATIONS[:4]):
                if scene.holds(relation, i, j, SURE):
                    first, second = describe(scene, i, ("shape", "colour")), describe(scene, j, ("shape", "colour"))
                    yield Related(first, relation, second)
                    yield Related(first, INVERSE[relation], second)


def _more(scene: Scene, factors: Factors, draw: Draws, nouns: Sequence[Noun]) -> Iterator[Statement]:
    part = draw.choose(("shape", "colour"))
    values = draw.shuffled(factors.names[str(part)])
    there = [value for value in values if any(getattr(thing, part) == value for thing in scene.things)]
    for value in there:
        for other in values:
            if other != value:
                pair = (Noun(**{part: value}), Noun(**{part: other}))
                yield More(*pair)
                yield More(*reversed(pair))


_STATEMENTS: Mapping[str, Callable[[Scene, Factors, Draws, Sequence[Noun]], Iterator[Statement]]] = {
    "exist": _existence, "relation": _relation, "more": _more,
}  # fmt: skip
