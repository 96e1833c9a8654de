"""Masked language modelling, a baseline: card, recipe and demonstration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from nearfar.catalog import Claim, Demonstration, System, Taxonomy
from nearfar.checks import expect
from nearfar.config import DataInfo, OptimiserConfig, TrainerConfig
from nearfar_sentences.config import TextEncoderConfig, TextMethodConfig, TextRecipe

if TYPE_CHECKING:
    from nearfar.method import Method

CARD = System(
    slug="mlm",
    title="BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
    authors="Jacob Devlin, Ming-Wei Chang, Kenton Lee, Kristina Toutanova",
    year=2019,
    venue="NAACL",
    plugin="sentences",
    kind="baseline",
    summary="predicts masked words: what a small encoder starts from, and the line that contrast has to beat",
    recipe="sentences/mlm",
    taxonomy=Taxonomy(positive="context", negative="none", key="shared", loss="probabilistic"),
    evidence="text",
    oracles=(
        "of the tokens chosen eight in ten are masked, one is another word, one is as it was; special ones never",
        "words that are predicted evenly cost the log of the vocabulary; a sentence without masked words costs nothing",
    ),
    claim=Claim(metric="spearman", order=("mlm", "untrained"), margin=0.0),
    export=("safetensors", "onnx"),
)


@dataclass(frozen=True, kw_only=True)
class MLMConfig(TextMethodConfig):
    """How many words are masked."""

    head: Literal["tanh", "mlp", "none"] = "none"
    share: float = 0.15
    """of the tokens that are predicted"""

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(0 < self.share < 1, "method.share", "a share in (0, 1)", self.share)
        expect(self.head == "none", "method.head", "'none'", repr(self.head))

    def build(self, info: DataInfo, encoder: Any, views: Any) -> Method:
        from nearfar_sentences.methods.mlm import MLM

        return MLM(self, encoder)


def mlm() -> TextRecipe:
    """Masked words of your corpus; other recipes go on from the run with --encoder.start RUN."""
    return TextRecipe(
        name="sentences/mlm",
        method=MLMConfig(),
        encoder=TextEncoderConfig(pooling="mean"),
        optimiser=OptimiserConfig(name="adamw", lr=1e-3, weight_decay=0.01, schedule="linear", warmup_epochs=0.5),
        trainer=TrainerConfig(epochs=10, batch_size=64, evaluate_every=0, clip_norm=1.0),
    )


RECIPES = {"mlm": mlm}
DEMONSTRATION = Demonstration(
    arms=("mlm", "untrained"),
    run="nearfar_sentences.demonstrations:arm",
    seeds=3,
    data="sentences of a small grammar with synonyms; pairs scored by the slots in which two meanings agree",
)
