"""CLEAR: card, recipes and demonstration."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from nearfar.catalog import Claim, Demonstration, System, Taxonomy
from nearfar.checks import expect
from nearfar.config import DataInfo, OptimiserConfig, TrainerConfig
from nearfar_sentences.config import AugmentConfig, TextDataConfig, TextEncoderConfig, TextMethodConfig, TextRecipe

if TYPE_CHECKING:
    from nearfar.method import Method

CARD = System(
    slug="clear",
    title="CLEAR: Contrastive Learning for Sentence Representation",
    authors="Zhuofeng Wu, Sinong Wang, Jiatao Gu, Madian Khabsa, Fei Sun, Hao Ma",
    year=2020,
    venue="arXiv 2012.15466",
    plugin="sentences",
    kind="train",
    summary="two copies of a sentence with words deleted, moved or substituted find each other, beside masked words",
    recipe="sentences/clear",
    taxonomy=Taxonomy(positive="transformation", negative="batch", key="shared", loss="probabilistic"),
    evidence="rebuilt",
    oracles=(
        "reordering keeps every word; deletion leaves a subsequence and never two marks side by side; substitution "
        "keeps the length and changes its share; a share of 0 changes nothing; the same seed gives the same",
        "the contrast equals a double loop over 2B vectors in float64; equal vectors cost log(2B - 1)",
        "views may change places, and samples too, without changing the contrast",
        "without weight on the contrast the loss is that of masked words, and the head gets no gradient",
    ),
    claim=Claim(metric="who_did_what", order=("delete_words", "reorder"), margin=0.02),
    export=("safetensors", "onnx"),
)


@dataclass(frozen=True, kw_only=True)
class CLEARConfig(TextMethodConfig):
    """What is done to the two copies of a sentence, and what each of the two losses counts."""

    augment: AugmentConfig = field(default_factory=AugmentConfig)
    head: Literal["tanh", "relu", "mlp", "none"] = "relu"
    temperature: float = 0.1
    contrast_weight: float = 1.0
    mlm_weight: float = 1.0
    """of predicting masked words of the unchanged sentence; 0: not done"""
    mlm_share: float = 0.15
    """of tokens that are predicted"""

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(self.copies == 2, "method.copies", "2", self.copies)
        expect(self.contrast_weight >= 0, "method.contrast_weight", "0 or more", self.contrast_weight)
        expect(self.mlm_weight >= 0, "method.mlm_weight", "0 or more", self.mlm_weight)
        expect(0 < self.mlm_share < 1, "method.mlm_share", "a share in (0, 1)", self.mlm_share)

    @property
    def reads_corpus(self) -> bool:
        """Whether words are substituted, whose substitutes come from the corpus or are checked against it."""
        return self.augment.substitutes_words

    def build(self, info: DataInfo, encoder: Any, views: Any) -> Method:
        from nearfar_sentences.methods.clear import CLEAR

        return CLEAR(self, encoder)


def clear() -> TextRecipe:
    """Spans deleted from both copies: any corpus, and a small encoder, or one that goes on from a pretrained one."""
    return TextRecipe(
        name="sentences/clear",
        method=CLEARConfig(),
        encoder=TextEncoderConfig(pooling="cls"),
        optimiser=OptimiserConfig(name="adamw", lr=6e-4, weight_decay=0.01, schedule="linear", warmup_epochs=0.5),
        trainer=TrainerConfig(epochs=10, batch_size=64, evaluate_every=0, monitor="knn"),
    )


def _with(name: str, *names: Any) -> TextRecipe:
    base = clear()
    method = CLEARConfig(augment=AugmentConfig(first=names, second=names))
    return dataclasses.replace(base, name=f"sentences/{name}", method=method)


def clear_delete_words() -> TextRecipe:
    """Seven words in ten deleted."""
    return _with("clear_delete_words", "delete_words")


def clear_reorder() -> TextRecipe:
    """Pairs of spans change places."""
    return _with("clear_reorder", "reorder")


def clear_substitute() -> TextRecipe:
    """Three words in ten become neighbours of theirs, or what your table says."""
    return _with("clear_substitute", "substitute")


def clear_substitute_delete() -> TextRecipe:
    """Words become neighbours of theirs, then spans are deleted."""
    return _with("clear_substitute_delete", "substitute", "delete_spans")


def clear_delete_reorder() -> TextRecipe:
    """Spans are deleted, then pairs of spans change places."""
    return _with("clear_delete_reorder", "delete_spans", "reorder")


def clear_manual() -> TextRecipe:
    """A small encoder on the sentences of Python's manual, in two minutes or so."""
    return dataclasses.replace(clear(), name="sentences/clear_manual", data=TextDataConfig(source="manual"))


RECIPES = {
    "clear": clear,
    "clear_delete_words": clear_delete_words,
    "clear_reorder": clear_reorder,
    "clear_substitute": clear_substitute,
    "clear_substitute_delete": clear_substitute_delete,
    "clear_delete_reorder": clear_delete_reorder,
    "clear_manual": clear_manual,
}
DEMONSTRATION = Demonstration(
    arms=("delete_words", "delete_spans", "reorder", "substitute", "mlm", "untrained"),
    run="nearfar_sentences.demonstrations.clear:arm",
    seeds=3,
    data="sentences of a grammar in which one person acts on another; probes of the place, and of who acts",
)
