"""Decoupled uniformity: the means of images' views spread out, near ones together where prior knowledge says so."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nearfar.catalog import Claim, Demonstration, System, Taxonomy
from nearfar.checks import expect, expect_positive
from nearfar.config import DataConfig, DataInfo, EncoderConfig, FrameConfig, HeadConfig, OptimiserConfig, TrainerConfig
from nearfar.recipe import Recipe
from nearfar_images.demonstrations import DIGITS
from nearfar_images.systems import _digits, _views
from nearfar_images.systems._checks import one_encoder

if TYPE_CHECKING:
    from torch import nn

    from nearfar.method import Method, Views

CARD = System(
    slug="decoupled_uniformity",
    title="Integrating Prior Knowledge in Contrastive Learning with Kernel",
    authors="Benoit Dufumier, Carlo Alberto Barbano, Robin Louiset, Edouard Duchesnay, Pietro Gori",
    year=2023,
    venue="ICML",
    plugin="images",
    kind="train",
    summary="pretrains without labels by spreading the means of images' views, which prior knowledge may mix",
    recipe="images/decoupled_uniformity",
    taxonomy=Taxonomy(positive="transformation", negative="batch", key="shared", loss="energy"),
    evidence="code",
    oracles=(
        "with one view and no prior it is the uniformity loss",
        "with identical views it is the uniformity of the images; collapsed it is 0",
        "an identity kernel divides all centroids by 1 + lambda; a kernel of ones makes them one, and the loss 0",
        "with a kernel of blocks of ones every centroid is its class's sum over n_c + lambda",
        "the prior gets no gradient, the loss equals a loop over four images, and its least value, of a simplex, is "
        "-2tn/(n - 1)",
    ),
    claim=Claim(metric="few_label", order=("attributes", "no_prior", "simclr"), margin=0.0),
    export=("safetensors", "onnx"),
)


@dataclass(frozen=True, kw_only=True)
class DecoupledUniformityConfig(FrameConfig):
    """The sharpness, and what is known of the images beforehand."""

    t: float = 2.0
    """sharpness of the Gaussian of which the mean over pairs of images is taken"""
    prior: str = ""
    """what is known of every image: a field of the data ("label": its class), or a file .npy of numbers [N, Q], one row
    a sample of the whole data by its index; empty: nothing"""
    kernel: Literal["rbf", "cosine"] = "rbf"
    """how alike two priors are"""
    sigma: float = 0.0
    """width of the rbf in the prior's units; 0: the median distance in the batch"""
    ridge: float = 0.01
    """the larger, the less images share; 0: one over the root of the batch size"""
    standardise: bool = False
    """columns of the prior get mean 0 and deviation 1, over the file, or over the batch where it is a field"""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_encoder(self)
        expect_positive("method.t", self.t)
        for name in ("sigma", "ridge"):
            value = getattr(self, name)
            expect(math.isfinite(value) and value >= 0, f"method.{name}", "a finite number of 0 or more", value)
        known = bool(self.prior)
        expect(known or not self.standardise, "method.standardise", "False without method.prior", self.standardise)
        wide = self.kernel == "rbf" or self.sigma == 0
        expect(wide, "method.sigma", "0 with kernel 'cosine'", self.sigma)

    @property
    def needs_labels(self) -> bool:
        """Whether the data must have labels."""
        return self.prior == "label"

    def build(self, info: DataInfo, encoder: nn.Module, views: Views) -> Method:
        from nearfar_images.methods.decoupled_uniformity import DecoupledUniformity

        return DecoupledUniformity(self, info, encoder, views)


def decoupled_uniformity() -> Recipe:
    """Decoupled uniformity for your own images; name what you know of them with --method.prior."""
    return Recipe(
        name="images/decoupled_uniformity",
        method=DecoupledUniformityConfig(head=HeadConfig(layers=2, dim=128)),
        views=_views.small(),
        encoder=EncoderConfig(name="auto"),
        optimiser=OptimiserConfig(name="adamw", lr=1e-3, weight_decay=1e-4, warmup_epochs=5.0),
        trainer=TrainerConfig(epochs=100, batch_size=256),
    )


def decoupled_uniformity_cifar() -> Recipe:
    """The reference code's CIFAR setting: ResNet-18, batch 256, SGD without momentum, cosine to 0.001, 400 epochs."""
    return Recipe(
        name="images/decoupled_uniformity_cifar",
        method=DecoupledUniformityConfig(head=HeadConfig(layers=2, hidden=2048, dim=256, norm="none")),
        data=DataConfig(image_size=32, channels=3),
        views=_views.small(),
        encoder=EncoderConfig(name="torchvision/resnet18+small-stem"),
        optimiser=OptimiserConfig(
            name="sgd", lr=0.3, lr_scaling="linear", momentum=0.0, weight_decay=1e-4, final_lr=1e-3 / 0.3
        ),
        trainer=TrainerConfig(epochs=400, batch_size=256, evaluate_every=40),
    )


def _digits_recipe(name: str, config: DecoupledUniformityConfig) -> Recipe:
    """Digits whose views vary little, so that most of what makes two of them alike is left to the prior."""
    recipe = _digits.demonstration(name, dataclasses.replace(config, head=_digits.HEAD))
    weak = dataclasses.replace(recipe.views, rotate=0.1, zoom=(1.0, 1.1), aspect=0.05, shear=0.05, shift=0.05)
    return dataclasses.replace(
        recipe,
        views=weak,
        trainer=dataclasses.replace(recipe.trainer, batch_size=64),
        optimiser=dataclasses.replace(recipe.optimiser, lr=1e-3),
    )


def decoupled_uniformity_digits() -> Recipe:
    """The demonstration: handwritten digits in batches of 64, weak views, no prior."""
    return _digits_recipe("decoupled_uniformity_digits", DecoupledUniformityConfig())


def decoupled_uniformity_labels_digits() -> Recipe:
    """Handwritten digits whose classes are the prior: the centroids of a class become one."""
    config = DecoupledUniformityConfig(prior="label", kernel="cosine")
    return _digits_recipe("decoupled_uniformity_labels_digits", config)


RECIPES = {
    recipe.__name__: recipe
    for recipe in (
        decoupled_uniformity,
        decoupled_uniformity_cifar,
        decoupled_uniformity_digits,
        decoupled_uniformity_labels_digits,
    )
}
DEMONSTRATION = Demonstration(
    arms=("simclr", "no_prior", "attributes", "pca", "random"),
    run="nearfar_images.demonstrations.decoupled_uniformity:arm",
    data=DIGITS,
)
