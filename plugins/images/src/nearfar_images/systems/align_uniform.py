"""Alignment and uniformity: what contrast asks of an embedding, measured and optimised apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nearfar.catalog import Claim, Demonstration, System, Taxonomy
from nearfar.checks import expect, expect_positive
from nearfar.config import (
    ContrastConfig,
    DataConfig,
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
    slug="align_uniform",
    title="Understanding Contrastive Representation Learning through Alignment and Uniformity on the Hypersphere",
    authors="Tongzhou Wang, Phillip Isola",
    year=2020,
    venue="ICML",
    plugin="images",
    kind="train",
    summary="pretrains without labels: views come together, samples spread over the sphere; and measures both",
    recipe="images/align_uniform",
    taxonomy=Taxonomy(positive="transformation", negative="batch", key="shared", loss="energy"),
    evidence="code",
    oracles=(
        "rows drawn evenly from the sphere in d dimensions have uniformity -2t + log 0F1(; d/2; t^2)",
        "collapsed rows have uniformity 0 and alignment 0; two antipodal points have uniformity -4t",
        "a regular simplex of B points has uniformity -2tB/(B - 1), the least of B points",
        "at alpha 2 alignment is 2 - 2 mean cosine; rotation changes neither",
        "InfoNCE of many negatives less log M tends to the sum of an alignment and a uniformity term",
    ),
    claim=Claim(
        metric="linear", order=("align_uniform", "align_uniform_spread_only", "align_uniform_align_only"), margin=0.02
    ),
    export=("safetensors", "onnx"),
)


@dataclass(frozen=True, kw_only=True)
class AlignUniformConfig(FrameConfig):
    """Weights and exponents of the two terms."""

    alpha: float = 2.0
    """exponent of the distance between views"""
    t: float = 2.0
    """sharpness of the Gaussian whose mean over pairs is uniformity"""
    align_weight: float = 1.0
    uniform_weight: float = 1.0
    in_batch: bool = True
    """with a queue: queries also spread among one another, not only away from the queue"""

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_positive("method.alpha", self.alpha)
        expect_positive("method.t", self.t)
        for name in ("align_weight", "uniform_weight"):
            weight = getattr(self, name)
            expect(math.isfinite(weight) and weight >= 0, f"method.{name}", "a finite number of 0 or more", weight)
        expect(self.align_weight + self.uniform_weight > 0, "method.align_weight", "above 0 where uniform_weight is 0",
               self.align_weight)  # fmt: skip
        expect(self.in_batch or self.queue > 0, "method.in_batch", "True without a queue", self.in_batch)

    def build(self, info: DataInfo, encoder: nn.Module, views: Views) -> Method:
        from nearfar_images.methods.align_uniform import AlignUniform

        return AlignUniform(self, encoder, views)


def align_uniform() -> Recipe:
    """Alignment and uniformity for your own images on one machine."""
    return Recipe(
        name="images/align_uniform",
        method=AlignUniformConfig(head=HeadConfig(layers=2, dim=128)),
        views=_views.small(),
        encoder=EncoderConfig(name="auto"),
        optimiser=OptimiserConfig(name="adamw", lr=2e-3, weight_decay=1e-4, warmup_epochs=5.0),
        trainer=TrainerConfig(epochs=100, batch_size=256),
    )


def align_uniform_stl10() -> Recipe:
    """The reference code's STL-10 setting on crops of 64 pixels, but for the encoder and the learning rate's steps.

    The reference has a small AlexNet with batch normalisation. torchvision's AlexNet takes 64 pixels, but has none and
    collapses within ten steps at this learning rate; ResNet-18 with the small stem stands in for it.
    """
    return Recipe(
        name="images/align_uniform_stl10",
        method=AlignUniformConfig(head=HeadConfig(kind="linear", dim=128)),
        data=DataConfig(image_size=64, channels=3),
        views=ImageViewConfig(
            crop_scale=(0.08, 1.0),
            flip=0.5,
            jitter=1.0,
            brightness=0.4,
            contrast=0.4,
            saturation=0.4,
            hue=0.4,
            grayscale=0.2,
            exact_colour=True,
        ),
        encoder=EncoderConfig(name="torchvision/resnet18+small-stem"),
        optimiser=OptimiserConfig(name="sgd", lr=0.12, lr_scaling="linear", momentum=0.9, weight_decay=1e-4),
        trainer=TrainerConfig(epochs=200, batch_size=768),
    )


def _on_digits(name: str, **options: float) -> Recipe:
    return _digits.demonstration(name, AlignUniformConfig(head=_digits.HEAD, **options))  # type: ignore[arg-type]


def align_uniform_digits() -> Recipe:
    """The demonstration: handwritten digits, both terms with weight 1."""
    return _on_digits("align_uniform_digits")


def align_uniform_align_only_digits() -> Recipe:
    """Views come together and nothing keeps samples apart, on handwritten digits: this collapses."""
    return _on_digits("align_uniform_align_only_digits", uniform_weight=0.0)


def align_uniform_spread_only_digits() -> Recipe:
    """Samples spread and nothing pulls views together, on handwritten digits."""
    return _on_digits("align_uniform_spread_only_digits", align_weight=0.0)


def align_uniform_more_align_digits() -> Recipe:
    """Alignment with weight 3, on handwritten digits."""
    return _on_digits("align_uniform_more_align_digits", align_weight=3.0)


def align_uniform_more_spread_digits() -> Recipe:
    """Uniformity with weight 3, on handwritten digits."""
    return _on_digits("align_uniform_more_spread_digits", uniform_weight=3.0)


def align_uniform_queue_digits() -> Recipe:
    """Queries spread away from a queue of 1024 former keys, which a slow copy of the encoder makes, on digits."""
    method = AlignUniformConfig(head=_digits.HEAD, key_encoder="ema", momentum=0.99, queue=1024, symmetric=False)
    return _digits.demonstration("align_uniform_queue_digits", method)


def _nt_xent(name: str, temperature: float) -> Recipe:
    method = ContrastConfig(loss="nt_xent", temperature=temperature, head=_digits.HEAD)
    return _digits.demonstration(name, method)


def align_uniform_nt_xent_sharp_digits() -> Recipe:
    """What it is held against on handwritten digits: NT-Xent at temperature 0.1; SimCLR's demonstration has 0.2."""
    return _nt_xent("align_uniform_nt_xent_sharp_digits", 0.1)


def align_uniform_nt_xent_soft_digits() -> Recipe:
    """What it is held against on handwritten digits: NT-Xent at temperature 0.5."""
    return _nt_xent("align_uniform_nt_xent_soft_digits", 0.5)


RECIPES = {
    recipe.__name__: recipe
    for recipe in (
        align_uniform,
        align_uniform_stl10,
        align_uniform_digits,
        align_uniform_align_only_digits,
        align_uniform_spread_only_digits,
        align_uniform_more_align_digits,
        align_uniform_more_spread_digits,
        align_uniform_queue_digits,
        align_uniform_nt_xent_sharp_digits,
        align_uniform_nt_xent_soft_digits,
    )
}
DEMONSTRATION = Demonstration(
    arms=(
        "align_uniform",
        "align_uniform_more_align",
        "align_uniform_more_spread",
        "align_uniform_align_only",
        "align_uniform_spread_only",
        "align_uniform_queue",
        "align_uniform_nt_xent_sharp",
        "simclr",
        "align_uniform_nt_xent_soft",
        "untrained",
    ),
    run="nearfar_images.demonstrations.align_uniform:arm",
    data=DIGITS,
)
