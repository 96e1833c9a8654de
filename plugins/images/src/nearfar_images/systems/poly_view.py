"""Poly-view contrast: each of many views of an image tells of all the others."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nearfar.catalog import Claim, Demonstration, System, Taxonomy
from nearfar.checks import expect, expect_positive
from nearfar.config import DataInfo, EncoderConfig, FrameConfig, HeadConfig, OptimiserConfig, TrainerConfig
from nearfar.recipe import Recipe
from nearfar_images.demonstrations import DIGITS
from nearfar_images.systems import _digits, _views
from nearfar_images.systems._checks import one_encoder

if TYPE_CHECKING:
    from torch import nn

    from nearfar.method import Method, Views

CARD = System(
    slug="poly_view",
    title="Poly-View Contrastive Learning",
    authors="Amitis Shidani, Devon Hjelm, Jason Ramapuram, Russ Webb, Eeshan Gunesh Dhekane, Dan Busbridge",
    year=2024,
    venue="ICLR",
    plugin="images",
    kind="train",
    summary="pretrains without labels from many views of few images, each view telling of all the others",
    recipe="images/poly_view",
    taxonomy=Taxonomy(positive="transformation", negative="batch", key="shared", loss="mutual_information"),
    evidence="code",
    oracles=(
        "with two views all three losses equal NT-Xent",
        "the arithmetic loss is never above the geometric one, and equal where all pairs of a view agree",
        "where all embeddings are one, all three are log(1 + M(K - 1))",
        "where all views of a sample are one, the three losses agree for every number of samples and views",
        "permuting views or samples changes nothing, and the losses equal loops over three samples and three views",
    ),
    claim=Claim(metric="linear_at_equal_images", order=("geometric_m8", "geometric_m4", "geometric_m2"), margin=0.0),
    export=("safetensors", "onnx"),
)


@dataclass(frozen=True, kw_only=True)
class PolyViewConfig(FrameConfig):
    """Which of the three losses."""

    form: Literal["geometric", "arithmetic", "sufficient"] = "geometric"
    """mean of logarithms over the other views, logarithm of the mean, or contrast with the mean of the other views"""
    temperature: float = 0.1
    normalize_average: bool = False
    """of sufficient: the mean of the other views is brought to unit length"""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_encoder(self)
        expect_positive("method.temperature", self.temperature)
        averages = self.form == "sufficient" or not self.normalize_average
        expect(averages, "method.normalize_average", f"False with form {self.form!r}", self.normalize_average)

    def build(self, info: DataInfo, encoder: nn.Module, views: Views) -> Method:
        from nearfar_images.methods.poly_view import PolyView

        return PolyView(self, encoder, views)


def poly_view() -> Recipe:
    """Poly-view contrast with four views for your own images."""
    return Recipe(
        name="images/poly_view",
        method=PolyViewConfig(temperature=0.2, head=HeadConfig(layers=2, dim=128)),
        views=dataclasses.replace(_views.small(), num_views=4),
        encoder=EncoderConfig(name="auto"),
        optimiser=OptimiserConfig(name="adamw", lr=1e-3, weight_decay=1e-4, warmup_epochs=5.0),
        trainer=TrainerConfig(epochs=100, batch_size=128),
    )


def poly_view_imagenet() -> Recipe:
    """The paper's headline: ResNet-50, batch 256, 128 epochs, against SimCLR's batch 4096 and 1024 epochs.

    Eight views of it are as remembered; optimiser, head and views are SimCLR's.
    """
    return Recipe(
        name="images/poly_view_imagenet",
        method=PolyViewConfig(temperature=0.1, head=HeadConfig(layers=2, hidden=2048, dim=128, last_norm=True)),
        views=dataclasses.replace(_views.imagenet(strength=1.0, crop=0.08), num_views=8),
        encoder=EncoderConfig(name="torchvision/resnet50"),
        optimiser=OptimiserConfig(
            name="lars", lr=0.3, lr_scaling="linear", momentum=0.9, trust=1e-3, weight_decay=1e-6, warmup_epochs=10.0
        ),
        trainer=TrainerConfig(epochs=128, batch_size=256),
    )


def _digits_recipe(name: str, form: Literal["geometric", "arithmetic", "sufficient"]) -> Recipe:
    recipe = _digits.demonstration(name, PolyViewConfig(form=form, temperature=0.2, head=_digits.HEAD))
    return dataclasses.replace(
        recipe,
        views=dataclasses.replace(recipe.views, num_views=4),
        trainer=dataclasses.replace(recipe.trainer, batch_size=64),
        optimiser=dataclasses.replace(recipe.optimiser, lr=1e-3),
    )


def poly_view_digits() -> Recipe:
    """The demonstration: the geometric form with four views of 64 handwritten digits."""
    return _digits_recipe("poly_view_digits", "geometric")


def poly_view_arithmetic_digits() -> Recipe:
    """The arithmetic form with four views of 64 handwritten digits."""
    return _digits_recipe("poly_view_arithmetic_digits", "arithmetic")


def poly_view_sufficient_digits() -> Recipe:
    """Sufficient statistics with four views of 64 handwritten digits."""
    return _digits_recipe("poly_view_sufficient_digits", "sufficient")


RECIPES = {
    recipe.__name__: recipe
    for recipe in (
        poly_view,
        poly_view_imagenet,
        poly_view_digits,
        poly_view_arithmetic_digits,
        poly_view_sufficient_digits,
    )
}
DEMONSTRATION = Demonstration(
    arms=(
        "geometric_m2",
        *(f"{form}_m{num}" for num in (4, 8) for form in ("geometric", "arithmetic", "sufficient", "pairs")),
    ),
    run="nearfar_images.demonstrations.poly_view:arm",
    data=DIGITS,
)
