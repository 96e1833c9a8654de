"""BYOL: a predictor on one view guesses what a slow copy of the network says of the other; there are no negatives."""

from __future__ import annotations

import dataclasses

from nearfar.catalog import Claim, System, Taxonomy
from nearfar.config import ContrastConfig, EncoderConfig, HeadConfig, OptimiserConfig, TrainerConfig
from nearfar.recipe import Recipe
from nearfar_images.demonstrations import digits
from nearfar_images.systems import _digits, _views

CARD = System(
    slug="byol",
    title="Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning",
    authors="Jean-Bastien Grill, Florian Strub, Florent Altché, Corentin Tallec, Pierre H. Richemond, Elena "
    "Buchatskaya, Carl Doersch, Bernardo Avila Pires, Zhaohan Daniel Guo, Mohammad Gheshlaghi Azar, Bilal Piot, Koray "
    "Kavukcuoglu, Rémi Munos, Michal Valko",
    year=2020,
    venue="NeurIPS",
    plugin="images",
    kind="baseline",
    summary="pretrains without labels or negatives: one view predicts what a slow teacher says of the other",
    recipe="images/byol",
    taxonomy=Taxonomy(positive="transformation", negative="none", key="momentum", loss="regression"),
    evidence="text",
    oracles=(
        "the loss is the squared distance of the unit vectors of prediction and key of the other view, by a loop over "
        "samples and both directions",
        "the teacher is the closed form of the moving average whose momentum rises by a cosine to 1",
        "teacher and keys get no gradient; encoder, head and predictor do",
        "prediction and key that are parallel give 0, orthogonal 2, opposite 4, whatever their lengths",
    ),
    claim=Claim(metric="few_label", order=("byol", "untrained"), margin=0.03),
    export=("safetensors", "onnx"),
)


def _method(*, hidden: int, dim: int, momentum: float) -> ContrastConfig:
    # the layer that a last bias would be seen by takes the mean out again
    head = HeadConfig(layers=2, hidden=hidden, dim=dim, last_bias=False)
    return ContrastConfig(
        loss="regression", head=head, predictor=head, key_encoder="ema", momentum=momentum, momentum_end=1.0
    )


def byol() -> Recipe:
    """BYOL for your own images on one machine.

    The teacher starts with momentum 0.99, not the paper's 0.996, since a run has fewer steps.
    """
    return Recipe(
        name="images/byol",
        method=_method(hidden=1024, dim=256, momentum=0.99),
        views=_views.small(),
        encoder=EncoderConfig(name="auto"),
        optimiser=OptimiserConfig(name="adamw", lr=1e-3, weight_decay=1e-4, warmup_epochs=5.0),
        trainer=TrainerConfig(epochs=100, batch_size=256),
    )


def byol_imagenet() -> Recipe:
    """The paper's ImageNet setting: ResNet-50, batch 4096, LARS, momentum from 0.996 to 1, 1000 epochs."""
    return Recipe(
        name="images/byol_imagenet",
        method=_method(hidden=4096, dim=256, momentum=0.996),
        views=_views.byol(),
        encoder=EncoderConfig(name="torchvision/resnet50"),
        optimiser=OptimiserConfig(
            name="lars", lr=0.2, lr_scaling="linear", momentum=0.9, trust=1e-3, weight_decay=1.5e-6, warmup_epochs=10.0
        ),
        trainer=TrainerConfig(epochs=1000, batch_size=4096, evaluate_every=50),
    )


def byol_digits() -> Recipe:
    """The demonstration: handwritten digits, and a teacher for some hundred steps."""
    recipe = _digits.demonstration("byol_digits", _method(hidden=128, dim=64, momentum=0.98))
    return dataclasses.replace(recipe, trainer=dataclasses.replace(recipe.trainer, batch_size=128))


RECIPES = {"byol": byol, "byol_imagenet": byol_imagenet, "byol_digits": byol_digits}
DEMONSTRATION = digits("byol", "simclr", "untrained")
