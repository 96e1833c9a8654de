"""Reads sentences: `parse(text(statement)) == statement` for everything that `nearfar.worlds.grammar.text` writes."""

from __future__ import annotations

import re
from collections.abc import Sequence

from nearfar.worlds.factors import COLOURS, PLACES, SIZES, TEXTURES
from nearfar.worlds.grammar import (
    DIRECTIONS,
    NUMBERS,
    PLURAL,
    Every,
    Exists,
    Ground,
    Is,
    More,
    Moves,
    Noun,
    Related,
    Statement,
)  # fmt: skip
from nearfar.worlds.scene import INVERSE

_SAME = {
    "big": "large", "little": "small", "gray": "grey", "center": "centre", "middle": "centre", "color": "colour",
    "thing": "object", "things": "objects", "zero": "no", "larger": "bigger",
}  # fmt: skip
_ADJECTIVES = {
    **dict.fromkeys(SIZES, "size"), **dict.fromkeys(TEXTURES, "texture"), **dict.fromkeys(COLOURS, "colour")
}  # fmt: skip


def tokens(sentence: str) -> list[str]:
    """Lower-case words, commas and full stops, with the few synonyms replaced."""
    found: list[str] = re.findall(r"[a-z]+|[,.;?]", sentence.lower())
    return [_SAME.get(word, word) for word in found]


def parse(sentence: str) -> Statement | None:
    """What a sentence, or several, say; None for what is not of this grammar."""
    parts: list[Statement] = []
    for single in _split(tokens(sentence), (".", ";")):
        reader = Reader(single)
        found = reader.clauses()
        if found is None or not reader.done:
            return None
        parts += found
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else Every(tuple(parts))


def _split(words: Sequence[str], at: Sequence[str]) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for word in words:
        if word in at:
            parts.append([])
        else:
            parts[-1].append(word)
    return [part for part in parts if part]


class Reader:
    """Reads words from left to right; every method returns None, and takes nothing, where its phrase is not."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words, self.at = list(words), 0

    @property
    def done(self) -> bool:
        """Whether all words were read."""
        return self.at == len(self.words)

    def take(self, *phrases: str) -> str | None:
        """The first of these phrases that stands here."""
        for phrase in phrases:
            parts = phrase.split()
            if self.words[self.at : self.at + len(parts)] == parts:
                self.at += len(parts)
                return phrase
        return None

    def clauses(self) -> list[Statement] | None:
        """Clauses joined by commas and "and"."""
        found: list[Statement] = []
        while True:
            clause = self.clause()
            if clause is None:
                return None
            found.append(clause)
            ground = self.on_ground()
            if ground is not None:
                found.append(ground)
            joined = self.take(", and", ",", "and", "with")
            if joined is None:
                return found

    def on_ground(self) -> Ground | None:
        """ "on a black background"."""
        start = self.at
        if self.take("on", "against"):
            self.take("a", "an", "the")
            ground = self.ground()
            if ground is not None:
                return ground
        self.at = start
        return None

    def ground(self) -> Ground | None:
        """Adjectives and "background"."""
        start = self.at
        said = self.adjectives()
        if said is not None and "size" not in said and self.take("background"):
            return Ground(said.get("colour"), said.get("texture"))
        self.at = start
        return None

    def adjectives(self) -> dict[str, str] | None:
        """At most one of size, texture and colour each; None where one comes twice."""
        said: dict[str, str] = {}
        while not self.done and self.words[self.at] in _ADJECTIVES:
            word = self.words[self.at]
            if _ADJECTIVES[word] in said:
                return None
            said[_ADJECTIVES[word]] = word
            self.at += 1
        return said

    def place(self) -> str | None:
        """ "at the top left"."""
        start = self.at
        if self.take("at", "in", "on") and self.take("the"):
            here = self.at
            for place in sorted(PLACES, key=len, reverse=True):
                if self.take(place):
                    after = self.words[self.at : self.at + 3]
                    # "right of a star" is a relation; "right of the same colour as a star" is a place and another one.
                    if (
                        place.split()[-1] not in ("left", "right")
                        or after[:1] != ["of"]
                        or after[1:] == ["the", "same"]
                    ):
                        return place
                    self.at = here
        self.at = start
        return None

    def noun(self) -> tuple[Noun, bool] | None:
        """Adjectives, a shape and perhaps a place; and whether it was a plural."""
        start = self.at
        said = self.adjectives()
        if said is not None and not self.done:
            word = self.words[self.at]
            for shape, plural in PLURAL.items():
                if word in (shape, plural):
                    self.at += 1
                    place = self.place()
                    return Noun(None if shape == "object" else shape, **said, place=place), word == plural
        self.at = start
        return None

    def one(self) -> Noun | None:
        """A noun in the singular with or without an article."""
        start = self.at
        self.take("a", "an", "the", "some", "another")
        found = self.noun()
        if found is None or found[1]:
            self.at = start
            return None
        return found[0]

    def relation(self) -> str | None:
        """ "left of", "to the left of", "of the same colour as"."""
        start = self.at
        if self.take("to the", "on the"):
            side = self.take("left of", "right of")
            if side:
                return side
            self.at = start
        self.take("of the", "has the", "the")
        found = self.take(*INVERSE)
        if found is None:
            self.at = start
        return found

    def clause(self) -> Statement | None:
        """One statement."""
        start = self.at
        for form in (self._more, self._ground_is, self._counted, self._about):
            self.at = start
            found = form()
            if found is not None:
                return found
        self.at = start
        return None

    def _more(self) -> Statement | None:
        if not self.take("there are more", "more"):
            return None
        first = self.noun()
        second = self.noun() if first and self.take("than") else None
        return More(first[0], second[0]) if first and second else None

    def _ground_is(self) -> Statement | None:
        if self.take("the background is"):
            said = self.adjectives()
            return Ground(said.get("colour"), said.get("texture")) if said and "size" not in said else None
        ground = self.on_ground()
        if ground is None:
            self.take("a", "an", "the")
            ground = self.ground()
        return ground

    def _counted(self) -> Statement | None:
        self.take("there is", "there are")
        how = {"exactly": "exactly", "at least": "least", "at most": "most"}.get(
            self.take("exactly", "at least", "at most") or ""
        )
        number = self.take(*NUMBERS)
        found = self.noun() if number else None
        if not number or not found:
            return None
        num = NUMBERS.index(number)
        # "two circles" says that there is no third one; "one circle" says no more than "a circle".
        return Exists(found[0], num, how or ("least" if num == 1 else "exactly")) if num != 1 or not found[1] else None

    def _about(self) -> Statement | None:
        self.take("there is", "there are")
        first = self.one()
        if first is None:
            return None
        verb = self.take("moves", "stands still")
        if verb == "stands still":
            return Moves(first, "not")
        if verb:
            direction = self.take(*sorted(DIRECTIONS, key=len, reverse=True))
            return Moves(first, direction) if direction else None
        start = self.at
        is_ = self.take("is not", "is")
        relation = self.relation() if is_ != "is not" else None
        if relation:
            second = self.one()
            return Related(first, relation, second) if second else None
        if is_ is None:
            self.at = start
            return Exists(first)
        what = self._quality()
        return Is(first, what, is_ == "is not") if what else None

    def _quality(self) -> Noun | None:
        """What follows "is": adjectives, a place, or a noun."""
        noun = self.one()
        if noun is not None:
            return noun
        said = self.adjectives()
        place = self.place()
        return Noun(**said, place=place) if said is not None and (said or place) else None
