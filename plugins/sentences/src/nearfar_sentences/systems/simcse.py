"""SimCSE: card, recipes and demonstration."""

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
    slug="simcse",
    title="SimCSE: Simple Contrastive Learning of Sentence Embeddings",
    authors="Tianyu Gao, Xingcheng Yao, Danqi Chen",
    year=2021,
    venue="EMNLP",
    plugin="sentences",
    kind="train",
    summary="makes a transformer a sentence encoder: dropout alone makes the two views, or annotated pairs do",
    recipe="sentences/simcse",
    taxonomy=Taxonomy(positive="transformation", negative="batch", key="shared", loss="probabilistic"),
    evidence="code",
    oracles=(
        "two orthonormal embeddings equal to their copies at temperature 1 give log(1 + 1/e)",
        "equal embeddings give log B, log 2B with hard negatives, log(2B - 1 + exp(w)) with a weight",
        "a weight of -1e9 removes an anchor's own hard negative and keeps the others'",
        "the loss of sentence-transformers' MultipleNegativesRankingLoss at scale 20, to 1e-6",
        "no change when an embedding is scaled; the gradient is orthogonal to the embedding",
        "without dropout both copies are equal and the positive term has no gradient",
    ),
    claim=Claim(metric="spearman", order=("simcse_supervised", "simcse", "simcse_no_dropout", "mlm"), margin=0.1),
    export=("safetensors", "onnx"),
)


@dataclass(frozen=True, kw_only=True)
class SimCSEConfig(TextMethodConfig):
    """Weights of hard negatives and of predicted words, and what happens to sentences that stand twice in a batch."""

    hard_negative_weight: float = 0.0
    """log of the weight of a sentence's own hard negative"""
    mlm_weight: float = 0.0
    """of predicting masked words beside, 0.1 in the paper where used; 0: not done"""
    mask_duplicates: bool = False
    """the same sentence elsewhere in the batch is no negative; the paper has no such mask"""

    matryoshka: tuple[int, ...] = ()
    """numbers at the front of the features that are to serve alone, e.g. 64 128: the loss is the mean over these and
    the whole"""

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(self.copies == 2, "method.copies", "2", self.copies)
        expect(all(d >= 1 for d in self.matryoshka), "method.matryoshka", "numbers of 1 or more", self.matryoshka)
        kept = not self.matryoshka or self.head == "none" or self.head_at_test
        expect(kept, "method.matryoshka", "none, or method.head 'none' or method.head_at_test", self.matryoshka)
        expect(self.mlm_weight >= 0, "method.mlm_weight", "0 or more", self.mlm_weight)

    def build(self, info: DataInfo, encoder: Any, views: Any) -> Method:
        from nearfar_sentences.methods.simcse import SimCSE

        return SimCSE(self, encoder)


def simcse() -> TextRecipe:
    """Unsupervised SimCSE: any corpus, by default the sentences of Python's manual and a small encoder."""
    return TextRecipe(
        name="sentences/simcse",
        method=SimCSEConfig(),
        data=TextDataConfig(),
        encoder=TextEncoderConfig(),
        optimiser=OptimiserConfig(name="adamw", lr=3e-4, weight_decay=0.01, schedule="linear", warmup_epochs=0.0),
        trainer=TrainerConfig(epochs=3, batch_size=64, evaluate_every=0, monitor="knn"),
    )


def simcse_supervised() -> TextRecipe:
    """Supervised SimCSE: pairs, and hard negatives where there is a column of them."""
    base = simcse()
    return dataclasses.replace(
        base,
        name="sentences/simcse_supervised",
        method=SimCSEConfig(head_at_test=True),
        data=TextDataConfig(positive="positive"),
    )


def simcse_manual() -> TextRecipe:
    """Unsupervised SimCSE of a small encoder on the sentences of Python's manual, in a minute or two."""
    base = simcse()
    return dataclasses.replace(
        base,
        name="sentences/simcse_manual",
        data=TextDataConfig(source="manual"),
        trainer=dataclasses.replace(base.trainer, epochs=10),
    )


RECIPES = {"simcse": simcse, "simcse_supervised": simcse_supervised, "simcse_manual": simcse_manual}
DEMONSTRATION = Demonstration(
    arms=("simcse_supervised", "simcse", "simcse_no_dropout", "mlm", "untrained"),
    run="nearfar_sentences.demonstrations.simcse:arm",
    seeds=3,
    data="sentences of a small grammar with synonyms; pairs scored by the slots in which two meanings agree",
)
