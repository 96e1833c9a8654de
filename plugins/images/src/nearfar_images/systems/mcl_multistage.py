"""MCL: in each stage negatives share what former stages have learnt, so that something else must be learnt."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from nearfar.catalog import Claim, Demonstration, System, Taxonomy
from nearfar.checks import expect, expect_positive
from nearfar.config import (
    DataConfig,
    DataInfo,
    EncoderConfig,
    FrameConfig,
    HeadConfig,
    ImageViewConfig,
    OptimiserConfig,
    TrainerConfig,
)
from nearfar.recipe import Recipe
from nearfar_images.systems import _checks, _views

if TYPE_CHECKING:
    from torch import nn

    from nearfar.method import Method, Views

CARD = System(
    slug="mcl_multistage",
    title="Learning the Unlearned: Mitigating Feature Suppression in Contrastive Learning",
    authors="Jihai Zhang, Xiang Lan, Xiaoye Qu, Yu Cheng, Mengling Feng, Bryan Hooi",
    year=2024,
    venue="ECCV",
    plugin="images",
    also=("image_text",),
    kind="pipeline",
    summary="trains in stages: negatives share the clusters of former stages, whose features are joined in the end",
    recipe="images/mcl_multistage",
    taxonomy=Taxonomy(positive="transformation", negative="mined", key="shared", loss="probabilistic"),
    evidence="code",
    oracles=(
        "one cluster, or no history, is a shuffled ordinary epoch: each sample once at most, batches of equal size",
        "every batch has one pseudo-label, and there are sum_g floor(n_g / B) of them",
        "packed labels unpack to the tuple of assignments; two samples share one exactly if they share all assignments",
        "with two equal stages the cosine is that of one; with stages of unit length it is the mean of the stages' "
        "cosines",
        "the loss of a batch of one group is that of the base learner",
    ),
    claim=Claim(metric="hard", order=("mcl", "long"), margin=0.05),
    export=("none: the features of all stages are joined by the run; each stage's encoder exports by itself",),
)


@dataclass(frozen=True, kw_only=True)
class MCLConfig(FrameConfig):
    """How many stages, and what their negatives share; SimCLR within each."""

    head: HeadConfig = field(default_factory=lambda: HeadConfig(layers=2, dim=128))
    temperature: float = 0.1
    num_stages: int = 1
    """stages after the first, all of equal length"""
    num_clusters: int = 10
    """into which each stage's features are cut before the next"""
    history: Literal["all", "last"] = "all"
    """negatives share the clusters of all former stages, or of the last alone"""
    start: Literal["scratch", "stage0", "previous"] = "scratch"
    """a stage begins from fresh weights, from those of the first stage, or goes on"""
    per_stage: bool = False
    """scale every stage's features to unit length before they are joined"""

    def __post_init__(self) -> None:
        super().__post_init__()
        _checks.one_encoder(self)
        expect_positive("method.temperature", self.temperature)
        expect(self.num_stages >= 0, "method.num_stages", "0 or more", self.num_stages)
        expect(self.num_clusters >= 1, "method.num_clusters", "1 or more", self.num_clusters)
        expect(self.symmetric, "method.symmetric", "True, since views meet alike", self.symmetric)
        expect(self.predictor.kind == "none", "method.predictor.kind", "'none'", repr(self.predictor.kind))
        most = self.num_clusters ** max(self.num_stages, 1)
        expect(most < 2**62, "method.num_stages", "one with which cluster tuples fit 62 bits", self.num_stages)

    def build(self, info: DataInfo, encoder: nn.Module, views: Views) -> Method:
        from nearfar_images.methods.mcl_multistage import MCL

        return MCL(self, info, encoder, views)


def mcl_multistage() -> Recipe:
    """Two stages of SimCLR in one run for your own images on one machine; the rate is constant for both."""
    return Recipe(
        name="images/mcl_multistage",
        method=MCLConfig(),
        views=_views.small(),
        encoder=EncoderConfig(name="auto"),
        optimiser=OptimiserConfig(name="adamw", lr=1e-3, weight_decay=1e-4, warmup_epochs=5.0, schedule="constant"),
        trainer=TrainerConfig(epochs=200, batch_size=256),
    )


def mcl_multistage_stl() -> Recipe:
    """Four stages with a residual net on images of 96 pixels; the paper's rates for it are not known."""
    recipe = mcl_multistage()
    return dataclasses.replace(
        recipe,
        name="images/mcl_multistage_stl",
        method=MCLConfig(num_stages=3),
        data=DataConfig(image_size=96, channels=3),
        views=_views.imagenet(strength=0.5, crop=0.2),
        encoder=EncoderConfig(name="torchvision/resnet18"),
        trainer=TrainerConfig(epochs=400, batch_size=512),
    )


def _coded(name: str, **options: Any) -> Recipe:
    method = MCLConfig(head=HeadConfig(layers=2, hidden=64, dim=32), num_clusters=8, temperature=0.2, **options)
    return Recipe(
        name=f"images/{name}",
        method=method,
        data=DataConfig(source="digits", validation=0.25, image_size=32, channels=3),
        views=ImageViewConfig(
            crop_scale=(1.0, 1.0),
            crop_ratio=(1.0, 1.0),
            rotate=0.15,
            zoom=(0.9, 1.1),
            shift=0.05,
            flip=0.0,
            jitter=0.0,
            grayscale=0.0,
            noise=0.1,
        ),
        encoder=EncoderConfig(name="convnet", width=16, dim=64),
        optimiser=OptimiserConfig(name="adamw", lr=2e-3, schedule="constant"),
        trainer=TrainerConfig(epochs=30, batch_size=128, evaluate_every=10),
    )


def mcl_multistage_digits() -> Recipe:
    """The demonstration's method on digits as they are, without the coloured frames that it puts around them."""
    return _coded("mcl_multistage_digits")


RECIPES = {
    "mcl_multistage": mcl_multistage,
    "mcl_multistage_stl": mcl_multistage_stl,
    "mcl_multistage_digits": mcl_multistage_digits,
}
DEMONSTRATION = Demonstration(
    arms=("mcl", "mcl_batch", "second", "long", "first", "untrained"),
    run="nearfar_images.demonstrations.mcl_multistage:arm",
    data="scikit-learn's digits, dim within a frame of one of eight colours, 1,347 to learn from and 450 held out",
)
