"""DCLR: card, recipes and demonstration."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from nearfar.catalog import Claim, Demonstration, System, Taxonomy
from nearfar.checks import expect
from nearfar.config import DataInfo, OptimiserConfig, TrainerConfig
from nearfar_sentences.config import TextDataConfig, TextEncoderConfig, TextMethodConfig, TextRecipe

if TYPE_CHECKING:
    from nearfar.method import Method

CARD = System(
    slug="dclr",
    title="Debiased Contrastive Learning of Unsupervised Sentence Representations",
    authors="Kun Zhou, Beichen Zhang, Wayne Xin Zhao, Ji-Rong Wen",
    year=2022,
    venue="ACL",
    plugin="sentences",
    kind="train",
    summary="SimCSE without negatives that a frozen encoder finds alike, and with noise made hard by gradient ascent",
    recipe="sentences/dclr",
    taxonomy=Taxonomy(positive="transformation", negative="batch", key="shared", loss="probabilistic"),
    evidence="code",
    oracles=(
        "a threshold of 1 and no noise are SimCSE",
        "a similarity above the threshold takes that column out of that row's denominator alone, by brute force",
        "the loss that noise climbs does not fall, and no vector moves further than steps times step size",
        "a step is orthogonal to its vector, which never gets shorter",
        "neither the frozen encoder nor the noise gets a gradient of the loss",
    ),
    claim=Claim(metric="spearman", order=("weighted", "simcse"), margin=0.01),
    export=("safetensors", "onnx"),
)


@dataclass(frozen=True, kw_only=True)
class DCLRConfig(TextMethodConfig):
    """Who says which negatives are false, and how much noise joins the true ones."""

    complement: str = ""
    """run folder of this plugin, e.g. of simcse, or folder or name of a transformers encoder; stands still. Empty: a
    copy of the encoder that learns by SimCSE from the training sentences before"""
    complement_steps: int = 300
    """of such learning, 64 sentences each"""
    threshold: float = 0.9
    """negatives whose cosine, as the complement sees it, lies above are left out; 1: none is, and there is no
    complement"""
    noise_ratio: float = 1.0
    """noise vectors as a multiple of the sentences of a batch; 0: none"""
    noise_steps: int = 4
    """of gradient ascent that make the noise hard"""
    noise_step_size: float = 1e-3
    """length of such a step"""
    loss: Literal["infonce", "code_bce"] = "infonce"
    """the paper's, or the binary cross-entropy that the authors' code computes"""

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(self.copies == 2, "method.copies", "2", self.copies)
        expect(self.complement_steps >= 1, "method.complement_steps", "1 or more", self.complement_steps)
        expect(-1 < self.threshold <= 1, "method.threshold", "a cosine in (-1, 1]", self.threshold)
        expect(0 <= self.noise_ratio < math.inf, "method.noise_ratio", "0 or more", self.noise_ratio)
        expect(self.noise_steps >= 0, "method.noise_steps", "0 or more", self.noise_steps)
        expect(0 < self.noise_step_size < math.inf, "method.noise_step_size", "a number above 0", self.noise_step_size)
        unread = not self.complement or self.threshold < 1
        expect(unread, "method.complement", "nothing with method.threshold 1", repr(self.complement))

    @property
    def reads_corpus(self) -> bool:
        """Whether there is a complement, which is loaded or learns from the corpus."""
        return self.threshold < 1

    def build(self, info: DataInfo, encoder: Any, views: Any) -> Method:
        from nearfar_sentences.methods.dclr import DCLR

        return DCLR(self, encoder)


def dclr() -> TextRecipe:
    """Any corpus and a small encoder, or one that goes on from a pretrained one."""
    return TextRecipe(
        name="sentences/dclr",
        method=DCLRConfig(),
        encoder=TextEncoderConfig(),
        optimiser=OptimiserConfig(name="adamw", lr=3e-4, weight_decay=0.01, schedule="linear", warmup_epochs=0.0),
        trainer=TrainerConfig(epochs=3, batch_size=64, evaluate_every=0, monitor="knn"),
    )


def dclr_manual() -> TextRecipe:
    """A small encoder on the sentences of Python's manual, in a minute or two."""
    base = dclr()
    return dataclasses.replace(
        base,
        name="sentences/dclr_manual",
        data=TextDataConfig(source="manual"),
        trainer=dataclasses.replace(base.trainer, epochs=10),
    )


def _pretrained(name: str, encoder: str, epochs: int, batch_size: int, lr: float, **method: Any) -> TextRecipe:
    base = dclr()
    return dataclasses.replace(
        base,
        name=f"sentences/{name}",
        method=DCLRConfig(**method),
        encoder=TextEncoderConfig(name=encoder, pooling="cls"),
        optimiser=dataclasses.replace(base.optimiser, lr=lr),
        trainer=dataclasses.replace(base.trainer, epochs=epochs, batch_size=batch_size),
    )


def dclr_bert() -> TextRecipe:
    """BERT-base with unsupervised SimCSE as complement, on a million sentences of Wikipedia."""
    complement = "princeton-nlp/unsup-simcse-bert-base-uncased"
    return _pretrained("dclr_bert", "bert-base-uncased", 3, 128, 3e-5, complement=complement)


def dclr_roberta() -> TextRecipe:
    """RoBERTa-base, with a lower threshold and more noise."""
    complement = "princeton-nlp/unsup-simcse-roberta-base"
    return _pretrained(
        "dclr_roberta", "roberta-base", 3, 128, 3e-5, complement=complement, threshold=0.85, noise_ratio=2.5
    )


def dclr_bert_large() -> TextRecipe:
    """BERT-large, which goes on from unsupervised SimCSE."""
    start = "princeton-nlp/unsup-simcse-bert-large-uncased"
    return _pretrained("dclr_bert_large", start, 1, 256, 3e-5, complement=start, noise_ratio=3.0)


def dclr_roberta_large() -> TextRecipe:
    """RoBERTa-large, which goes on from unsupervised SimCSE."""
    start = "princeton-nlp/unsup-simcse-roberta-large"
    return _pretrained("dclr_roberta_large", start, 1, 256, 1e-5, complement=start, threshold=0.85, noise_ratio=5.0)


RECIPES = {
    "dclr": dclr,
    "dclr_manual": dclr_manual,
    "dclr_bert": dclr_bert,
    "dclr_roberta": dclr_roberta,
    "dclr_bert_large": dclr_bert_large,
    "dclr_roberta_large": dclr_roberta_large,
}
DEMONSTRATION = Demonstration(
    arms=("dclr", "weighted", "noise", "simcse", "weighted_distinct", "simcse_distinct", "mlm"),
    run="nearfar_sentences.demonstrations.dclr:arm",
    seeds=3,
    data="sentences of a small grammar, ten wordings of each meaning; the arms called distinct have one of each",
)
