"""Barlow Twins: features agree between two views and are uncorrelated with each other."""

from __future__ import annotations

from nearfar.catalog import Claim, System, Taxonomy
from nearfar.config import (
    BarlowConfig,
    ContrastConfig,
    EncoderConfig,
    HeadConfig,
    OptimiserConfig,
    TrainerConfig,
)
from nearfar.recipe import Recipe
from nearfar_images.demonstrations import digits
from nearfar_images.systems import _digits, _views

CARD = System(
    slug="barlow",
    title="Barlow Twins: Self-Supervised Learning via Redundancy Reduction",
    authors="Jure Zbontar, Li Jing, Ishan Misra, Yann LeCun, Stéphane Deny",
    year=2021,
    venue="ICML",
    plugin="images",
    kind="baseline",
    summary="pretrains without labels or negatives: the correlations of two views' features go to the identity",
    recipe="images/barlow",
    taxonomy=Taxonomy(positive="transformation", negative="none", key="shared", loss="regression"),
    evidence="text",
    oracles=(
        "the loss equals a loop over pairs of features with their correlation coefficients",
        "equal views whose features are uncorrelated give 0; embeddings that are the same for all samples give D",
        "shifting and positively scaling any feature of either view changes nothing, and so does swapping the views",
        "a feature whose sign is turned in one view costs 4, to which other features add nothing",
    ),
    claim=Claim(metric="few_label", order=("barlow", "untrained"), margin=0.03),
    export=("safetensors", "onnx"),
)


def _method(*, layers: int, dim: int, scale: float = 1.0) -> ContrastConfig:
    # standardising takes the mean out, so that a last bias would have no gradient but rounding
    head = HeadConfig(layers=layers, hidden=dim, dim=dim, last_bias=False)
    return ContrastConfig(loss="barlow", head=head, barlow=BarlowConfig(scale=scale))


def barlow() -> Recipe:
    """Barlow Twins for your own images on one machine."""
    return Recipe(
        name="images/barlow",
        method=_method(layers=3, dim=1024),
        views=_views.small(),
        encoder=EncoderConfig(name="auto"),
        optimiser=OptimiserConfig(name="adamw", lr=1e-3, weight_decay=1e-4, warmup_epochs=5.0),
        trainer=TrainerConfig(epochs=100, batch_size=256),
    )


def barlow_imagenet() -> Recipe:
    """The paper's ImageNet setting: ResNet-50, batch 2048, LARS, three layers of 8192, 1000 epochs.

    The scale of 0.024 is the ratio of the reference code's learning rate of biases and norms, 0.0048, to that of
    weights, 0.2; LARS does not see it in weights.
    """
    return Recipe(
        name="images/barlow_imagenet",
        method=_method(layers=3, dim=8192, scale=0.024),
        views=_views.byol(),
        encoder=EncoderConfig(name="torchvision/resnet50"),
        optimiser=OptimiserConfig(
            name="lars", lr=0.2, lr_scaling="linear", momentum=0.9, trust=1e-3, weight_decay=1.5e-6,
            warmup_epochs=10.0, final_lr=1e-3,
        ),
        trainer=TrainerConfig(epochs=1000, batch_size=2048, evaluate_every=50),
    )  # fmt: skip


def barlow_digits() -> Recipe:
    """The demonstration: handwritten digits, 256 features."""
    return _digits.demonstration("barlow_digits", _method(layers=2, dim=256))


RECIPES = {"barlow": barlow, "barlow_imagenet": barlow_imagenet, "barlow_digits": barlow_digits}
DEMONSTRATION = digits("barlow", "simclr", "untrained")
