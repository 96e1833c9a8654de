"""The catalogue: one card a system, and the questions one asks of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from nearfar import plugin
from nearfar.checks import expect, expect_choice

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


@dataclass(frozen=True, kw_only=True)
class Taxonomy:
    """Where a system stands: what makes a positive, where negatives come from, how keys are encoded, which loss."""

    positive: Literal["transformation", "label", "modality", "context", "sequence", "cluster"]
    negative: Literal["batch", "memory", "mined", "metadata", "none"]
    key: Literal["shared", "momentum", "frozen"]
    loss: Literal["probabilistic", "energy", "mutual_information", "regression", "clustering"]


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
        expect_choice(f"card {self.slug}: kind", self.kind, KINDS)
        expect_choice(f"card {self.slug}: evidence", self.evidence, EVIDENCE)
        runs = self.kind in ("train", "pipeline", "baseline")
        expect(bool(self.recipe) == runs, f"card {self.slug}: recipe", "a recipe exactly for kinds that train", self.recipe)
        expect(bool(self.recipe) or bool(self.entry), f"card {self.slug}: entry", "an entry", self.entry)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def systems(names: list[str] | None = None) -> list[System]:
    """Cards of the installed plugins (or of those named), by plugin and slug."""
    chosen = list(plugin.installed()) if names is None else names
    cards = [card for name in chosen for card in plugin.load(name).cards()]
    return sorted(cards, key=lambda card: (card.plugin, card.slug))


def system(slug: str) -> System:
    """The card of that slug."""
    cards = {card.slug: card for card in systems()}
    expect_choice("system", slug, sorted(cards))
    return cards[slug]
