"""Core-tuning: fine-tuning of a pretrained encoder by a classifier and a focal contrast over mixed hard pairs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
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
from nearfar_images.systems import _digits, _views
from nearfar_images.systems._checks import one_encoder

if TYPE_CHECKING:
    from torch import nn

    from nearfar.method import Method, Views

CARD = System(
    slug="core_tuning",
    title="Unleashing the Power of Contrastive Self-Supervised Visual Models via Contrast-Regularized Fine-Tuning",
    authors="Yifan Zhang, Bryan Hooi, Dapeng Hu, Jian Liang, Jiashi Feng",
    year=2021,
    venue="NeurIPS",
    plugin="images",
    also=("dense",),
    kind="train",
    summary="fine-tunes a pretrained encoder with labels: a classifier on mixed features and a focal contrast",
    recipe="images/core_tuning",
    taxonomy=Taxonomy(positive="label", negative="mined", key="shared", loss="probabilistic"),
    evidence="code",
    oracles=(
        "without contrast and mixtures it is cross-entropy; without focal factor and mixtures the contrast is SupCon",
        "the focal contrast lies between 0 and SupCon, and tends to 0 as its probabilities tend to 1",
        "with a share of 1 the mixed positive is the hardest positive with its label, the mixed negative the partner",
        "the hardest positive and negative of two classes of three points are those found by hand, also where all "
        "similarities are positive",
        "the cross-entropy of a mixture is the weighted sum of those of its two labels",
        "with the reference code's flag no gradient reaches the encoder from the features that are not mixed",
    ),
    claim=Claim(metric="accuracy", order=("core_tuning", "ce"), margin=0.0),
    export=("safetensors", "onnx"),
)


@dataclass(frozen=True, kw_only=True)
class CoreTuningConfig(FrameConfig):
    """What is mixed, and what the contrast weighs."""

    head: HeadConfig = field(default_factory=lambda: HeadConfig(layers=2, dim=256, norm="none"))
    contrast_weight: float = 0.1
    temperature: float = 0.07
    gamma: float = 1.0
    """of the focal factor (1 - p)^gamma; 0: SupCon"""
    mixtures: bool = True
    """add a mixed hard positive and a mixed hard negative of every sample"""
    alpha: float = 1.0
    """of the Beta distribution of shares"""
    partner_share: float = 0.8
    """least share of another sample in a mixed negative"""
    mixture_positive: bool = True
    """the mixed hard positive is a positive of its sample; off, as in the authors' code: mixtures of two classes are
    negatives of all"""
    detach_originals: bool = False
    """features that are not mixed give the encoder no gradient, as in the authors' code"""
    average: Literal["positives", "candidates"] = "positives"
    """of the contrast: over an anchor's positives, or over all points, as in the authors' code"""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_encoder(self)
        for name in ("temperature", "alpha"):
            expect_positive(f"method.{name}", getattr(self, name))
        for name in ("contrast_weight", "gamma"):
            expect(getattr(self, name) >= 0, f"method.{name}", "0 or more", getattr(self, name))
        expect(0 <= self.partner_share <= 1, "method.partner_share", "a number in [0, 1]", self.partner_share)
        expect(self.predictor.kind == "none", "method.predictor.kind", "'none'", repr(self.predictor.kind))

    @property
    def needs_labels(self) -> bool:
        """Whether the data must have labels."""
        return True

    def build(self, info: DataInfo, encoder: nn.Module, views: Views) -> Method:
        from nearfar_images.methods.core_tuning import CoreTuning

        return CoreTuning(self, info, encoder, views)


def core_tuning() -> Recipe:
    """Core-tuning of a pretrained encoder: --encoder.name and --encoder.weights say which."""
    return Recipe(
        name="images/core_tuning",
        method=CoreTuningConfig(),
        views=dataclasses.replace(_views.small(), num_views=1, crop_scale=(0.4, 1.0), grayscale=0.0),
        encoder=EncoderConfig(name="auto"),
        optimiser=OptimiserConfig(name="sgd", lr=0.01, momentum=0.9, nesterov=True, weight_decay=1e-4),
        trainer=TrainerConfig(epochs=100, batch_size=256),
    )


def core_tuning_cifar() -> Recipe:
    """The authors' CIFAR setting: ResNet-50 with MoCo-v2 weights of your own, images enlarged, SGD 0.01, 100 epochs."""
    recipe = core_tuning()
    views = ImageViewConfig(
        num_views=1, crop_scale=(0.7, 1.0), rotate=0.2618, flip=0.5, jitter=0.0, grayscale=0.0,
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
    )  # fmt: skip
    return dataclasses.replace(
        recipe,
        name="images/core_tuning_cifar",
        data=dataclasses.replace(recipe.data, source="cifar10", image_size=224),
        views=views,
        encoder=EncoderConfig(name="torchvision/resnet50"),
    )


def core_tuning_digits() -> Recipe:
    """The demonstration's method on all digits, from random weights; `nearfar demonstrate core_tuning` pretrains."""
    method = CoreTuningConfig(head=HeadConfig(layers=2, dim=64, norm="none"))
    recipe = _digits.demonstration("core_tuning_digits", method)
    return dataclasses.replace(
        recipe,
        views=dataclasses.replace(recipe.views, num_views=1),
        optimiser=OptimiserConfig(name="sgd", lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-4),
        trainer=dataclasses.replace(recipe.trainer, batch_size=64),
    )


RECIPES = {
    "core_tuning": core_tuning,
    "core_tuning_cifar": core_tuning_cifar,
    "core_tuning_digits": core_tuning_digits,
}
DEMONSTRATION = Demonstration(
    arms=("core_tuning", "ce_focal", "ce_supcon", "ce"),
    run="nearfar_images.demonstrations.core_tuning:arm",
    data="scikit-learn's digits: SimCLR on 1,347 without labels, then a tenth of them with labels; 450 held out",
)
