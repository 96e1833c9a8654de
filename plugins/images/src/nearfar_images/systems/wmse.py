"""W-MSE: embeddings are whitened, so that they cannot collapse, and views of an image drawn together."""

from __future__ import annotations

import dataclasses

from nearfar.catalog import Claim, System, Taxonomy
from nearfar.config import (
    ContrastConfig,
    EncoderConfig,
    HeadConfig,
    OptimiserConfig,
    TrainerConfig,
    WMSEConfig,
)
from nearfar.recipe import Recipe
from nearfar_images.demonstrations import digits
from nearfar_images.systems import _digits, _views

CARD = System(
    slug="wmse",
    title="Whitening for Self-Supervised Representation Learning",
    authors="Aleksandr Ermolov, Aliaksandr Siarohin, Enver Sangineto, Nicu Sebe",
    year=2021,
    venue="ICML",
    plugin="images",
    kind="baseline",
    summary="pretrains without labels or negatives: whitened embeddings of two views are drawn together",
    recipe="images/wmse",
    taxonomy=Taxonomy(positive="transformation", negative="none", key="shared", loss="regression"),
    evidence="text",
    oracles=(
        "the loss equals 2 - 2 cos of rows whitened by a Cholesky factor in numpy, part by part of the drawn cuts",
        "the whitened rows of every part have mean 0 and the identity for covariance, up to eps",
        "shifting a view and scaling its features changes nothing without eps",
        "parts of no more rows than features, and embeddings on a line without eps, are refused",
    ),
    claim=Claim(metric="few_label", order=("wmse", "untrained"), margin=0.03),
    export=("safetensors", "onnx"),
)


def _method(*, hidden: int, dim: int, size: int) -> ContrastConfig:
    # whitening takes the mean out, so that a last bias would have no gradient but rounding
    head = HeadConfig(layers=2, hidden=hidden, dim=dim, last_bias=False)
    return ContrastConfig(loss="wmse", head=head, wmse=WMSEConfig(size=size))


def wmse() -> Recipe:
    """W-MSE for your own images on one machine; a batch needs more images than the embedding has features."""
    return Recipe(
        name="images/wmse",
        method=_method(hidden=1024, dim=64, size=128),
        views=_views.small(),
        encoder=EncoderConfig(name="auto"),
        optimiser=OptimiserConfig(name="adamw", lr=1e-3, weight_decay=1e-4, warmup_epochs=5.0),
        trainer=TrainerConfig(epochs=100, batch_size=256),
    )


def wmse_cifar() -> Recipe:
    """The paper's CIFAR-10 setting with four views: ResNet-18 with the small stem, parts of 128, 1000 epochs."""
    return Recipe(
        name="images/wmse_cifar",
        method=_method(hidden=1024, dim=64, size=128),
        views=dataclasses.replace(_views.small(), num_views=4, crop_scale=(0.2, 1.0), grayscale=0.1),
        encoder=EncoderConfig(name="torchvision/resnet18+small-stem"),
        optimiser=OptimiserConfig(name="adamw", lr=3e-3, weight_decay=1e-6, warmup_epochs=2.5),
        trainer=TrainerConfig(epochs=1000, batch_size=256, evaluate_every=50),
    )


def wmse_digits() -> Recipe:
    """The demonstration: handwritten digits, whitened 128 at a time in 32 dimensions."""
    return _digits.demonstration("wmse_digits", _method(hidden=128, dim=32, size=128))


RECIPES = {"wmse": wmse, "wmse_cifar": wmse_cifar, "wmse_digits": wmse_digits}
DEMONSTRATION = digits("wmse", "simclr", "untrained")
