"""Topic-MOO: card, recipes and demonstration."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from nearfar.catalog import Claim, Demonstration, System, Taxonomy
from nearfar.checks import expect
from nearfar.config import DataInfo, OptimiserConfig, TrainerConfig
from nearfar_sentences.config import TextDataConfig, TextEncoderConfig, TextMethodConfig, TextRecipe

if TYPE_CHECKING:
    from nearfar.method import Method

CARD = System(
    slug="topic_moo",
    title="Topic Modeling as Multi-Objective Contrastive Optimization",
    authors="Thong Nguyen, Xiaobao Wu, Xinshuai Dong, Cong-Duy T Nguyen, See-Kiong Ng, Anh Tuan Luu",
    year=2024,
    venue="ICLR",
    plugin="sentences",
    kind="train",
    summary="a neural topic model that contrasts sets of documents, by steps that serve likelihood and contrast both",
    recipe="sentences/topic_moo",
    taxonomy=Taxonomy(positive="transformation", negative="batch", key="shared", loss="probabilistic"),
    evidence="rebuilt",
    oracles=(
        "the mixture of two gradients has its closed form: equal ones give either, orthogonal ones of equal length a "
        "half each, and one that reaches beyond the other's square leaves the other alone",
        "the mixture lowers both: its product with each gradient is at least its own square",
        "a set's vector does not depend on the order of its documents; sets of one contrast documents",
        "beta 0 costs exactly nothing; KL is 0 where the posterior is the prior; the topics' gradient is that of a "
        "softmax regression",
        "a step with all weight on likelihood is a step of the plain topic model",
    ),
    claim=Claim(metric="npmi", order=("topic_moo", "weighted_sum", "ntm"), margin=0.0),
    export=("safetensors",),
)


@dataclass(frozen=True, kw_only=True)
class TopicMOOConfig(TextMethodConfig):
    """Which words count, the topic model, how sets are contrasted, and how the two gradients become one."""

    min_documents: int = 3
    """a word that fewer documents have is left out"""
    max_share: float = 0.5
    """so is a word that a larger share of documents has"""
    common_words: bool = False
    """keep the words of English that no topic is about, such as "which" """
    num_topics: int = 50
    hidden: int = 128
    """width of the encoder's two layers"""
    dropout: float = 0.2
    batch_norm: bool = True
    """of means, variances and words"""
    prior: Literal["dirichlet", "normal"] = "dirichlet"
    """of the topics' shares; dirichlet: the normal nearest to a symmetric one"""
    concentration: float = 1.0
    """of the Dirichlet"""
    kl_warmup: float = 0.0
    """share of the run in which the weight of KL rises to 1"""
    set_size: int = 4
    """documents of a set; 1: documents are contrasted"""
    num_shuffles: int = 1
    """ways a batch is cut into sets"""
    feature: Literal["theta", "latent"] = "theta"
    """what is pooled: shares of topics, or the vectors before the softmax"""
    replaced: float = 0.25
    """share of a document's different words that get the model's share, where there are no columns of changed ones"""
    temperature: float = 0.2
    """divides cosines"""
    beta: float = 0.5
    """weight of the negative"""
    cross_set_negatives: bool = False
    """the other sets' positives are negatives too"""
    combine: Literal["min_norm", "sum"] = "min_norm"
    """of the encoder's two gradients: their shortest mixture; or the sum of both losses"""
    contrast_weight: float = 1.0
    """multiplies the contrast first; 0: a plain topic model"""
    normalize_gradients: bool = False
    """look for the mixture of gradients of unit length"""
    head: Literal["tanh", "relu", "mlp", "none"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(self.head == "none", "method.head", "'none'", repr(self.head))
        expect(not self.head_at_test, "method.head_at_test", "off", self.head_at_test)
        for name, least in (
            ("min_documents", 1), ("num_topics", 2), ("hidden", 1), ("set_size", 1),
            ("num_shuffles", 1),
        ):  # fmt: skip
            expect(getattr(self, name) >= least, f"method.{name}", f"{least} or more", getattr(self, name))
        for name in ("max_share", "replaced", "kl_warmup"):
            expect(0 <= getattr(self, name) <= 1, f"method.{name}", "a share in [0, 1]", getattr(self, name))
        for name in ("beta", "contrast_weight"):
            expect(getattr(self, name) >= 0, f"method.{name}", "0 or more", getattr(self, name))
        expect(0 <= self.dropout < 1, "method.dropout", "a share in [0, 1)", self.dropout)
        expect(self.concentration > 0, "method.concentration", "a number above 0", self.concentration)

    def own_encoder(self, config: TextEncoderConfig, texts: Sequence[str], description: bytes | None) -> Any:
        """The bag of words of the training documents, or of a checkpoint; of `config` it reads the vocabulary alone."""
        own = TextEncoderConfig()
        for name in ("name", "start", "pooling", "prefix", "lora_rank"):
            value, default = getattr(config, name), getattr(own, name)
            expect(value == default, f"encoder.{name}", f"{default!r} with topic_moo, which counts words", repr(value))
        from nearfar_sentences.bags import COMMON, read_bag, restore_bag

        if description is not None:
            return restore_bag(description)
        return read_bag(
            texts, vocabulary=config.vocabulary, min_documents=self.min_documents, max_share=self.max_share,
            common=frozenset() if self.common_words else COMMON,
        )  # fmt: skip

    def build(self, info: DataInfo, encoder: Any, views: Any) -> Method:
        from nearfar_sentences.bags import BagOfWords
        from nearfar_sentences.methods.topic_moo import TopicMOO

        expect(isinstance(encoder, BagOfWords), "encoder", "a BagOfWords", type(encoder).__name__, TypeError)
        return TopicMOO(self, encoder)


def topic_moo() -> TextRecipe:
    """Topics of your documents, one a line or a row."""
    return TextRecipe(
        name="sentences/topic_moo",
        method=TopicMOOConfig(),
        data=TextDataConfig(),
        encoder=TextEncoderConfig(vocabulary=2000),
        optimiser=OptimiserConfig(name="adamw", lr=2e-3, weight_decay=0.0, schedule="constant"),
        trainer=TrainerConfig(epochs=100, batch_size=200, evaluate_every=10, monitor="npmi", drop_last=False),
    )


def topic_moo_manual() -> TextRecipe:
    """Twenty topics of the sentences of Python's manual, in a minute or so."""
    base = topic_moo()
    return dataclasses.replace(
        base,
        name="sentences/topic_moo_manual",
        method=TopicMOOConfig(num_topics=20),
        data=TextDataConfig(source="manual"),
        trainer=dataclasses.replace(base.trainer, epochs=50),
    )


RECIPES = {"topic_moo": topic_moo, "topic_moo_manual": topic_moo_manual}
DEMONSTRATION = Demonstration(
    arms=("topic_moo", "setwise_sum", "weighted_sum", "ntm"),
    run="nearfar_sentences.demonstrations.topic_moo:arm",
    seeds=3,
    data="2,000 documents drawn from ten known topics over 500 words, and 500 held out",
)
