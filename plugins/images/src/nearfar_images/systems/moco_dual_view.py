"""Dual-view MoCo (rebuilt): query and key both discriminate, each against the queue's hardest entries."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from nearfar.catalog import Claim, Demonstration, System, Taxonomy
from nearfar.checks import expect, expect_positive
from nearfar.config import DataInfo, EncoderConfig, FrameConfig, HeadConfig, OptimiserConfig, TrainerConfig
from nearfar.recipe import Recipe
from nearfar_images.systems import _digits, _views

if TYPE_CHECKING:
    from torch import nn

    from nearfar.method import Method, Views

CARD = System(
    slug="moco_dual_view",
    title="Momentum Contrastive Learning with Enhanced Negative Sampling and Hard Negative Filtering",
    authors="Duy Hoang, Huy Ngo, Khoi Pham, Tri Nguyen, Gia Bao, Huy Phan",
    year=2025,
    venue="arXiv 2501.16360",
    plugin="images",
    kind="train",
    summary="pretrains without labels as MoCo, from the query's and the key's view, against hard negatives alone",
    recipe="images/moco_dual_view",
    taxonomy=Taxonomy(positive="transformation", negative="mined", key="momentum", loss="probabilistic"),
    evidence="rebuilt",
    oracles=(
        "with the whole queue and no weight on the key's side it is MoCo's InfoNCE",
        "with equal query and key both sides have the same loss",
        "the loss grows with the number of kept negatives, and is as near the full one as the bound says",
        "the key side's gradient to the query is -(1 - p_k) k / t / B, and key and queue get none",
        "the most similar entries that are dropped stand nowhere in the loss",
    ),
    claim=Claim(metric="linear", order=("both_256", "moco_256"), margin=0.0),
    export=("safetensors", "onnx"),
)


@dataclass(frozen=True, kw_only=True)
class DualViewConfig(FrameConfig):
    """How many of the queue's entries are negatives, and how both sides weigh."""

    key_encoder: Literal["ema", "frozen"] = "ema"
    queue: int = 4096
    symmetric: bool = False
    """each view takes its turn as the query, at twice the cost"""
    shuffle_keys: bool = True
    temperature: float = 0.2
    keep: float = 0.25
    """share of the queue that is kept for each query, and for each key: the most similar entries"""
    drop: float = 0.0
    """share of the queue, the most similar entries, that is left out before, as suspected false negatives"""
    cosine_range: tuple[float, float] = (-1.0, 1.0)
    """of the entries kept, those with a cosine in this range are negatives"""
    query_weight: float = 0.5
    key_weight: float = 0.5
    warmup: int = 1
    """epochs in which every entry is a negative"""

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_positive("method.temperature", self.temperature)
        expect(0 < self.keep <= 1, "method.keep", "a share in (0, 1]", self.keep)
        expect(0 <= self.drop <= 1 - self.keep, "method.drop", "a share that leaves method.keep of the queue",
               self.drop)  # fmt: skip
        low, high = self.cosine_range
        expect(-1 <= low < high <= 1, "method.cosine_range", "two numbers, -1 <= low < high <= 1", self.cosine_range)
        for name in ("query_weight", "key_weight", "warmup"):
            expect(getattr(self, name) >= 0, f"method.{name}", "0 or more", getattr(self, name))
        expect(self.query_weight + self.key_weight > 0, "method.query_weight", "above 0 where method.key_weight is 0",
               self.query_weight)  # fmt: skip
        expect(self.queue >= 1, "method.queue", "1 or more", self.queue)

    def build(self, info: DataInfo, encoder: nn.Module, views: Views) -> Method:
        from nearfar_images.methods.moco_dual_view import DualView

        return DualView(self, info, encoder, views)


def moco_dual_view() -> Recipe:
    """Dual-view MoCo for your own images on one machine."""
    return Recipe(
        name="images/moco_dual_view",
        method=DualViewConfig(head=HeadConfig(layers=2, dim=128, norm="none"), momentum=0.99),
        views=_views.small(),
        encoder=EncoderConfig(name="auto"),
        optimiser=OptimiserConfig(name="adamw", lr=1e-3, weight_decay=1e-4, warmup_epochs=5.0),
        trainer=TrainerConfig(epochs=100, batch_size=256),
    )


def moco_dual_view_cifar() -> Recipe:
    """A setting for CIFAR-10 proposed here: ResNet-18 with the small stem, 4096 keys of which a quarter is kept."""
    return dataclasses.replace(
        moco_dual_view(),
        name="images/moco_dual_view_cifar",
        data=dataclasses.replace(moco_dual_view().data, source="cifar10"),
        method=DualViewConfig(head=HeadConfig(layers=2, hidden=512, dim=128, norm="none")),
        views=dataclasses.replace(_views.small(), crop_scale=(0.2, 1.0)),
        encoder=EncoderConfig(name="torchvision/resnet18+small-stem"),
        optimiser=OptimiserConfig(name="sgd", lr=0.03, lr_scaling="linear", momentum=0.9, weight_decay=5e-4),
        trainer=TrainerConfig(epochs=200, batch_size=512, evaluate_every=50),
    )


def _digits_recipe(name: str, **options: Any) -> Recipe:
    recipe = _digits.demonstration(name, DualViewConfig(head=_digits.HEAD, momentum=0.99, **options))
    return dataclasses.replace(recipe, trainer=dataclasses.replace(recipe.trainer, batch_size=128))


def moco_dual_view_digits() -> Recipe:
    """The demonstration: handwritten digits, 256 keys of which a quarter is kept."""
    return _digits_recipe("moco_dual_view_digits", queue=256)


RECIPES = {
    "moco_dual_view": moco_dual_view,
    "moco_dual_view_cifar": moco_dual_view_cifar,
    "moco_dual_view_digits": moco_dual_view_digits,
}
DEMONSTRATION = Demonstration(
    arms=(
        "both_256", "both_drop_256", "dual_256", "filter_256", "moco_256",
        "both_1024", "both_drop_1024", "dual_1024", "filter_1024", "moco_1024",
    ),
    run="nearfar_images.demonstrations.moco_dual_view:arm",
    data="scikit-learn's digits, 1,347 to learn from and 450 held out",
)  # fmt: skip
