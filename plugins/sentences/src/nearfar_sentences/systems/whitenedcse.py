"""WhitenedCSE: card, recipes and demonstration."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from nearfar.catalog import Claim, Demonstration, System, Taxonomy
from nearfar.checks import expect
from nearfar.config import DataInfo, OptimiserConfig, TrainerConfig
from nearfar_sentences.config import TextDataConfig, TextEncoderConfig, TextMethodConfig, TextRecipe

if TYPE_CHECKING:
    from nearfar.method import Method

CARD = System(
    slug="whitenedcse",
    title="WhitenedCSE: Whitening-based Contrastive Learning of Sentence Embeddings",
    authors="Wenjie Zhuo, Yifan Sun, Xiaohan Wang, Linchao Zhu, Yi Yang",
    year=2023,
    venue="ACL",
    plugin="sentences",
    kind="train",
    summary="whitens each copy's batch in shuffled groups of channels: several positives of a sentence, no narrow cone",
    recipe="sentences/whitenedcse",
    taxonomy=Taxonomy(positive="transformation", negative="batch", key="shared", loss="probabilistic"),
    evidence="code",
    oracles=(
        "after whitening each group of channels has mean 0 and covariance I",
        "one group is ZCA as numpy's eigenvectors give it, whatever the order of channels",
        "as many groups as channels are batch normalisation, whatever the order",
        "between them two orders give other rows, the same order the same; rows of covariance I only lose their mean",
        "a vector added to all rows, or a positive factor, changes nothing",
        "two copies and no whitening are SimCSE; the gradient is that of finite differences",
    ),
    claim=Claim(metric="uniformity", order=("whitenedcse", "simcse_three"), direction="lower", margin=0.05),
    export=("safetensors", "onnx"),
)


@dataclass(frozen=True, kw_only=True)
class WhitenedCSEConfig(TextMethodConfig):
    """How features are whitened before the head, in training alone."""

    copies: int = 3
    whitening: Literal["eigh", "cholesky", "newton", "none"] = "eigh"
    """by eigenvectors (ZCA), by a triangular factor, or by Newton's steps; none: SimCSE with several positives"""
    groups: int = 0
    """of channels, whitened each by itself; has to divide them; 0: a group has at most half as many channels as there
    are sentences; 128 in the paper, for 768 channels"""
    shuffle: bool = True
    """channels change groups from step to step and from copy to copy"""
    whiten_scope: Literal["view", "all"] = "view"
    """statistics of each copy's sentences by themselves, or of all copies together"""
    eps: float = 1e-5
    """floor of eigenvalues, or what is added to the diagonal"""
    newton_steps: int = 5
    """of newton"""
    synchronised: bool = True
    """statistics of the sentences of all processes; else of each process alone"""

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(self.groups >= 0, "method.groups", "0 or more", self.groups)
        expect(0 < self.eps < float("inf"), "method.eps", "a finite number > 0", self.eps)
        expect(self.newton_steps >= 1, "method.newton_steps", "1 or more", self.newton_steps)
        expect(not self.head_at_test, "method.head_at_test", "False, since the head is given whitened features", True)

    def build(self, info: DataInfo, encoder: Any, views: Any) -> Method:
        from nearfar_sentences.methods.whitenedcse import WhitenedCSE

        return WhitenedCSE(self, encoder)


def whitenedcse() -> TextRecipe:
    """Three positives a sentence: any corpus, and a small encoder, or one that goes on from a pretrained one."""
    return TextRecipe(
        name="sentences/whitenedcse",
        method=WhitenedCSEConfig(),
        encoder=TextEncoderConfig(),
        optimiser=OptimiserConfig(name="adamw", lr=3e-4, weight_decay=0.01, schedule="linear", warmup_epochs=0.0),
        trainer=TrainerConfig(epochs=3, batch_size=64, evaluate_every=0, monitor="knn"),
    )


def whitenedcse_bert() -> TextRecipe:
    """BERT-base as the paper trains it on a million sentences of Wikipedia."""
    base = whitenedcse()
    return dataclasses.replace(
        base,
        name="sentences/whitenedcse_bert",
        method=WhitenedCSEConfig(groups=128),
        encoder=TextEncoderConfig(name="bert-base-uncased", pooling="cls"),
        optimiser=dataclasses.replace(base.optimiser, lr=1e-5),
        trainer=dataclasses.replace(base.trainer, epochs=1, batch_size=256),
    )


def whitenedcse_manual() -> TextRecipe:
    """A small encoder on the sentences of Python's manual, in a minute or two."""
    base = whitenedcse()
    return dataclasses.replace(
        base,
        name="sentences/whitenedcse_manual",
        data=TextDataConfig(source="manual"),
        trainer=dataclasses.replace(base.trainer, epochs=10),
    )


RECIPES = {
    "whitenedcse": whitenedcse,
    "whitenedcse_bert": whitenedcse_bert,
    "whitenedcse_manual": whitenedcse_manual,
}
DEMONSTRATION = Demonstration(
    arms=("whitenedcse", "simcse_three", "simcse", "one_group", "mlm"),
    run="nearfar_sentences.demonstrations.whitenedcse:arm",
    seeds=3,
    data="sentences of a small grammar with synonyms; pairs scored by the slots in which two meanings agree",
)
