"""SupReMix: contrast for regression, with pairs mixed so that they keep the order of the labels."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nearfar.catalog import Claim, Demonstration, System, Taxonomy
from nearfar.checks import expect, expect_positive
from nearfar.config import DataInfo, EncoderConfig, FrameConfig, HeadConfig, OptimiserConfig, TrainerConfig
from nearfar.recipe import Recipe
from nearfar_images.systems import _digits, _views
from nearfar_images.systems._checks import one_encoder

if TYPE_CHECKING:
    from torch import nn

    from nearfar.method import Method, Views

CARD = System(
    slug="supremix",
    title="Mixup Your Own Pairs",
    authors="Yilei Wu, Zijian Dong, Chongyao Chen, Wangchunshu Zhou, Juan Helen Zhou",
    year=2023,
    venue="arXiv 2309.16633",
    plugin="images",
    also=("sentences",),
    kind="train",
    summary="trains an encoder for regression: mixed positives and negatives carry the order of the numbers",
    recipe="images/supremix",
    taxonomy=Taxonomy(positive="label", negative="batch", key="shared", loss="probabilistic"),
    evidence="code",
    oracles=(
        "without mixtures and with all weights 1 it is SupCon (L_out) on the discretised labels",
        "a mixed positive has exactly the anchor's label; where embeddings are affine in the label it is the anchor's "
        "embedding",
        "a mixed negative has the similarity lam + (1 - lam) s of its part's similarity s, so it is never easier",
        "no gradient reaches the parts of a mixture through it",
        "equals loops over six samples; adding a constant to all labels, or reversing them, changes nothing",
        "a window below the smallest gap between labels mixes no positives",
    ),
    claim=Claim(metric="rank", order=("supremix", "supcon"), margin=0.05),
    export=("safetensors", "onnx"),
)


@dataclass(frozen=True, kw_only=True)
class SupReMixConfig(FrameConfig):
    """Which pairs are mixed, and how distances between targets weigh."""

    temperature: float = 0.3
    unit: float = 1.0
    """distance between targets that counts as 1 in window, tolerance and weights; e.g. their standard deviation"""
    window: float = 5.0
    """largest distance of targets between which positives are mixed, in units"""
    tolerance: float = 0.0
    """targets at most this far apart are equal, in units"""
    mix: Literal["both", "negative", "positive", "none"] = "both"
    distance_weight: Literal["linear", "inverse", "square", "inverse_square", "none"] = "linear"
    """of a candidate at distance d of targets: 1 + d, 1 / (1 + d), 1 + d^2, 1 / (1 + d^2), 1"""
    num_mixtures: int = 64
    """of each kind an anchor at most"""
    beta: tuple[int, int] = (2, 8)
    """of the Beta distribution of an anchor's share in its negatives"""
    normalize_mixtures: bool = False
    """scale mixtures to unit length; the authors' code leaves them shorter"""
    add_one: bool = False
    """divide by one more than the number of positives, as the authors' code"""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_encoder(self)
        for name in ("temperature", "unit", "window"):
            expect_positive(f"method.{name}", getattr(self, name))
        expect(self.tolerance >= 0, "method.tolerance", "0 or more", self.tolerance)
        expect(self.num_mixtures >= 1, "method.num_mixtures", "1 or more", self.num_mixtures)
        expect(min(self.beta) >= 1, "method.beta", "two whole numbers of 1 or more", self.beta)

    @property
    def needs_columns(self) -> tuple[str, ...]:
        """A number of every sample."""
        return ("target",)

    def build(self, info: DataInfo, encoder: nn.Module, views: Views) -> Method:
        from nearfar_images.methods.supremix import SupReMix

        return SupReMix(self, encoder, views)


def supremix() -> Recipe:
    """SupReMix for your own images with a number each: --data.root FOLDER --data.target COLUMN of its metadata.csv."""
    return Recipe(
        name="images/supremix",
        method=SupReMixConfig(head=HeadConfig(layers=2, dim=128)),
        views=_views.small(),
        encoder=EncoderConfig(name="auto"),
        optimiser=OptimiserConfig(name="adamw", lr=1e-3, weight_decay=1e-4, warmup_epochs=5.0),
        trainer=TrainerConfig(epochs=100, batch_size=256, monitor="r2"),
    )


def supremix_agedb() -> Recipe:
    """The authors' AgeDB setting: ResNet-50, 64 faces a batch, 100 epochs, a window of 5 years."""
    recipe = supremix()
    return dataclasses.replace(
        recipe,
        name="images/supremix_agedb",
        encoder=EncoderConfig(name="torchvision/resnet50"),
        optimiser=OptimiserConfig(name="adamw", lr=1e-3, weight_decay=0.0),
        trainer=TrainerConfig(epochs=100, batch_size=64, precision="bf16", monitor="r2"),
    )


def _bars(name: str, **options: object) -> Recipe:
    """A recipe for the demonstration's pictures of bars, whose positions run from 0 to 60."""
    method = SupReMixConfig(head=_digits.HEAD, num_mixtures=16, **options)  # type: ignore[arg-type]
    recipe = _digits.demonstration(name, method)
    trainer = dataclasses.replace(recipe.trainer, batch_size=64, monitor="r2")
    return dataclasses.replace(recipe, trainer=trainer)


def supremix_bars() -> Recipe:
    """The demonstration: where does a bar stand? With mixed negatives and positives."""
    return _bars("supremix_bars")


def supremix_negative_bars() -> Recipe:
    """The demonstration with mixed negatives alone."""
    return _bars("supremix_negative_bars", mix="negative")


def supremix_positive_bars() -> Recipe:
    """The demonstration with mixed positives alone."""
    return _bars("supremix_positive_bars", mix="positive")


def supremix_none_bars() -> Recipe:
    """The demonstration without mixtures and weights, which is SupCon."""
    return _bars("supremix_none_bars", mix="none", distance_weight="none")


RECIPES = {
    "supremix": supremix,
    "supremix_agedb": supremix_agedb,
    "supremix_bars": supremix_bars,
    "supremix_negative_bars": supremix_negative_bars,
    "supremix_positive_bars": supremix_positive_bars,
    "supremix_none_bars": supremix_none_bars,
}
DEMONSTRATION = Demonstration(
    arms=("supremix", "supremix_negative", "supremix_positive", "supcon", "l1", "untrained"),
    run="nearfar_images.demonstrations.supremix:arm",
    data="rendered bars on textured ground, 600 to learn from (or 60, or mostly low positions), 300 held out",
)
