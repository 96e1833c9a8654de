"""The primer on contrast in language processing: card, recipes of input-label contrast, and demonstration."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from nearfar.catalog import Claim, Demonstration, System, Taxonomy
from nearfar.checks import expect
from nearfar.config import DataInfo, OptimiserConfig, TrainerConfig
from nearfar_sentences.config import TextEncoderConfig, TextMethodConfig, TextRecipe

if TYPE_CHECKING:
    from nearfar.method import Method

CARD = System(
    slug="nlp_primer",
    title="A Primer on Contrastive Pretraining in Language Processing: Methods, Lessons Learned and Perspectives",
    authors="Nils Rethmeier, Isabelle Augenstein",
    year=2021,
    venue="arXiv 2102.12982",
    plugin="sentences",
    kind="analysis",
    summary="which text method contrasts what with what; contrast with labels, which also scores labels never seen",
    entry="nearfar_sentences.primer_command:methods",
    taxonomy=Taxonomy(positive="context", negative="batch", key="shared", loss="probabilistic"),
    evidence="text",
    oracles=(
        "one negative without correction costs softplus of the difference of scores",
        "the binary loss with even noise over C labels and C draws is binary cross-entropy",
        "free scores that minimise the ranking loss are log p(y|x) / q(y) up to a constant a row, those of the binary "
        "loss log p(y|x)",
        "the ranking loss with all other labels as negatives is the cross-entropy",
        "every registered system on sentences has all six axes, and a class that can be imported",
    ),
    claim=Claim(metric="few_labels", order=("input_label", "mlm"), margin=0.02),
    export=("none: an analysis leaves tables; runs of its recipe input_label export",),
)


@dataclass(frozen=True, kw_only=True)
class InputLabelConfig(TextMethodConfig):
    """Which labels, how they are embedded and scored, and by which loss they are told."""

    labels: Literal["words", "classes", "both"] = "words"
    """words of the texts themselves; names of the classes in the column of labels; or both"""
    num_positives: int = 10
    """words drawn of each text, at most"""
    num_negatives: int = 100
    """of the words drawn in a batch, how many are negatives of the texts that lack them"""
    hidden: float = 0.0
    """share of the words drawn that are left out of the text, so that they have to be told from the others"""
    loss: Literal["binary", "ranking"] = "binary"
    score: Literal["cosine", "dot", "mlp"] = "cosine"
    label_encoder: Literal["words", "text"] = "words"
    """mean of the encoder's word vectors, or the encoder itself; a linear layer follows"""
    temperature: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_positives", "num_negatives"):
            expect(getattr(self, name) >= 1, f"method.{name}", "1 or more", getattr(self, name))
        expect(0 <= self.hidden <= 1, "method.hidden", "a share in [0, 1]", self.hidden)

    @property
    def needs_labels(self) -> bool:
        """Whether names of classes are contrasted."""
        return self.labels != "words"

    def build(self, info: DataInfo, encoder: Any, views: Any) -> Method:
        from nearfar_sentences.methods.input_label import InputLabel

        return InputLabel(self, encoder, info)


def input_label() -> TextRecipe:
    """Texts against their own words and those of others: any corpus."""
    return TextRecipe(
        name="sentences/input_label",
        method=InputLabelConfig(),
        encoder=TextEncoderConfig(),
        optimiser=OptimiserConfig(name="adamw", lr=1e-3, weight_decay=0.01, schedule="linear", warmup_epochs=0.5),
        trainer=TrainerConfig(epochs=10, batch_size=64, evaluate_every=0, monitor="knn"),
    )


def input_label_classes() -> TextRecipe:
    """The same, and texts against the names of their classes: a column of labels."""
    return dataclasses.replace(
        input_label(), name="sentences/input_label_classes", method=InputLabelConfig(labels="both")
    )


RECIPES = {"input_label": input_label, "input_label_classes": input_label_classes}
DEMONSTRATION = Demonstration(
    arms=("input_label", "input_label_ranking", "input_label_hidden", "mlm", "dropout_views", "deletion_views"),
    run="nearfar_sentences.demonstrations.nlp_primer:arm",
    seeds=3,
    data="texts of twelve topics of very different size; and sentences beside their negation and another wording",
)
