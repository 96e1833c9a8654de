"""MACL: a temperature that follows how well positives are aligned, and anchors whose gradient does not fade."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nearfar.catalog import Claim, Demonstration, System, Taxonomy
from nearfar.checks import expect, expect_positive
from nearfar.config import DataInfo, EncoderConfig, FrameConfig, HeadConfig, OptimiserConfig, TrainerConfig
from nearfar.recipe import Recipe
from nearfar_images.demonstrations import DIGITS
from nearfar_images.systems import _digits, _views

if TYPE_CHECKING:
    from torch import nn

    from nearfar.method import Method, Views

CARD = System(
    slug="macl",
    title="Model-Aware Contrastive Learning: Towards Escaping the Dilemmas",
    authors="Zizheng Huang, Haoxing Chen, Ziqi Wen, Chao Zhang, Huaxiong Li, Bo Wang, Chunlin Chen",
    year=2023,
    venue="ICML",
    plugin="images",
    also=("sentences", "graphs"),
    kind="train",
    summary="pretrains without labels by contrast whose temperature follows the alignment of positives",
    recipe="images/macl",
    taxonomy=Taxonomy(positive="transformation", negative="batch", key="shared", loss="probabilistic"),
    evidence="code",
    oracles=(
        "an anchor's loss is (1 + exp(-d)) softplus(d), with d its decoupled loss at the adapted temperature",
        "with alpha 0 the gradient is that of the decoupled loss at the fixed temperature",
        "with alpha 0 and every weight 1 it is NT-Xent",
        "the temperature is tau_0 at A = A_0 and rises with A; neither it nor the weight carries gradient, so that an "
        "anchor pulls its positive by 1/tau, whatever P is",
        "loss and gradient are finite for a positive at cosine 1, negatives at -1 and a temperature of 0.01",
    ),
    claim=Claim(metric="linear_at_batch_32", order=("macl", "tau_0.1"), margin=0.0),
    export=("safetensors", "onnx"),
)


@dataclass(frozen=True, kw_only=True)
class MACLConfig(FrameConfig):
    """The temperature and how it moves; with a key encoder of its own keys are contrasted with a queue."""

    temperature: float = 0.1
    """tau_0, where alignment is alignment_origin"""
    alpha: float = 0.5
    """how far the temperature follows the alignment; 0: not at all"""
    alignment_origin: float = 0.0
    """A_0, the mean cosine of positives at which the temperature is tau_0"""
    max_weight: float = 1e4
    """bound of an anchor's weight; 1: all weigh 1"""

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_positive("method.temperature", self.temperature)
        follows = self.alpha >= 0 and math.isfinite(self.alpha)
        expect(follows, "method.alpha", "a finite number of 0 or more", self.alpha)
        origin = self.alignment_origin
        expect(-1 <= origin <= 1, "method.alignment_origin", "a number in [-1, 1]", origin)
        expect(self.max_weight >= 1, "method.max_weight", "1 or more", self.max_weight)

    def build(self, info: DataInfo, encoder: nn.Module, views: Views) -> Method:
        from nearfar_images.methods.macl import MACL

        return MACL(self, encoder, views)


def macl() -> Recipe:
    """MACL for your own images, where the right temperature is not known or the batch is small."""
    return Recipe(
        name="images/macl",
        method=MACLConfig(head=HeadConfig(layers=2, dim=128)),
        views=_views.small(),
        encoder=EncoderConfig(name="auto"),
        optimiser=OptimiserConfig(name="adamw", lr=1e-3, weight_decay=1e-4, warmup_epochs=5.0),
        trainer=TrainerConfig(epochs=100, batch_size=256),
    )


def macl_imagenet() -> Recipe:
    """The paper's ImageNet setting on SimCLR: ResNet-50, batch 256 (it goes up to 2048), 200 epochs."""
    return Recipe(
        name="images/macl_imagenet",
        method=MACLConfig(head=HeadConfig(layers=2, hidden=2048, dim=128, last_norm=True)),
        views=_views.imagenet(strength=1.0, crop=0.08),
        encoder=EncoderConfig(name="torchvision/resnet50"),
        optimiser=OptimiserConfig(
            name="lars", lr=0.3, lr_scaling="linear", momentum=0.9, trust=1e-3, weight_decay=1e-6, warmup_epochs=10.0
        ),
        trainer=TrainerConfig(epochs=200, batch_size=256),
    )


def macl_digits() -> Recipe:
    """The demonstration: handwritten digits; try it with --trainer.batch-size 32."""
    return _digits.demonstration("macl_digits", MACLConfig(head=_digits.HEAD))


def macl_moco_digits() -> Recipe:
    """MACL against a queue of 1024 keys of a momentum encoder, on handwritten digits."""
    return _digits.demonstration(
        "macl_moco_digits",
        MACLConfig(head=_digits.HEAD, key_encoder="ema", momentum=0.99, queue=1024, symmetric=False, shuffle_keys=True),
    )


RECIPES = {
    "macl": macl,
    "macl_imagenet": macl_imagenet,
    "macl_digits": macl_digits,
    "macl_moco_digits": macl_moco_digits,
}
DEMONSTRATION = Demonstration(
    arms=("macl", "tau_0.05", "tau_0.1", "tau_0.2", "tau_0.5"),
    run="nearfar_images.demonstrations.macl:arm",
    data=DIGITS,
)
