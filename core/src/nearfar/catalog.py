"""The catalogue: one card a system, and the questions one asks of them."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

from nearfar import plugin
from nearfar.checks import expect, expect_choice

if TYPE_CHECKING:
    from collections.abc import Iterable

KINDS = ("train", "pipeline", "inference", "tool", "analysis", "baseline")
EVIDENCE = ("code", "text", "rebuilt")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a system's demonstration should show, written down before its first result.

    `order` lists the arms from best to worst by `metric`; the first is to lead the last by at least `margin`.
    """

    metric: str
    order: tuple[str, ...]
    direction: Literal["higher", "lower"] = "higher"
    margin: float = 0.0

    def __post_init__(self) -> None:
        expect_choice("claim: direction", self.direction, ("higher", "lower"))
        expect(len(self.order) >= 2, "claim: order", "two arms or more", self.order)
        expect(len(set(self.order)) == len(self.order), "claim: order", "each arm once", self.order)
        expect(self.margin >= 0, "claim: margin", "0 or more", self.margin)


@dataclass(frozen=True, kw_only=True)
class Demonstration:
    """The small experiment of a system, which `nearfar demonstrate` runs.

    Args:
        arms: every arm and control, in the order of the table; the claim's are among them.
        run: "module:function"; the function takes (arm, seed, quick) and returns its metrics by name. It is a function
            of these alone; `quick` asks for a few seconds' work.
        seeds: how many, from 0.
        data: what it runs on, one line.
    """

    arms: tuple[str, ...]
    run: str
    data: str
    seeds: int = 3

    def __post_init__(self) -> None:
        expect(len(self.arms) >= 2, "demonstration: arms", "two or more", self.arms)
        expect(len(set(self.arms)) == len(self.arms), "demonstration: arms", "each once", self.arms)
        expect(self.seeds >= 3, "demonstration: seeds", "3 or more", self.seeds)


@dataclass(frozen=True, kw_only=True)
class Taxonomy:
    """Where a system stands: what makes a positive, where negatives come from, how keys are encoded, which loss."""

    positive: Literal["transformation", "label", "modality", "context", "sequence", "cluster"]
    negative: Literal["batch", "memory", "mined", "metadata", "none"]
    key: Literal["shared", "momentum", "frozen"]
    loss: Literal["probabilistic", "energy", "mutual_information", "regression", "clustering"]

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(Taxonomy).items():
            expect_choice(f"taxonomy: {name}", getattr(self, name), get_args(hint))


TRAITS: dict[str, tuple[str, ...]] = {name: get_args(hint) for name, hint in get_type_hints(Taxonomy).items()}
"""every trait of the taxonomy and its values"""
POSITIVES: tuple[str, ...] = TRAITS["positive"]


@dataclass(frozen=True, kw_only=True)
class System:
    """One published system that works here.

    Args:
        slug: its name everywhere.
        also: plugins that list it by alias.
        recipe: qualified name of the main recipe ("images/simclr"), for kinds train, pipeline and baseline.
        entry: "module:object" of what users call, for the other kinds.
        oracles: one line an oracle, in the order of their numbers from 1; each has a test marked oracle(slug, n).
        evidence: what the implementation rests on; "rebuilt" is a reconstruction with its gaps filled by choices.
        export: formats its features export to, or ("none: reason",).
    """

    slug: str
    title: str
    authors: str
    year: int
    venue: str
    plugin: str
    kind: str
    summary: str
    taxonomy: Taxonomy | None = None
    also: tuple[str, ...] = ()
    recipe: str = ""
    entry: str = ""
    oracles: tuple[str, ...] = ()
    claim: Claim | None = None
    evidence: str = "code"
    export: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        slug = bool(re.fullmatch(r"[a-z][a-z0-9_]*", self.slug))
        expect(slug, "card: slug", "lower case letters, digits and underscores", repr(self.slug))
        expect_choice(f"card {self.slug}: kind", self.kind, KINDS)
        expect_choice(f"card {self.slug}: evidence", self.evidence, EVIDENCE)
        expect(
            bool(self.recipe) == self.trains,
            f"card {self.slug}: recipe",
            "one exactly for kinds that train",
            self.recipe,
        )
        expect(bool(self.recipe) or bool(self.entry), f"card {self.slug}: entry", "an entry", self.entry)

    @property
    def trains(self) -> bool:
        """Whether the system has a recipe to train by."""
        return self.kind in ("train", "pipeline", "baseline")

    def to_dict(self) -> dict[str, Any]:
        """The card as plain values."""
        return asdict(self)


def systems(names: Iterable[str] | None = None) -> list[System]:
    """Cards of the installed plugins (or of those named), by plugin and slug."""
    chosen = list(plugin.installed()) if names is None else names
    cards = [card for name in chosen for card in plugin.load(name).cards()]
    return sorted(cards, key=lambda card: (card.plugin, card.slug))


def system(slug: str) -> System:
    """The card of that slug."""
    cards = {card.slug: card for card in systems()}
    expect_choice("system", slug, sorted(cards))
    return cards[slug]


def select(cards: Iterable[System], *, plugin: str = "", kind: str = "", positive: str = "") -> list[System]:
    """The cards that fit every condition given; a plugin's cards include those it lists by alias."""
    if kind:
        expect_choice("kind", kind, KINDS)
    if positive:
        expect_choice("positive", positive, POSITIVES)
    return [
        card
        for card in cards
        if (not plugin or plugin == card.plugin or plugin in card.also)
        and (not kind or kind == card.kind)
        and (not positive or (card.taxonomy is not None and positive == card.taxonomy.positive))
    ]


def grouped(cards: Iterable[System], by: str) -> dict[str, list[System]]:
    """The cards by a trait of their taxonomy, in the taxonomy's order; last, as "-", those that stand outside it."""
    expect_choice("by", by, TRAITS)
    groups: dict[str, list[System]] = {value: [] for value in (*TRAITS[by], "-")}
    for card in cards:
        groups["-" if card.taxonomy is None else getattr(card.taxonomy, by)].append(card)
    return {value: found for value, found in groups.items() if found}
