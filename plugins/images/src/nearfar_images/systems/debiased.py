"""Debiased contrast: the sum over negatives is corrected for those that are secretly of the anchor's class."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nearfar.catalog import Claim, System, Taxonomy
from nearfar.checks import expect, expect_positive
from nearfar.config import (
    DataConfig,
    DataInfo,
    EncoderConfig,
    FrameConfig,
    HeadConfig,
    OptimiserConfig,
    TrainerConfig,
)
from nearfar.recipe import Recipe
from nearfar_images.demonstrations import digits
from nearfar_images.systems import _digits, _views
from nearfar_images.systems._checks import one_encoder

if TYPE_CHECKING:
    from torch import nn

    from nearfar.method import Method, Views

CARD = System(
    slug="debiased",
    title="Debiased Contrastive Learning",
    authors="Ching-Yao Chuang, Joshua Robinson, Yen-Chen Lin, Antonio Torralba, Stefanie Jegelka",
    year=2020,
    venue="NeurIPS",
    plugin="images",
    also=("sentences", "graphs"),
    kind="train",
    summary="pretrains without labels by contrast whose negatives are corrected for those of the anchor's own class",
    recipe="images/debiased",
    taxonomy=Taxonomy(positive="transformation", negative="batch", key="shared", loss="probabilistic"),
    evidence="code",
    oracles=(
        "a class prior of 0 gives NT-Xent exactly",
        "with one of n negatives as similar as the positive and a prior of 1/n, the estimate is the plain mean of the "
        "other n - 1",
        "with fixed embeddings of discrete classes the estimate is the mean over other classes, which the plain mean "
        "over all is not",
        "with the positive at cosine 1 and all negatives at -1 the estimate is the floor exp(-1/tau), and negatives "
        "get no gradient",
        "where negatives are on average no more similar than the positive, no anchor's loss exceeds its NT-Xent",
    ),
    claim=Claim(metric="linear", order=("debiased_labels", "debiased", "debiased_prior0"), margin=0.0),
    export=("safetensors", "onnx"),
)


@dataclass(frozen=True, kw_only=True)
class DebiasedConfig(FrameConfig):
    """The prior of a class; views beyond the second estimate the share of false negatives."""

    class_prior: float = 0.1
    """share of negatives that are of the anchor's class, about 1 / classes; 0: NT-Xent"""
    hardness: float = 0.0
    """near negatives weigh more, by exp(hardness cosine / temperature)"""
    temperature: float = 0.5
    drop_false_negatives: bool = False
    """samples with the anchor's label are no negatives, which the prior then need not correct: what labels are worth"""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_encoder(self)
        expect(0 <= self.class_prior < 1, "method.class_prior", "a number in [0, 1)", self.class_prior)
        hard = self.hardness >= 0 and math.isfinite(self.hardness)
        expect(hard, "method.hardness", "a finite number of 0 or more", self.hardness)
        expect_positive("method.temperature", self.temperature)
        corrected = self.class_prior > 0 or self.hardness > 0
        expect(
            not (self.drop_false_negatives and corrected),
            "method.class_prior, method.hardness", "0 with drop_false_negatives", (self.class_prior, self.hardness),
        )  # fmt: skip

    @property
    def needs_labels(self) -> bool:
        """Whether the data must have labels."""
        return self.drop_false_negatives

    def build(self, info: DataInfo, encoder: nn.Module, views: Views) -> Method:
        from nearfar_images.methods.debiased import Debiased

        return Debiased(self, encoder, views)


def debiased() -> Recipe:
    """Debiased contrast for your own images; set the class prior to about one over the number of kinds you expect."""
    return Recipe(
        name="images/debiased",
        method=DebiasedConfig(class_prior=0.1, head=HeadConfig(layers=2, dim=128)),
        views=_views.small(),
        encoder=EncoderConfig(name="auto"),
        optimiser=OptimiserConfig(name="adamw", lr=1e-3, weight_decay=1e-4, warmup_epochs=5.0),
        trainer=TrainerConfig(epochs=100, batch_size=256),
    )


def debiased_small() -> Recipe:
    """The reference code's setting for images of 32 pixels: ResNet-50 with the small stem, batch 256, 500 epochs."""
    return Recipe(
        name="images/debiased_small",
        method=DebiasedConfig(class_prior=0.1, head=HeadConfig(layers=2, hidden=512, dim=128)),
        data=DataConfig(image_size=32),
        views=dataclasses.replace(_views.small(), blur=0.5, exact_colour=True),
        encoder=EncoderConfig(name="torchvision/resnet50+small-stem"),
        optimiser=OptimiserConfig(name="adamw", lr=1e-3, weight_decay=1e-6, schedule="constant"),
        trainer=TrainerConfig(epochs=500, batch_size=256, evaluate_every=50),
    )


def _digits_recipe(name: str, **method: float | bool) -> Recipe:
    recipe = _digits.demonstration(name, DebiasedConfig(head=_digits.HEAD, **method))  # type: ignore[arg-type]
    return dataclasses.replace(recipe, trainer=dataclasses.replace(recipe.trainer, batch_size=128))


def debiased_digits() -> Recipe:
    """The demonstration: handwritten digits, ten classes and a prior of 0.1."""
    return _digits_recipe("debiased_digits", class_prior=0.1)


def debiased_prior0_digits() -> Recipe:
    """Handwritten digits without a correction, which is NT-Xent."""
    return _digits_recipe("debiased_prior0_digits", class_prior=0.0)


def debiased_prior05_digits() -> Recipe:
    """Handwritten digits with half the true prior."""
    return _digits_recipe("debiased_prior05_digits", class_prior=0.05)


def debiased_prior20_digits() -> Recipe:
    """Handwritten digits with twice the true prior."""
    return _digits_recipe("debiased_prior20_digits", class_prior=0.2)


def debiased_labels_digits() -> Recipe:
    """Handwritten digits whose false negatives are dropped by their labels: the bound that the correction aims at."""
    return _digits_recipe("debiased_labels_digits", class_prior=0.0, drop_false_negatives=True)


RECIPES = {
    "debiased": debiased,
    "debiased_small": debiased_small,
    "debiased_digits": debiased_digits,
    "debiased_prior0_digits": debiased_prior0_digits,
    "debiased_prior05_digits": debiased_prior05_digits,
    "debiased_prior20_digits": debiased_prior20_digits,
    "debiased_labels_digits": debiased_labels_digits,
}
DEMONSTRATION = digits(
    "debiased", "debiased_prior0", "debiased_prior05", "debiased_prior20", "debiased_labels", "untrained"
)
