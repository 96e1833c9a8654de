"""MLS: an image of several things is positive with all entries of a dictionary that its encoder finds near.

Rebuilt from the paper's abstract and figure; no code of the authors was found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nearfar.catalog import Claim, Demonstration, System, Taxonomy
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
from nearfar.config._checks import fraction
from nearfar.recipe import Recipe
from nearfar_images.systems import _digits, _views

if TYPE_CHECKING:
    from torch import nn

    from nearfar.method import Method, Views

CARD = System(
    slug="mls",
    title="Multi-Label Self-Supervised Learning with Scene Images",
    authors="Ke Zhu, Minghao Fu, Jianxin Wu",
    year=2023,
    venue="ICCV",
    plugin="images",
    kind="train",
    summary="pretrains on scenes of several objects: the nearest entries of a queue are positives, each a yes or no "
    "(rebuilt from the abstract and figure)",
    recipe="images/mls",
    taxonomy=Taxonomy(positive="context", negative="memory", key="momentum", loss="probabilistic"),
    evidence="rebuilt",
    oracles=(
        "with one positive and the own entry forced, exactly that entry is positive, and the loss is instance "
        "discrimination by sigmoids",
        "labels have k positives a row whatever the embedding, and no gradient; the gradient of a logit is "
        "(sigmoid(p) - y) / N",
        "permuting both dictionaries together changes nothing, permuting one of them does",
        "without bias an infinite temperature gives log 2",
        "with a weight of positives the loss equals torch's binary cross-entropy with logits",
    ),
    claim=Claim(metric="multi_label_map", order=("mls", "moco"), margin=0.0),
    export=("safetensors", "onnx"),
)


@dataclass(frozen=True, kw_only=True)
class MLSConfig(FrameConfig):
    """The dictionary, how many of it are positive, and what keeps the many negatives from prevailing."""

    key_encoder: Literal["shared", "ema", "frozen"] = "ema"
    queue: int = 8192
    """entries of former batches; those of the present one join them"""
    symmetric: bool = False
    num_positives: int = 20
    """entries that count as positive, the nearest before the head"""
    force_own: bool = True
    """the sample's own other view is one of them whatever its similarity"""
    temperature: float = 0.2
    positive_weight: float = 50.0
    """largest weight of a positive; up to it the positives weigh as much as all negatives; 1: the plain mean"""
    bias: Literal["none", "prior"] = "none"
    """added to the logits; prior: the log odds of a positive, so that an untrained net is right about their share"""
    warm_up: float = 0.1
    """share of the run during which InfoNCE stands in place of the labels, which then are still poor"""
    contrast_weight: float = 0.0
    """of InfoNCE beside the labels after that"""

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(self.key_encoder != "shared", "method.key_encoder", "'ema' or 'frozen'", repr(self.key_encoder))
        expect(self.predictor.kind == "none", "method.predictor.kind", "'none'", repr(self.predictor.kind))
        expect(1 <= self.num_positives < self.queue, "method.num_positives", "1 or more, below method.queue",
               f"{self.num_positives} of {self.queue}")  # fmt: skip
        expect_positive("method.temperature", self.temperature)
        expect(self.positive_weight >= 1, "method.positive_weight", "1 or more", self.positive_weight)
        expect(self.contrast_weight >= 0, "method.contrast_weight", "0 or more", self.contrast_weight)
        fraction("method.warm_up", self.warm_up)

    def build(self, info: DataInfo, encoder: nn.Module, views: Views) -> Method:
        from nearfar_images.methods.mls import MLS

        return MLS(self, encoder, views)


def mls() -> Recipe:
    """MLS for your own images of scenes on one machine: a queue of 4096, ten positives."""
    return Recipe(
        name="images/mls",
        method=MLSConfig(
            queue=4096, num_positives=10, momentum=0.99, shuffle_keys=True, head=HeadConfig(layers=2, dim=128)
        ),
        views=_views.small(),
        encoder=EncoderConfig(name="auto"),
        optimiser=OptimiserConfig(name="adamw", lr=1e-3, weight_decay=1e-4, warmup_epochs=5.0),
        trainer=TrainerConfig(epochs=100, batch_size=256),
    )


def mls_coco() -> Recipe:
    """COCO train2017 with ResNet-50, batch 512, SGD, 400 epochs; queue, positives, temperature and rate are guesses."""
    return Recipe(
        name="images/mls_coco",
        method=MLSConfig(
            queue=8192,
            num_positives=20,
            momentum=0.999,
            shuffle_keys=True,
            head=HeadConfig(layers=2, hidden=2048, dim=128, norm="none"),
        ),
        views=ImageViewConfig(
            crop_scale=(0.2, 1.0),
            flip=0.5,
            jitter=0.8,
            brightness=0.4,
            contrast=0.4,
            saturation=0.4,
            hue=0.1,
            grayscale=0.2,
            blur=0.5,
            blur_sigma=(0.1, 2.0),
            exact_colour=True,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        ),
        encoder=EncoderConfig(name="torchvision/resnet50"),
        optimiser=OptimiserConfig(name="sgd", lr=0.3, momentum=0.9, weight_decay=1e-4),
        trainer=TrainerConfig(epochs=400, batch_size=512),
    )


def _on_digits(
    name: str, *, positive_weight: float = 50.0, bias: Literal["none", "prior"] = "none", num_positives: int = 20
) -> Recipe:
    method = MLSConfig(
        queue=1024,
        num_positives=num_positives,
        momentum=0.99,
        shuffle_keys=True,
        positive_weight=positive_weight,
        bias=bias,
        head=_digits.HEAD,
    )
    return _digits.demonstration(name, method)


def mls_digits() -> Recipe:
    """The demonstration: handwritten digits, a queue of 1024, twenty positives; on scenes in `nearfar demonstrate`."""
    return _on_digits("mls_digits")


def mls_plain_digits() -> Recipe:
    """The plain mean over the dictionary, in which negatives prevail, on handwritten digits."""
    return _on_digits("mls_plain_digits", positive_weight=1.0)


def mls_prior_digits() -> Recipe:
    """The plain mean with a bias of the log odds of a positive, on handwritten digits."""
    return _on_digits("mls_prior_digits", positive_weight=1.0, bias="prior")


def mls_own_digits() -> Recipe:
    """One positive, the own other view: sigmoids without multi-labels, on handwritten digits."""
    return _on_digits("mls_own_digits", num_positives=1)


RECIPES = {
    recipe.__name__: recipe
    for recipe in (mls, mls_coco, mls_digits, mls_plain_digits, mls_prior_digits, mls_own_digits)
}
DEMONSTRATION = Demonstration(
    arms=(
        "mls", "mls_plain", "mls_prior", "mls_own", "moco", "untrained", "mls_single", "moco_single",
        "untrained_single",
    ),
    run="nearfar_images.demonstrations.scenes:arm",
    data="scenes of two or three handwritten digits on 64 x 64 pixels (single: of one), 1,200 to learn from and 400 "
    "held out",
)  # fmt: skip
