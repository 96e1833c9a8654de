"""SimSiam: a predictor on one view guesses what the same network says of the other, which stands still."""

from __future__ import annotations

import dataclasses

from nearfar.catalog import Claim, System, Taxonomy
from nearfar.config import ContrastConfig, EncoderConfig, HeadConfig, OptimiserConfig, TrainerConfig
from nearfar.recipe import Recipe
from nearfar_images.demonstrations import digits
from nearfar_images.systems import _digits, _views

CARD = System(
    slug="simsiam",
    title="Exploring Simple Siamese Representation Learning",
    authors="Xinlei Chen, Kaiming He",
    year=2021,
    venue="CVPR",
    plugin="images",
    kind="baseline",
    summary="pretrains without labels, negatives or a teacher: a predictor, and a gradient that stops at the target",
    recipe="images/simsiam",
    taxonomy=Taxonomy(positive="transformation", negative="none", key="shared", loss="regression"),
    evidence="text",
    oracles=(
        "the loss is minus the cosine of the prediction of one view and the projection of the other, the mean over "
        "both directions and samples",
        "its gradient is that with the projections of the targets replaced by constants, and not that without the stop",
        "a constant embedding is least: -1, which no term forbids",
        "the loss is BYOL's of the same vectors, halved and less 1",
    ),
    claim=Claim(metric="few_label", order=("simsiam", "untrained"), margin=0.02),
    export=("safetensors", "onnx"),
)


def _method(*, layers: int, hidden: int, dim: int, bottleneck: int) -> ContrastConfig:
    return ContrastConfig(
        loss="regression",
        regression="cosine",
        head=HeadConfig(layers=layers, hidden=hidden, dim=dim, last_norm=True),
        predictor=HeadConfig(layers=2, hidden=bottleneck, dim=dim),
    )


def simsiam() -> Recipe:
    """SimSiam for your own images on one machine."""
    return Recipe(
        name="images/simsiam",
        method=_method(layers=2, hidden=512, dim=512, bottleneck=128),
        views=_views.small(),
        encoder=EncoderConfig(name="auto"),
        optimiser=OptimiserConfig(name="adamw", lr=1e-3, weight_decay=1e-4, warmup_epochs=5.0),
        trainer=TrainerConfig(epochs=100, batch_size=256),
    )


def simsiam_imagenet() -> Recipe:
    """The paper's ImageNet setting: ResNet-50, batch 512, SGD 0.05 x batch/256, 100 epochs."""
    return Recipe(
        name="images/simsiam_imagenet",
        method=_method(layers=3, hidden=2048, dim=2048, bottleneck=512),
        views=_views.imagenet(strength=0.5, crop=0.2),
        encoder=EncoderConfig(name="torchvision/resnet50"),
        optimiser=OptimiserConfig(name="sgd", lr=0.05, lr_scaling="linear", momentum=0.9, weight_decay=1e-4),
        trainer=TrainerConfig(epochs=100, batch_size=512),
    )


def simsiam_cifar() -> Recipe:
    """The paper's CIFAR-10 setting: ResNet-18 with the small stem, batch 512, SGD 0.03 x batch/256, 800 epochs."""
    return Recipe(
        name="images/simsiam_cifar",
        method=_method(layers=2, hidden=2048, dim=2048, bottleneck=512),
        views=dataclasses.replace(_views.small(), crop_scale=(0.2, 1.0)),
        encoder=EncoderConfig(name="torchvision/resnet18+small-stem"),
        optimiser=OptimiserConfig(name="sgd", lr=0.03, lr_scaling="linear", momentum=0.9, weight_decay=5e-4),
        trainer=TrainerConfig(epochs=800, batch_size=512, evaluate_every=50),
    )


def simsiam_digits() -> Recipe:
    """The demonstration: handwritten digits in batches of 128."""
    recipe = _digits.demonstration("simsiam_digits", _method(layers=2, hidden=128, dim=64, bottleneck=32))
    return dataclasses.replace(recipe, trainer=dataclasses.replace(recipe.trainer, batch_size=128))


RECIPES = {
    "simsiam": simsiam,
    "simsiam_imagenet": simsiam_imagenet,
    "simsiam_cifar": simsiam_cifar,
    "simsiam_digits": simsiam_digits,
}
DEMONSTRATION = digits("simsiam", "simclr", "untrained")
