"""MoCHi: MoCo whose queue is joined, for each query, by harder negatives mixed from its hardest ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nearfar.catalog import Claim, Demonstration, System, Taxonomy
from nearfar.checks import expect, expect_positive
from nearfar.config import (
    DataInfo,
    EncoderConfig,
    FrameConfig,
    HeadConfig,
    ImageViewConfig,
    OptimiserConfig,
    TrainerConfig,
)
from nearfar.recipe import Recipe
from nearfar_images.demonstrations import DIGITS
from nearfar_images.systems import _digits, _views

if TYPE_CHECKING:
    from torch import nn

    from nearfar.method import Method, Views

CARD = System(
    slug="mochi",
    title="Hard Negative Mixing for Contrastive Learning",
    authors="Yannis Kalantidis, Mert Bulent Sariyildiz, Noe Pion, Philippe Weinzaepfel, Diane Larlus",
    year=2020,
    venue="NeurIPS",
    plugin="images",
    kind="train",
    summary="pretrains without labels against a queue of keys and negatives mixed from the hardest of them",
    recipe="images/mochi",
    taxonomy=Taxonomy(positive="transformation", negative="mined", key="momentum", loss="probabilistic"),
    evidence="code",
    oracles=(
        "without mixtures it is MoCo's InfoNCE exactly",
        "a mixture with the query is as similar to it as the closed form says, never less than the negative and more "
        "with a larger share; one of two negatives is no less similar than the less similar one where both are not "
        "negative",
        "queue, keys and mixtures get no gradient, and the query's is that of cross-entropy with constants",
        "the loss does not fall with more mixtures of either kind, the first ones being the same",
        "with one hardest negative all mixtures of pairs are that negative",
    ),
    claim=Claim(metric="embedding_uniformity", order=("mochi", "mochi_none"), direction="lower", margin=0.0),
    export=("safetensors", "onnx"),
)


@dataclass(frozen=True, kw_only=True)
class MoCHiConfig(FrameConfig):
    """How many negatives are mixed, and from which epoch on."""

    key_encoder: Literal["shared", "ema", "frozen"] = "ema"
    queue: int = 4096
    """keys kept of former batches; mixing begins when it is full"""
    symmetric: bool = False
    shuffle_keys: bool = True
    temperature: float = 0.2
    num_hardest: int = 256
    """most similar keys of the queue that a query's mixtures are made of, N in the paper"""
    num_pairs: int = 256
    """mixtures of two of them, s in the paper; 0: none"""
    num_with_query: int = 32
    """mixtures of one of them and the query, s' in the paper; 0: none"""
    pairs_from: int = 10
    """epoch from which pairs are mixed"""
    with_query_from: int = 10
    """epoch from which queries are mixed in"""
    skip_own: bool = False
    """keys of the query's own image are no negatives and are not mixed"""

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(self.key_encoder == "ema", "method.key_encoder", "'ema'", repr(self.key_encoder))
        expect(self.queue >= 1, "method.queue", "1 or more", self.queue)
        expect_positive("method.temperature", self.temperature)
        for name in ("num_pairs", "num_with_query", "pairs_from", "with_query_from"):
            expect(getattr(self, name) >= 0, f"method.{name}", "0 or more", getattr(self, name))
        fits = 1 <= self.num_hardest <= self.queue
        expect(fits, "method.num_hardest", f"a number from 1 to method.queue, {self.queue}", self.num_hardest)

    def build(self, info: DataInfo, encoder: nn.Module, views: Views) -> Method:
        from nearfar_images.methods.mochi import MoCHi

        return MoCHi(self, info, encoder, views)


def mochi() -> Recipe:
    """MoCHi for your own images on one machine; keys of a query's own image are left out, which small data needs."""
    return Recipe(
        name="images/mochi",
        method=MoCHiConfig(momentum=0.99, skip_own=True, head=HeadConfig(layers=2, dim=128, norm="none")),
        views=_views.small(),
        encoder=EncoderConfig(name="auto"),
        optimiser=OptimiserConfig(name="adamw", lr=1e-3, weight_decay=1e-4, warmup_epochs=5.0),
        trainer=TrainerConfig(epochs=100, batch_size=256),
    )


def mochi_imagenet() -> Recipe:
    """The paper's ImageNet setting (1024, 1024, 128) on MoCo v2: ResNet-50, queue 65536, 200 epochs.

    The warm-up of ten epochs is as remembered.
    """
    return Recipe(
        name="images/mochi_imagenet",
        method=MoCHiConfig(
            momentum=0.999,
            queue=65536,
            num_hardest=1024,
            num_pairs=1024,
            num_with_query=128,
            head=HeadConfig(layers=2, hidden=2048, dim=128, norm="none"),
        ),
        views=ImageViewConfig(
            crop_scale=(0.2, 1.0),
            flip=0.5,
            jitter=0.8,
            brightness=0.4,
            contrast=0.4,
            saturation=0.4,
            hue=0.1,
            grayscale=0.2,
            blur=0.5,
            exact_colour=True,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        ),
        encoder=EncoderConfig(name="torchvision/resnet50"),
        optimiser=OptimiserConfig(name="sgd", lr=0.03, momentum=0.9, weight_decay=1e-4),
        trainer=TrainerConfig(epochs=200, batch_size=256),
    )


def _digits_recipe(name: str, *, num_pairs: int, num_with_query: int, queue: int = 512) -> Recipe:
    return _digits.demonstration(
        name,
        MoCHiConfig(
            head=_digits.HEAD,
            momentum=0.99,
            queue=queue,
            num_hardest=32,
            num_pairs=num_pairs,
            num_with_query=num_with_query,
            pairs_from=2,
            with_query_from=4,
            skip_own=True,
        ),
    )


def mochi_digits() -> Recipe:
    """The demonstration: handwritten digits, a queue of 512, 32 mixtures of pairs and 16 with the query."""
    return _digits_recipe("mochi_digits", num_pairs=32, num_with_query=16)


def mochi_pairs_digits() -> Recipe:
    """Handwritten digits with mixtures of pairs alone."""
    return _digits_recipe("mochi_pairs_digits", num_pairs=32, num_with_query=0)


def mochi_none_digits() -> Recipe:
    """Handwritten digits without mixtures, which is MoCo."""
    return _digits_recipe("mochi_none_digits", num_pairs=0, num_with_query=0)


def mochi_large_queue_digits() -> Recipe:
    """Handwritten digits without mixtures and with twice the queue."""
    return _digits_recipe("mochi_large_queue_digits", num_pairs=0, num_with_query=0, queue=1024)


RECIPES = {
    recipe.__name__: recipe
    for recipe in (
        mochi,
        mochi_imagenet,
        mochi_digits,
        mochi_pairs_digits,
        mochi_none_digits,
        mochi_large_queue_digits,
    )
}
DEMONSTRATION = Demonstration(
    arms=("mochi", "mochi_pairs", "mochi_none", "mochi_large_queue"),
    run="nearfar_images.demonstrations.mochi:arm",
    data=DIGITS,
)
