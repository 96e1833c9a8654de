"""Sentences of a small grammar whose meaning is known: the same meaning in many wordings, and how alike two are.

scene = Meaning(...)            five slots: who, does what, to what, where, when
say(scene, rng)                 one of its wordings
overlap(scene, other)           share of slots in which two meanings agree, in [0, 1]
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    """Pairs of synonyms of a text "one/other, one/other"."""
    return tuple(tuple(pair.split("/")) for pair in text.split(", "))  # type: ignore[misc]


WHO = _pairs(
    "doctor/physician, teacher/instructor, child/kid, woman/lady, man/gentleman, farmer/grower, painter/artist, "
    "driver/motorist, writer/author, thief/robber"
)
VERB = _pairs(
    "buys/purchases, fixes/repairs, carries/transports, finds/discovers, breaks/smashes, hides/conceals, "
    "cleans/washes, draws/sketches"
)
WHAT = _pairs(
    "car/automobile, couch/sofa, stone/rock, present/gift, photo/picture, bag/sack, bicycle/bike, cup/mug, lamp/light, "
    "boat/ship"
)
WHERE = _pairs(
    "in the city/in town, near the forest/by the woods, at the shop/in the store, on the street/along the road, "
    "at home/in the house, by the sea/near the ocean"
)
WHEN = _pairs(
    "today/this day, at night/after dark, in the morning/at dawn, every week/weekly, quickly/in a hurry, "
    "slowly/without haste"
)
SLOTS = (WHO, VERB, WHAT, WHERE, WHEN)


@dataclass(frozen=True)
class Meaning:
    """One value a slot, as a number."""

    who: int
    verb: int
    what: int
    where: int
    when: int

    def values(self) -> tuple[int, ...]:
        return tuple(getattr(self, f.name) for f in fields(self))


NAMES = tuple(f.name for f in fields(Meaning))
NUM_SLOTS = len(NAMES)


def meaning(rng: np.random.Generator) -> Meaning:
    """A meaning, every slot drawn evenly."""
    return Meaning(*(int(rng.integers(len(slot))) for slot in SLOTS))


def say(scene: Meaning, rng: np.random.Generator) -> str:
    """One of the wordings of a meaning: a synonym for each slot, and an order of its parts."""
    who, verb, what, where, when = (
        slot[value][int(rng.integers(2))] for slot, value in zip(SLOTS, scene.values(), strict=True)
    )
    article = ("the", "a")[int(rng.integers(2))]
    core = f"{article} {who} {verb} the {what}"
    order = int(rng.integers(3))
    return (f"{core} {where} {when}", f"{when} {core} {where}", f"{where} {core} {when}")[order]


def edited(scene: Meaning, rng: np.random.Generator, slots: int = 1) -> Meaning:
    """A meaning that differs in so many slots."""
    changed = scene
    for number in rng.choice(NUM_SLOTS, slots, replace=False).tolist():
        old = scene.values()[number]
        new = int(rng.integers(len(SLOTS[number]) - 1))
        changed = replace(changed, **{NAMES[number]: new + (new >= old)})
    return changed


def overlap(a: Meaning, b: Meaning) -> float:
    """Share of slots in which two meanings agree."""
    return sum(x == y for x, y in zip(a.values(), b.values(), strict=True)) / NUM_SLOTS


def corpus(num: int, seed: int) -> tuple[list[str], list[Meaning]]:
    """So many sentences of independent meanings, and the meanings."""
    rng = np.random.default_rng(seed)
    meanings = [meaning(rng) for _ in range(num)]
    return [say(m, rng) for m in meanings], meanings


def scored_pairs(num: int, seed: int) -> tuple[list[str], list[str], np.ndarray]:
    """Pairs of sentences and how alike they are: as many pairs of each number of changed slots, 0 to all."""
    rng = np.random.default_rng(seed)
    first, second, scores = [], [], []
    for number in range(num):
        scene = meaning(rng)
        other = edited(scene, rng, number % (NUM_SLOTS + 1))
        first.append(say(scene, rng))
        second.append(say(other, rng))
        scores.append(overlap(scene, other))
    return first, second, np.array(scores)


def triplets(num: int, seed: int) -> tuple[list[str], list[str], list[str]]:
    """Sentence, another wording of it, and a sentence that differs in one slot."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(num):
        scene = meaning(rng)
        rows.append((say(scene, rng), say(scene, rng), say(edited(scene, rng), rng)))
    first, same, other = zip(*rows, strict=True)
    return list(first), list(same), list(other)
