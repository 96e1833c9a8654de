"""SwAV: every crop of an image predicts to which prototypes its other crops were assigned."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nearfar.catalog import Claim, System, Taxonomy
from nearfar.checks import expect, expect_positive
from nearfar.config import (
    DataInfo,
    EncoderConfig,
    FrameConfig,
    HeadConfig,
    ImageViewConfig,
    OptimiserConfig,
    TrainerConfig,
)
from nearfar.recipe import Recipe
from nearfar_images.demonstrations import digits
from nearfar_images.systems import _digits, _views
from nearfar_images.systems._checks import one_encoder

if TYPE_CHECKING:
    from torch import nn

    from nearfar.method import Method, Views

CARD = System(
    slug="swav",
    title="Unsupervised Learning of Visual Features by Contrasting Cluster Assignments",
    authors="Mathilde Caron, Ishan Misra, Julien Mairal, Priya Goyal, Piotr Bojanowski, Armand Joulin",
    year=2020,
    venue="NeurIPS",
    plugin="images",
    kind="train",
    summary="pretrains without labels or pairs of images: crops predict each other's balanced cluster assignments",
    recipe="images/swav",
    taxonomy=Taxonomy(positive="cluster", negative="none", key="shared", loss="clustering"),
    evidence="code",
    oracles=(
        "after many iterations codes sum to 1 a sample and N/K a prototype; after 3 the samples' sums are exact",
        "constant scores give codes of 1/K, and a loss of log K",
        "the log and the scaling form agree in float64; a constant added to a row or a column of scores changes no "
        "converged code",
        "as many samples as prototypes with scores of a permutation and a small eps give that permutation",
        "loss and gradient equal loops over views, samples and prototypes; swapping two assigned views changes "
        "nothing, and codes carry no gradient",
    ),
    claim=Claim(metric="knn", order=("swav", "swav_two_crops", "untrained", "swav_softmax"), margin=0.1),
    export=("safetensors", "onnx"),
)


@dataclass(frozen=True, kw_only=True)
class SwAVConfig(FrameConfig):
    """Prototypes, how codes are balanced, and the queue that helps small batches to balance them."""

    num_prototypes: int = 3000
    num_assigned: int = 2
    """views whose codes the others predict, the first ones; all of them global views"""
    temperature: float = 0.1
    """divides the scores of the predicting side"""
    eps: float = 0.05
    """smoothness of the codes in units of the scores"""
    num_iterations: int = 3
    """of Sinkhorn and Knopp's balance; 0: codes are a plain softmax, which collapses"""
    freeze_steps: int = 0
    """steps from the start during which prototypes hold still"""
    code_queue: int = 0
    """former embeddings of each assigned view that are balanced with the batch; 0: the batch alone"""
    code_queue_start: int = 0
    """epoch from which they are collected; they count from when all places are filled"""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_encoder(self)
        expect(self.predictor.kind == "none", "method.predictor.kind", "'none'", repr(self.predictor.kind))
        expect(self.num_prototypes >= 2, "method.num_prototypes", "2 or more", self.num_prototypes)
        expect(self.num_assigned >= 1, "method.num_assigned", "1 or more", self.num_assigned)
        expect_positive("method.temperature", self.temperature)
        expect_positive("method.eps", self.eps)
        for name in ("num_iterations", "freeze_steps", "code_queue", "code_queue_start"):
            expect(getattr(self, name) >= 0, f"method.{name}", "0 or more", getattr(self, name))

    def build(self, info: DataInfo, encoder: nn.Module, views: Views) -> Method:
        from nearfar_images.methods.swav import SwAV

        return SwAV(self, encoder, views)


