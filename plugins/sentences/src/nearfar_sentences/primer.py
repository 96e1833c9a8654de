"""Which method on sentences contrasts what with what: six axes of every registered system. Loads no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args, get_type_hints

from nearfar.catalog import System
from nearfar.checks import expect, expect_choice
from nearfar.plugin import load, locate

Contrast = Literal["input-input", "input-label"]
Positives = Literal["augmentation", "structure", "supervision", "generator"]
Negatives = Literal["in-batch", "sampled labels", "hard", "memory bank", "generator", "all labels"]
Objective = Literal["ranking NCE", "binary NCE", "margin", "energy"]
Stage = Literal["pre-training", "fine-tuning", "joint"]
Use = Literal[
    "sentence embedding", "zero-/few-shot", "data efficiency", "long tail", "cross-modal", "robustness", "topics"
]


@dataclass(frozen=True, kw_only=True)
class Axes:
    """Where a method stands.

    Args:
        contrast: a text with a text, or with a label: a class, a word, any output.
        positives: where they come from; structure: neighbours, a span and its document, a text and its words.
        negatives: where they come from.
        objective: what tells positives from negatives.
        stage: when.
        use: what for.
    """

    contrast: Contrast
    positives: tuple[Positives, ...]
    negatives: tuple[Negatives, ...]
    objective: Objective
    stage: Stage
    use: tuple[Use, ...]

    def __post_init__(self) -> None:
        hints = get_type_hints(Axes)
        for field in fields(self):
            value, hint = getattr(self, field.name), hints[field.name]
            several = isinstance(value, tuple)
            choices = get_args(get_args(hint)[0] if several else hint)
            expect(not several or len(value) > 0, f"axes: {field.name}", "one or more", value)
            for one in value if several else (value,):
                expect_choice(f"axes: {field.name}", one, choices)


@dataclass(frozen=True)
class Entry:
    """A registered system with its axes and the class that users configure, as "module:name"."""

    slug: str
    title: str
    axes: Axes
    config: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def _inputs(
    *positives: Positives,
    negatives: tuple[Negatives, ...] = ("in-batch",),
    stage: Stage = "fine-tuning",
    use: tuple[Use, ...] = ("sentence embedding",),
) -> Axes:
    return Axes(
        contrast="input-input", positives=positives, negatives=negatives, objective="ranking NCE", stage=stage, use=use
    )


AXES: dict[str, Axes] = {
    "simcse": _inputs("augmentation", "supervision", negatives=("in-batch", "hard")),
    "clear": _inputs("augmentation", stage="joint", use=("sentence embedding", "robustness")),
    "diffcse": _inputs("augmentation", negatives=("in-batch", "generator")),
    "mcse": _inputs("augmentation", "supervision", use=("sentence embedding", "cross-modal")),
    "micse": _inputs("augmentation", use=("sentence embedding", "zero-/few-shot", "data efficiency")),
    "whitenedcse": _inputs("augmentation"),
    "dclr": _inputs("augmentation", negatives=("in-batch", "hard"), use=("sentence embedding", "robustness")),
    "topic_moo": _inputs("augmentation", negatives=("generator", "in-batch"), stage="joint", use=("topics",)),
    "mlm": Axes(
        contrast="input-label", positives=("structure",), negatives=("all labels",), objective="ranking NCE",
        stage="pre-training", use=("data efficiency",),
    ),
    "nlp_primer": Axes(
        contrast="input-label", positives=("structure", "supervision"), negatives=("sampled labels", "in-batch"),
        objective="binary NCE", stage="pre-training", use=("zero-/few-shot", "data efficiency", "long tail"),
    ),
}  # fmt: skip
"""axes by slug; a system that is not installed may stand here too"""

CONFIGS = {"nlp_primer": "nearfar_sentences.systems.nlp_primer:InputLabelConfig"}
"""of systems whose card has no recipe"""


def catalogue() -> list[Entry]:
    """Every registered system on sentences with its axes, by slug.

    Raises:
        ValueError: a registered system without axes.
    """
    return [describe(card) for card in sorted(load("sentences").cards(), key=lambda card: card.slug)]


def describe(card: System) -> Entry:
    """The entry of a system.

    Raises:
        ValueError: it has no axes.
    """
    expect(card.slug in AXES, "axes", f"an entry of {card.slug} in nearfar_sentences.primer.AXES", "none")
    config = CONFIGS.get(card.slug)
    if config is None:
        kind = type(load(card.plugin).recipe(card.recipe.partition("/")[2]).method)
        config = f"{kind.__module__}:{kind.__qualname__}"
    expect(isinstance(locate(config), type), f"{card.slug}: config", "a class", config, TypeError)
    return Entry(card.slug, card.title, AXES[card.slug], config)


def advice(axes: Axes) -> list[str]:
    """What the survey's lessons say of a method of these axes."""
    found = []
    if "augmentation" in axes.positives:
        found.append("a change of one word may turn the meaning: measure `negation` on your encoder")
    if axes.contrast == "input-label":
        found.append("labels need no changed text; unseen ones can be scored by their names")
    if "hard" in axes.negatives or "generator" in axes.negatives:
        found.append("hard negatives help until they are false ones: look at the nearest")
    if "in-batch" in axes.negatives:
        found.append("two texts of a batch that mean the same are false negatives")
    if "sampled labels" in axes.negatives:
        found.append("drawn labels may be an input's own: accidental hits are left out")
    if axes.objective == "binary NCE":
        found.append(
            "without correction by the noise, scores are off by its logarithm: rank with them, do not read them"
        )
    return found
