"""CACR: positives attract the more the farther they are, and negatives repel the more the nearer they are."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nearfar.catalog import Claim, Demonstration, System, Taxonomy
from nearfar.checks import expect, expect_positive
from nearfar.config import (
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
from nearfar_images.systems import _digits, _views

if TYPE_CHECKING:
    from torch import nn

    from nearfar.method import Method, Views

CARD = System(
    slug="cacr",
    title="Contrastive Attraction and Contrastive Repulsion for Representation Learning",
    authors="Huangjie Zheng, Xu Chen, Jiangchao Yao, Hongxia Yang, Chunyuan Li, Ya Zhang, Hao Zhang, Ivor Tsang, "
    "Jingren Zhou, Mingyuan Zhou",
    year=2023,
    venue="TMLR",
    plugin="images",
    kind="train",
    summary="pretrains without labels by weighing positives against positives and negatives against negatives",
    recipe="images/cacr",
    taxonomy=Taxonomy(positive="transformation", negative="batch", key="shared", loss="energy"),
    evidence="code",
    oracles=(
        "with one positive the attraction is alpha times the alignment loss of exponent 2",
        "with t_pos 0 positives count alike, with t_neg 0 the repulsion is minus beta times the mean distance",
        "attraction never falls as t_pos grows, nor repulsion as t_neg grows",
        "as t_neg grows the repulsion tends to minus the mean of the smallest distances, as t_pos grows the attraction "
        "to the largest",
        "equals loops over three samples and three views; equal views have no attraction, equal rows no loss, and "
        "rotating changes nothing",
    ),
    claim=Claim(metric="linear_imbalanced", order=("cacr", "nt_xent"), margin=0.0),
    export=("safetensors", "onnx"),
)

VIEWS_FORM = ("t_pos", "t_neg", "alpha", "beta", "t", "class_prior", "both_directions")
"""fields of the form without a key encoder of its own"""


@dataclass(frozen=True, kw_only=True)
class CACRConfig(FrameConfig):
    """Sharpness of the weights, and the cost; with key_encoder 'ema' the form for large data."""

    t_pos: float = 1.0
    """the larger, the more the farthest positive counts; 0: all alike"""
    t_neg: float = 0.9
    """the larger, the more the nearest negative counts; 0: all alike"""
    alpha: float = 1.0
    """weight of attraction"""
    beta: float = 1.0
    """weight of repulsion"""
    cost: Literal["euclidean", "rbf"] = "euclidean"
    """of repulsion, and with key_encoder 'ema' of both"""
    t: float = 2.0
    """sharpness of the rbf"""
    class_prior: float = 0.0
    """share of negatives that are of the anchor's class, by which the repulsion is corrected"""
    both_directions: bool = False
    """both views of a pair take their turn as the query of the repulsion; off: the first, as in the authors' code"""
    detach_weights: bool = False
    """weights carry no gradient"""
    temperature: float = 1.0
    """with key_encoder 'ema'"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("t_pos", "t_neg", "alpha", "beta"):
            value = getattr(self, name)
            expect(math.isfinite(value) and value >= 0, f"method.{name}", "a finite number of 0 or more", value)
        expect_positive("method.t", self.t)
        expect_positive("method.temperature", self.temperature)
        expect(0 <= self.class_prior < 1, "method.class_prior", "a number in [0, 1)", self.class_prior)
        corrected = self.class_prior == 0 or self.cost == "euclidean"
        expect(corrected, "method.class_prior", "0 with cost 'rbf'", self.class_prior)
        shared = self.key_encoder == "shared"
        for name in ("temperature",) if shared else VIEWS_FORM:
            default = next(field.default for field in dataclasses.fields(CACRConfig) if field.name == name)
            expect(
                getattr(self, name) == default, f"method.{name}", f"{default} with key_encoder {self.key_encoder!r}",
                getattr(self, name),
            )  # fmt: skip
        expect(self.queue == 0, "method.queue", "0", self.queue)
        expect(shared or self.symmetric, "method.symmetric", "True with a key encoder of its own", self.symmetric)

    def build(self, info: DataInfo, encoder: nn.Module, views: Views) -> Method:
        from nearfar_images.methods.cacr import CACR

        return CACR(self, encoder, views)


def cacr() -> Recipe:
    """CACR with five views for your own images."""
    return Recipe(
        name="images/cacr",
        method=CACRConfig(t_neg=2.0, head=HeadConfig(layers=2, dim=128)),
        views=dataclasses.replace(_views.small(), num_views=5),
        encoder=EncoderConfig(name="auto"),
        optimiser=OptimiserConfig(name="adamw", lr=1e-3, weight_decay=1e-4, warmup_epochs=5.0),
        trainer=TrainerConfig(epochs=100, batch_size=128),
    )


def cacr_cifar() -> Recipe:
    """The reference code's CIFAR-10 setting with five views, but for the encoder and the learning rate's steps.

    The reference has a small AlexNet of 128 outputs; ResNet-18 with the small stem and a linear head stands in for it.
    """
    return Recipe(
        name="images/cacr_cifar",
        method=CACRConfig(head=HeadConfig(kind="linear", dim=128)),
        data=DataConfig(image_size=32, channels=3),
        views=ImageViewConfig(
            num_views=5,
            crop_scale=(0.2, 1.0),
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
        trainer=TrainerConfig(epochs=200, batch_size=128, evaluate_every=20),
    )


def cacr_imagenet() -> Recipe:
    """The form with a momentum encoder, as MoCo v3 frames it: ResNet-50, 1000 epochs, temperature 1.

    Heads, batch, optimiser and momentum are MoCo v3's as remembered.
    """
    return Recipe(
        name="images/cacr_imagenet",
        method=CACRConfig(
            cost="rbf",
            detach_weights=True,
            temperature=1.0,
            key_encoder="ema",
            momentum=0.996,
            momentum_end=1.0,
            head=HeadConfig(layers=2, hidden=4096, dim=256, last_norm=True),
            predictor=HeadConfig(layers=2, hidden=4096, dim=256),
        ),
        views=_views.imagenet(strength=0.5, crop=0.2),
        encoder=EncoderConfig(name="torchvision/resnet50"),
        optimiser=OptimiserConfig(
            name="lars", lr=0.3, lr_scaling="linear", momentum=0.9, weight_decay=1.5e-6, warmup_epochs=10.0
        ),
        trainer=TrainerConfig(epochs=1000, batch_size=4096, evaluate_every=50),
    )


def _digits_recipe(name: str, config: CACRConfig) -> Recipe:
    recipe = _digits.demonstration(name, dataclasses.replace(config, head=_digits.HEAD))
    return dataclasses.replace(
        recipe,
        views=dataclasses.replace(recipe.views, num_views=5),
        trainer=dataclasses.replace(recipe.trainer, batch_size=64, epochs=30),
        optimiser=dataclasses.replace(recipe.optimiser, lr=1e-3),
    )


def cacr_digits() -> Recipe:
    """The demonstration: handwritten digits, five views."""
    return _digits_recipe("cacr_digits", CACRConfig())


def cacr_no_positive_digits() -> Recipe:
    """CACR whose positives count alike, on handwritten digits."""
    return _digits_recipe("cacr_no_positive_digits", CACRConfig(t_pos=0.0))


def cacr_no_negative_digits() -> Recipe:
    """CACR whose negatives count alike, on handwritten digits."""
    return _digits_recipe("cacr_no_negative_digits", CACRConfig(t_neg=0.0))


def cacr_neither_digits() -> Recipe:
    """CACR without any weights, on handwritten digits."""
    return _digits_recipe("cacr_neither_digits", CACRConfig(t_pos=0.0, t_neg=0.0))


RECIPES = {
    recipe.__name__: recipe
    for recipe in (
        cacr,
        cacr_cifar,
        cacr_imagenet,
        cacr_digits,
        cacr_no_positive_digits,
        cacr_no_negative_digits,
        cacr_neither_digits,
    )
}
DEMONSTRATION = Demonstration(
    arms=("cacr", "cacr_no_positive", "cacr_no_negative", "cacr_neither", "nt_xent", "align_uniform"),
    run="nearfar_images.demonstrations.cacr:arm",
    data="scikit-learn's digits, all 1,347 to learn from or about 440 of them from 20 to 1 by class; 450 held out",
)