def swav() -> Recipe:
    """SwAV for your own images on one machine: two crops and four small ones, 500 prototypes, a queue of 3840.

    The paper's 3000 prototypes are three times as many as ImageNet has classes; with fewer images and kinds of them,
    fewer prototypes are filled.
    """
    views = dataclasses.replace(_views.small(), crop_scale=(0.25, 1.0), local_views=4, local_scale=(0.05, 0.25))
    return Recipe(
        name="images/swav",
        method=SwAVConfig(
            num_prototypes=500,
            freeze_steps=100,
            code_queue=3840,
            code_queue_start=15,
            head=HeadConfig(layers=2, dim=128),
        ),
        views=views,
        encoder=EncoderConfig(name="auto"),
        optimiser=OptimiserConfig(name="adamw", lr=1e-3, weight_decay=1e-4, warmup_epochs=5.0),
        trainer=TrainerConfig(epochs=100, batch_size=256),
    )


def swav_imagenet() -> Recipe:
    """The paper's ImageNet setting: ResNet-50, batch 4096, 2 crops of 224 and 6 of 96 pixels, LARS, 800 epochs."""
    return Recipe(
        name="images/swav_imagenet",
        method=SwAVConfig(freeze_steps=313, head=HeadConfig(layers=2, hidden=2048, dim=128)),
        views=ImageViewConfig(
            crop_scale=(0.14, 1.0),
            local_views=6,
            local_size=96,
            local_scale=(0.05, 0.14),
            flip=0.5,
            jitter=0.8,
            brightness=0.8,
            contrast=0.8,
            saturation=0.8,
            hue=0.2,
            grayscale=0.2,
            blur=0.5,
            blur_sigma=(0.1, 2.0),
            exact_colour=True,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        ),
        encoder=EncoderConfig(name="torchvision/resnet50"),
        optimiser=OptimiserConfig(
            name="lars", lr=0.3, lr_scaling="linear", momentum=0.9, trust=1e-3, weight_decay=1e-6, warmup_epochs=10.0,
            final_lr=1e-3,
        ),
        trainer=TrainerConfig(epochs=800, batch_size=4096),
    )  # fmt: skip


def swav_imagenet_256() -> Recipe:
    """The paper's setting for a batch of 256: a queue of 3840 from epoch 15, prototypes held for 5005 steps."""
    recipe = swav_imagenet()
    return dataclasses.replace(
        recipe,
        name="images/swav_imagenet_256",
        method=dataclasses.replace(recipe.method, freeze_steps=5005, code_queue=3840, code_queue_start=15),
        optimiser=dataclasses.replace(recipe.optimiser, lr=0.6, warmup_epochs=0.0),
        trainer=dataclasses.replace(recipe.trainer, epochs=200, batch_size=256),
    )


def _on_digits(name: str, *, local_views: int, num_iterations: int = 3) -> Recipe:
    method = SwAVConfig(num_prototypes=60, freeze_steps=10, num_iterations=num_iterations, head=_digits.HEAD)
    recipe = _digits.demonstration(name, method)
    views = dataclasses.replace(recipe.views, local_views=local_views, local_scale=(0.3, 0.6))
    return dataclasses.replace(recipe, views=views)


def swav_digits() -> Recipe:
    """The demonstration: handwritten digits, 60 prototypes, two views and four small crops."""
    return _on_digits("swav_digits", local_views=4)


def swav_two_crops_digits() -> Recipe:
    """Without the small crops, on handwritten digits."""
    return _on_digits("swav_two_crops_digits", local_views=0)


def swav_softmax_digits() -> Recipe:
    """Two views whose codes are a plain softmax that nothing balances, on handwritten digits: this collapses."""
    return _on_digits("swav_softmax_digits", local_views=0, num_iterations=0)


RECIPES = {
    recipe.__name__: recipe
    for recipe in (
        swav, swav_imagenet, swav_imagenet_256, swav_digits, swav_two_crops_digits, swav_softmax_digits,
    )
}  # fmt: skip
DEMONSTRATION = digits("swav", "swav_two_crops", "swav_softmax", "untrained", "pixels")
