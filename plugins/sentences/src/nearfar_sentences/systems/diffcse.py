"""DiffCSE: card, recipes and demonstration."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from nearfar.catalog import Claim, Demonstration, System, Taxonomy
from nearfar.checks import expect
from nearfar.config import DataInfo, OptimiserConfig, TrainerConfig
from nearfar_sentences.config import TextDataConfig, TextEncoderConfig, TextRecipe
from nearfar_sentences.systems.simcse import SimCSEConfig

if TYPE_CHECKING:
    from nearfar.method import Method

CARD = System(
    slug="diffcse",
    title="DiffCSE: Difference-based Contrastive Learning for Sentence Embeddings",
    authors="Yung-Sung Chuang, Rumen Dangovski, Hongyin Luo, Yang Zhang, Shiyu Chang, Marin Soljačić, Shang-Wen Li, "
    "Wen-tau Yih, Yoon Kim, James Glass",
    year=2022,
    venue="NAACL",
    plugin="sentences",
    kind="train",
    summary="SimCSE whose sentence vector also has to tell a discriminator which words of the sentence were replaced",
    recipe="sentences/diffcse",
    taxonomy=Taxonomy(positive="transformation", negative="batch", key="shared", loss="probabilistic"),
    evidence="code",
    oracles=(
        "without weight on detection the loss is SimCSE's with the same head, bit for bit",
        "nothing masked and a generator that copies: every label is 0, and the loss is that of class 0",
        "detection alone gives a gradient to the vector and the encoder; none to the encoder where the vector is "
        "detached, and none to the generator ever",
        "labels of ids made by hand: 1 where a word was replaced, 0 at what is equal and at padding",
        "the first id that the discriminator reads does not matter",
    ),
    claim=Claim(metric="triplets", order=("diffcse", "simcse"), margin=0.01),
    export=("safetensors", "onnx"),
)


@dataclass(frozen=True, kw_only=True)
class DiffCSEConfig(SimCSEConfig):
    """SimCSE's options, who replaces words and how, and what finding them counts."""

    head: Literal["tanh", "relu", "mlp", "none"] = "mlp"
    detection_weight: float = 0.005
    """of finding replaced words; 0: SimCSE, without generator and discriminator"""
    generator: str = ""
    """run folder of a masked language model, e.g. of sentences/mlm, or folder or name of one of transformers, with the
    encoder's vocabulary; empty: a copy of the small encoder that learns it from the training sentences before"""
    generator_steps: int = 300
    """of such learning, 64 sentences each"""
    share: float = 0.3
    """of tokens that the generator has to guess"""
    decode: Literal["argmax", "sample"] = "argmax"
    """the generator's likeliest words, as the authors' code, or words drawn by their probability, as the paper"""
    condition: Literal["embedding", "feature", "detached"] = "embedding"
    """what the discriminator is given of the sentence: the head's embedding, the feature before it, or the embedding
    without a gradient to the encoder"""
    keep_special: bool = True
    """separators and other special tokens stay; the authors' code keeps the first alone"""
    count_padding: bool = False
    """padding counts as tokens that were not replaced, as in the authors' code"""

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(self.detection_weight >= 0, "method.detection_weight", "0 or more", self.detection_weight)
        expect(self.generator_steps >= 1, "method.generator_steps", "1 or more", self.generator_steps)
        expect(0 <= self.share < 1, "method.share", "a share in [0, 1)", self.share)

    @property
    def reads_corpus(self) -> bool:
        """Whether a generator is loaded, or learns from the corpus."""
        return self.detection_weight > 0

    def build(self, info: DataInfo, encoder: Any, views: Any) -> Method:
        from nearfar_sentences.methods.diffcse import DiffCSE

        return DiffCSE(self, encoder)


def diffcse() -> TextRecipe:
    """Any corpus and a small encoder; start it from a run of masked words, which serves as generator too."""
    return TextRecipe(
        name="sentences/diffcse",
        method=DiffCSEConfig(),
        optimiser=OptimiserConfig(name="adamw", lr=3e-4, weight_decay=0.01, schedule="linear", warmup_epochs=0.0),
        trainer=TrainerConfig(epochs=3, batch_size=64, evaluate_every=0, monitor="knn"),
    )


def diffcse_manual() -> TextRecipe:
    """A small encoder on the sentences of Python's manual, in a few minutes."""
    base = diffcse()
    return dataclasses.replace(
        base,
        name="sentences/diffcse_manual",
        data=TextDataConfig(source="manual"),
        trainer=dataclasses.replace(base.trainer, epochs=10),
    )


def diffcse_bert() -> TextRecipe:
    """BERT-base with DistilBERT as generator, as the authors train it on a million sentences of Wikipedia."""
    return TextRecipe(
        name="sentences/diffcse_bert",
        method=DiffCSEConfig(generator="distilbert-base-uncased", keep_special=False, count_padding=True),
        encoder=TextEncoderConfig(name="bert-base-uncased", pooling="cls"),
        optimiser=OptimiserConfig(name="adamw", lr=7e-6, weight_decay=0.0, schedule="linear", warmup_epochs=0.0),
        trainer=TrainerConfig(epochs=2, batch_size=64, evaluate_every=0, monitor="knn"),
    )


def diffcse_roberta() -> TextRecipe:
    """RoBERTa-base with DistilRoBERTa as generator."""
    base = diffcse_bert()
    return dataclasses.replace(
        base,
        name="sentences/diffcse_roberta",
        method=dataclasses.replace(base.method, generator="distilroberta-base"),  # type: ignore[call-arg]
        encoder=dataclasses.replace(base.encoder, name="roberta-base"),
    )


RECIPES = {
    "diffcse": diffcse,
    "diffcse_manual": diffcse_manual,
    "diffcse_bert": diffcse_bert,
    "diffcse_roberta": diffcse_roberta,
}
DEMONSTRATION = Demonstration(
    arms=("diffcse", "diffcse_detached", "simcse", "mlm", "untrained"),
    run="nearfar_sentences.demonstrations.diffcse:arm",
    seeds=3,
    data="sentences of a small grammar with synonyms; another wording against a sentence that differs in one slot",
)
