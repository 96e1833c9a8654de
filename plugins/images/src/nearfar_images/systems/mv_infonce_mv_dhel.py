"""MV-InfoNCE and MV-DHEL: contrast of many views in one term a sample, instead of one a pair of views."""

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
    slug="mv_infonce_mv_dhel",
    title="A Principled Framework for Multi-View Contrastive Learning",
    authors="Panagiotis Koromilas, Efthymios Georgiou, Giorgos Bouritsas, Theodoros Giannakopoulos, Mihalis A. "
    "Nicolaou, Yannis Panagakis",
    year=2025,
    venue="arXiv 2507.06979",
    plugin="images",
    also=("image_text",),
    kind="train",
    summary="pretrains without labels from several views of every image in one term that holds all of them",
    recipe="images/mv_infonce_mv_dhel",
    taxonomy=Taxonomy(positive="transformation", negative="batch", key="shared", loss="probabilistic"),
    evidence="code",
    oracles=(
        "where all embeddings are one, MV-InfoNCE is log((BV - 1)/(V - 1)) and MV-DHEL -log(V(V - 1)/2) + V log(B - 1) "
        "+ (V - 1)/tau",
        "with two views MV-InfoNCE is at least NT-Xent, and equal where both denominators agree; MV-DHEL is the "
        "two-view DHEL",
        "permuting views or samples and rotating change nothing; MV-DHEL's uniformity bears another rotation in each "
        "view",
        "both losses equal loops over three samples and three views, with every option of the denominator",
        "in MV-DHEL the gradient of a view does not depend on other views of other samples; in MV-InfoNCE it does",
    ),
    claim=Claim(metric="linear", order=("mv_dhel_v4", "pairs_v4"), margin=0.0),
    export=("safetensors", "onnx"),
)


@dataclass(frozen=True, kw_only=True)
class MultiViewConfig(FrameConfig):
    """Which loss of many views."""

    loss: Literal["mv_dhel", "mv_infonce", "pairs", "average"] = "mv_dhel"
    """pairs: mean over pairs of views of a loss of two; average: of each view and the mean of the others"""
    base: Literal["nt_xent", "dhel"] = "nt_xent"
    """the loss of two views that pairs and average take"""
    temperature: float = 0.5
    same_view_negatives: bool = True
    """of mv_infonce: pairs of the same view repel too, as in the authors' code; off: their formula"""
    include_self: bool = False
    """of mv_dhel: a row stands in its own sum, as in the authors' formula; off: their code"""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_encoder(self)
        expect_positive("method.temperature", self.temperature)
        two = self.loss in ("pairs", "average")
        expect(two or self.base == "nt_xent", "method.base", f"'nt_xent' with loss {self.loss!r}", repr(self.base))
        same = self.loss == "mv_infonce" or self.same_view_negatives
        expect(same, "method.same_view_negatives", f"True with loss {self.loss!r}", self.same_view_negatives)
        own = self.loss == "mv_dhel" or not self.include_self
        expect(own, "method.include_self", f"False with loss {self.loss!r}", self.include_self)

    def build(self, info: DataInfo, encoder: nn.Module, views: Views) -> Method:
        from nearfar_images.methods.mv_infonce_mv_dhel import MultiView

        return MultiView(self, encoder, views)


def mv_infonce_mv_dhel() -> Recipe:
    """MV-DHEL with four views for your own images; --method.loss mv_infonce for the other loss."""
    return Recipe(
        name="images/mv_infonce_mv_dhel",
        method=MultiViewConfig(temperature=0.2, head=HeadConfig(layers=2, dim=128)),
        views=dataclasses.replace(_views.small(), num_views=4),
        encoder=EncoderConfig(name="auto"),
        optimiser=OptimiserConfig(name="adamw", lr=1e-3, weight_decay=1e-4, warmup_epochs=5.0),
        trainer=TrainerConfig(epochs=100, batch_size=128),
    )


def mv_dhel_cifar() -> Recipe:
    """The paper's CIFAR setting with four views: batch 256, SGD 1.0, warm-up for 1 % of 200 epochs, temperature 0.5."""
    return Recipe(
        name="images/mv_dhel_cifar",
        method=MultiViewConfig(temperature=0.5, head=HeadConfig(layers=2, hidden=512, dim=128)),
        views=dataclasses.replace(_views.small(), num_views=4),
        encoder=EncoderConfig(name="torchvision/resnet18+small-stem"),
        optimiser=OptimiserConfig(name="sgd", lr=1.0, momentum=0.9, weight_decay=1e-6, warmup_epochs=2.0),
        trainer=TrainerConfig(epochs=200, batch_size=256, evaluate_every=20),
    )


def _digits_recipe(name: str, config: MultiViewConfig) -> Recipe:
    recipe = _digits.demonstration(name, dataclasses.replace(config, temperature=0.2, head=_digits.HEAD))
    return dataclasses.replace(
        recipe,
        views=dataclasses.replace(recipe.views, num_views=4),
        trainer=dataclasses.replace(recipe.trainer, batch_size=64),
        optimiser=dataclasses.replace(recipe.optimiser, lr=1e-3),
    )


def mv_infonce_mv_dhel_digits() -> Recipe:
    """The demonstration: MV-DHEL with four views of 64 handwritten digits."""
    return _digits_recipe("mv_infonce_mv_dhel_digits", MultiViewConfig())


def mv_infonce_digits() -> Recipe:
    """MV-InfoNCE with four views of 64 handwritten digits."""
    return _digits_recipe("mv_infonce_digits", MultiViewConfig(loss="mv_infonce"))


def multi_view_pairs_digits() -> Recipe:
    """What they are compared with on digits: the mean of NT-Xent over all pairs of four views."""
    return _digits_recipe("multi_view_pairs_digits", MultiViewConfig(loss="pairs"))


def multi_view_average_digits() -> Recipe:
    """What they are compared with on digits: NT-Xent of each of four views and the mean of the others."""
    return _digits_recipe("multi_view_average_digits", MultiViewConfig(loss="average"))


RECIPES = {
    recipe.__name__: recipe
    for recipe in (
        mv_infonce_mv_dhel,
        mv_dhel_cifar,
        mv_infonce_mv_dhel_digits,
        mv_infonce_digits,
        multi_view_pairs_digits,
        multi_view_average_digits,
    )
}
DEMONSTRATION = Demonstration(
    arms=tuple(f"{loss}_v{num}" for num in (2, 3, 4, 6) for loss in ("mv_dhel", "mv_infonce", "pvc", "pairs")),
    run="nearfar_images.demonstrations.multi_view:arm",
    data=DIGITS,
)
