"""DINO: a student gives the probabilities over prototypes that its slow teacher gave to another view of the image."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

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
from nearfar_images.systems import _digits

if TYPE_CHECKING:
    from torch import nn

    from nearfar.method import Method, Views

CARD = System(
    slug="dino",
    title="Emerging Properties in Self-Supervised Vision Transformers",
    authors="Mathilde Caron, Hugo Touvron, Ishan Misra, Hervé Jégou, Julien Mairal, Piotr Bojanowski, Armand Joulin",
    year=2021,
    venue="ICCV",
    plugin="images",
    kind="baseline",
    summary="pretrains without labels or negatives by self-distillation over prototypes with a centred teacher",
    recipe="images/dino",
    taxonomy=Taxonomy(positive="transformation", negative="none", key="momentum", loss="clustering"),
    evidence="text",
    oracles=(
        "the loss of a batch equals a loop over images and pairs of different views in float64, from the logits of "
        "student and teacher",
        "with all logits equal it is log K, and it is never below the mean entropy of the teacher",
        "a teacher that says the same of every image is uniform once the centre has reached it; with Sinkhorn every "
        "prototype gets the same share",
        "after several updates centre and teacher equal the closed forms of their moving averages, the teacher's with "
        "a momentum that follows a cosine",
        "teacher and centre receive no gradient; in the first epochs the prototypes stand still, afterwards they move",
    ),
    claim=Claim(metric="few_label", order=("dino", "untrained"), margin=0.04),
    export=("safetensors", "onnx"),
)

HEAD = HeadConfig(layers=3, hidden=2048, dim=256, norm="none")


@dataclass(frozen=True, kw_only=True)
class DINOConfig(FrameConfig):
    """Prototypes, how sharp student and teacher are, and what keeps the teacher from one answer."""

    head: HeadConfig = field(default_factory=lambda: HEAD)
    """before the prototypes; its width is the bottleneck"""
    key_encoder: Literal["shared", "ema", "frozen"] = "ema"
    momentum: float = 0.996
    """of the teacher at the start"""
    momentum_end: float = 1.0
    num_prototypes: int = 4096
    temperature: float = 0.1
    """of the student"""
    teacher_temperature: float = 0.04
    """at the start"""
    teacher_temperature_end: float = 0.04
    """after the warm-up; 0.07 is what most of the paper's models take"""
    teacher_warmup_epochs: int = 0
    """epochs in which the teacher's temperature rises evenly"""
    centring: Literal["mean", "sinkhorn"] = "mean"
    """take a moving average of the teacher's logits away, or balance its answers over the batch"""
    centre_momentum: float = 0.9
    sinkhorn_iterations: int = 3
    freeze_epochs: int = 1
    """epochs in which the prototypes stand still"""
    teacher_views: int = 2
    """the first views, which the teacher sees too; the student sees all"""

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(self.key_encoder == "ema", "method.key_encoder", "'ema'", repr(self.key_encoder))
        expect(self.queue == 0, "method.queue", "0", self.queue)
        expect(self.symmetric, "method.symmetric", "True", self.symmetric)
        expect(self.predictor.kind == "none", "method.predictor.kind", "'none'", repr(self.predictor.kind))
        expect(self.head.kind != "none", "method.head.kind", "'mlp' or 'linear'", repr(self.head.kind))
        expect(self.num_prototypes >= 2, "method.num_prototypes", "2 or more", self.num_prototypes)
        for name in ("temperature", "teacher_temperature", "teacher_temperature_end"):
            expect_positive(f"method.{name}", getattr(self, name))
        expect(0 <= self.centre_momentum <= 1, "method.centre_momentum", "a number in [0, 1]", self.centre_momentum)
        for name in ("teacher_warmup_epochs", "freeze_epochs"):
            expect(getattr(self, name) >= 0, f"method.{name}", "0 or more", getattr(self, name))
        for name in ("teacher_views", "sinkhorn_iterations"):
            expect(getattr(self, name) >= 1, f"method.{name}", "1 or more", getattr(self, name))

    def build(self, info: DataInfo, encoder: nn.Module, views: Views) -> Method:
        from nearfar_images.methods.dino import DINO

        return DINO(self, info, encoder, views)


def views() -> ImageViewConfig:
    """Views of one size from a wide range of crops, as the authors advise where there are no smaller ones."""
    return ImageViewConfig(
        crop_scale=(0.14, 1.0), flip=0.5, jitter=0.8, brightness=0.4, contrast=0.4,
        saturation=0.2, hue=0.1, grayscale=0.2, blur=0.5, blur_sigma=(0.1, 2.0), solarize=0.1, exact_colour=True,
    )  # fmt: skip


def imagenet_views() -> ImageViewConfig:
    """The same, normalised by ImageNet's means."""
    return dataclasses.replace(views(), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def dino() -> Recipe:
    """DINO for your own images on one machine.

    Fewer prototypes than the paper's 65536 and a faster teacher at the start, for data of thousands of images.
    """
    return Recipe(
        name="images/dino",
        method=DINOConfig(momentum=0.99),
        views=views(),
        encoder=EncoderConfig(name="auto"),
        optimiser=OptimiserConfig(name="adamw", lr=5e-4, weight_decay=0.04, warmup_epochs=10.0, final_lr=2e-3),
        trainer=TrainerConfig(epochs=100, batch_size=256, clip_norm=3.0),
    )


def dino_imagenet() -> Recipe:
    """The paper's ViT-S/16 on ImageNet with two views of 224 pixels: 65536 prototypes, batch 1024, 100 epochs."""
    return Recipe(
        name="images/dino_imagenet",
        method=DINOConfig(num_prototypes=65536),
        views=imagenet_views(),
        encoder=EncoderConfig(name="timm/vit_small_patch16_224"),
        optimiser=OptimiserConfig(
            name="adamw", lr=5e-4, lr_scaling="linear", weight_decay=0.04, warmup_epochs=10.0, final_lr=2e-3
        ),
        trainer=TrainerConfig(epochs=100, batch_size=1024, clip_norm=3.0),
    )


def dino_digits() -> Recipe:
    """The demonstration: handwritten digits against 256 prototypes, with a teacher fast enough for a short run."""
    head = HeadConfig(layers=2, hidden=128, dim=64, norm="batch")
    return _digits.demonstration("dino_digits", DINOConfig(head=head, num_prototypes=256, momentum=0.9))


RECIPES = {"dino": dino, "dino_imagenet": dino_imagenet, "dino_digits": dino_digits}
DEMONSTRATION = digits("dino", "untrained")
