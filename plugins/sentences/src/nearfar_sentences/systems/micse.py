"""miCSE: card, recipes and demonstration."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nearfar.catalog import Claim, Demonstration, System, Taxonomy
from nearfar.checks import expect
from nearfar.config import DataInfo, OptimiserConfig, TrainerConfig
from nearfar_sentences.config import TextDataConfig, TextEncoderConfig, TextMethodConfig, TextRecipe

if TYPE_CHECKING:
    from nearfar.method import Method

CARD = System(
    slug="micse",
    title="miCSE: Mutual Information Contrastive Learning for Low-shot Sentence Embeddings",
    authors="Tassilo Klein, Moin Nabi",
    year=2023,
    venue="ACL",
    plugin="sentences",
    kind="train",
    summary="SimCSE from few sentences: dropout copies find each other, and their attention maps say the same",
    recipe="sentences/micse",
    taxonomy=Taxonomy(positive="transformation", negative="batch", key="shared", loss="mutual_information"),
    evidence="code",
    oracles=(
        "without weight on attention the loss is SimCSE's",
        "of Gaussian variables with a known correlation the information is -1/2 log(1 - rho^2), within 2 %",
        "independent maps have about 1/(2n), equal maps 1/2 log(1/eps)",
        "no change when maps are raised to a power above 0 or multiplied by a number",
        "with half of all entries masked the scale is 0.25 + 1e-6",
        "attention alone gives gradients to queries and keys up to the last layer chosen, and none above it",
    ),
    claim=Claim(metric="spearman", order=("micse", "simcse"), margin=0.0),
    export=("safetensors", "onnx"),
)


@dataclass(frozen=True, kw_only=True)
class MiCSEConfig(TextMethodConfig):
    """Which layers' attention is compared, how, and what that counts beside the contrast."""

    contrast_weight: float = 1.0
    attention_weight: float = 1e-3
    """of the information of attention; 0: not computed"""
    layers: tuple[int, ...] = ()
    """first layer and the one after the last, counted from 0; 7 11 of a base-sized encoder in the authors' recipes;
    empty: the upper half"""
    chunks: int = 2
    """layers are dealt to so many groups in turn; a head has a correlation of its own in each"""
    num_samples: int = 150
    """entries drawn of a head's maps; heads with fewer are left out, unless all have fewer"""
    eps: float = 1e-6
    """what 1 - correlation^2 is held above"""

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(self.copies == 2, "method.copies", "2", self.copies)
        for name in ("contrast_weight", "attention_weight"):
            expect(getattr(self, name) >= 0, f"method.{name}", "0 or more", getattr(self, name))
        order = not self.layers or (len(self.layers) == 2 and 0 <= self.layers[0] < self.layers[1])
        expect(order, "method.layers", "two numbers, 0 <= first < end, or none", self.layers)
        expect(self.chunks >= 1, "method.chunks", "1 or more", self.chunks)
        expect(self.num_samples >= 3, "method.num_samples", "3 or more", self.num_samples)
        expect(0 < self.eps < 1, "method.eps", "a number in (0, 1)", self.eps)

    def build(self, info: DataInfo, encoder: Any, views: Any) -> Method:
        from nearfar_sentences.methods.micse import MiCSE

        return MiCSE(self, encoder)


def micse() -> TextRecipe:
    """Any corpus and a small encoder, or one that goes on from a pretrained one."""
    return TextRecipe(
        name="sentences/micse",
        method=MiCSEConfig(),
        optimiser=OptimiserConfig(name="adamw", lr=3e-4, weight_decay=0.01, schedule="linear", warmup_epochs=0.0),
        trainer=TrainerConfig(epochs=3, batch_size=64, evaluate_every=0, monitor="knn"),
    )


def micse_manual() -> TextRecipe:
    """A small encoder on 500 of the sentences of Python's manual, in a minute or so."""
    base = micse()
    return dataclasses.replace(
        base,
        name="sentences/micse_manual",
        data=TextDataConfig(source="manual", limit=500),
        trainer=dataclasses.replace(base.trainer, epochs=40),
    )


def micse_bert() -> TextRecipe:
    """BERT-base on all your sentences; the weight is remembered from the paper, the rest the authors' own."""
    return TextRecipe(
        name="sentences/micse_bert",
        method=MiCSEConfig(layers=(7, 11), attention_weight=2.5e-3),
        encoder=TextEncoderConfig(name="bert-base-uncased", pooling="cls"),
        optimiser=OptimiserConfig(name="adamw", lr=1e-5, weight_decay=0.0, schedule="linear", warmup_epochs=0.0),
        trainer=TrainerConfig(epochs=1, batch_size=64, evaluate_every=0, monitor="knn"),
    )


def _few(limit: int, epochs: int, weight: float) -> TextRecipe:
    base = micse_bert()
    return dataclasses.replace(
        base,
        name=f"sentences/micse_bert_{limit}",
        method=MiCSEConfig(layers=(7, 11), attention_weight=weight),
        data=TextDataConfig(limit=limit),
        trainer=dataclasses.replace(base.trainer, epochs=epochs, drop_last=False),
    )


def micse_bert_100000() -> TextRecipe:
    """BERT-base on 100,000 of your sentences, drawn by the seed: the authors' recipe for a tenth of a million."""
    return _few(100_000, 10, 5e-4)


def micse_bert_10000() -> TextRecipe:
    """BERT-base on 10,000 of your sentences, drawn by the seed."""
    return _few(10_000, 50, 1e-4)


def micse_bert_1000() -> TextRecipe:
    """BERT-base on 1,000 of your sentences, drawn by the seed."""
    return _few(1_000, 500, 1e-3)


def micse_bert_100() -> TextRecipe:
    """BERT-base on 100 of your sentences, drawn by the seed."""
    return _few(100, 2500, 1e-3)


RECIPES = {
    "micse": micse,
    "micse_manual": micse_manual,
    "micse_bert": micse_bert,
    "micse_bert_100000": micse_bert_100000,
    "micse_bert_10000": micse_bert_10000,
    "micse_bert_1000": micse_bert_1000,
    "micse_bert_100": micse_bert_100,
}
DEMONSTRATION = Demonstration(
    arms=("micse", "simcse", "micse_all", "simcse_all", "mlm"),
    run="nearfar_sentences.demonstrations.micse:arm",
    seeds=3,
    data="100 or all 4,000 sentences of a small grammar; pairs scored by the slots in which two meanings agree",
)
