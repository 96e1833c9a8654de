"""MACRL: one transformer learns from keys of another view and from the pixels it was not shown."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from nearfar.catalog import Claim, Demonstration, System, Taxonomy
from nearfar.checks import expect
from nearfar.config import (
    ContrastConfig,
    DataConfig,
    DataInfo,
    EncoderConfig,
    HeadConfig,
    OptimiserConfig,
    TrainerConfig,
)
from nearfar.recipe import Recipe
from nearfar_images.systems import _views

if TYPE_CHECKING:
    from torch import nn

    from nearfar.method import Method, Views

CARD = System(
    slug="macrl",
    title="Masked Contrastive Representation Learning",
    authors="Yuchong Yao, Nandakishor Desai, Marimuthu Palaniswami",
    year=2022,
    venue="arXiv 2211.06012",
    plugin="images",
    kind="train",
    summary="pretrains a transformer without labels: momentum contrast and masked reconstruction in one loss",
    recipe="images/macrl",
    taxonomy=Taxonomy(positive="transformation", negative="memory", key="momentum", loss="probabilistic"),
    evidence="rebuilt",
    oracles=(
        "without reconstruction and masks the loss is MoCo's on a transformer",
        "without contrast and the second branch it is a masked autoencoder with L1; a prediction equal to the target "
        "on removed patches costs 0 whatever it says of the others",
        "keys, queue and teacher get no gradient, the decoder none from the contrast",
        "L - int(L (1 - r)) patches of each image are removed; equal seeds give equal masks, other views others",
        "a prediction that is off by c on removed patches costs |c|",
    ),
    claim=Claim(metric="few_label", order=("macrl", "mae_only", "untrained"), margin=0.02),
    export=("safetensors", "onnx"),
)


@dataclass(frozen=True, kw_only=True)
class MACRLConfig(ContrastConfig):
    """The contrast, any of the frame's, and the reconstruction of both views."""

    loss: Literal[
        "nt_xent", "dcl", "supcon", "info_nce", "binary_nce", "triplet", "pair_margin", "jensen_shannon",
        "donsker_varadhan", "regression", "barlow", "vicreg", "wmse",
    ] = "info_nce"  # fmt: skip
    """between the views: info_nce with a queue is MoCo, nt_xent keeps to the batch"""
    head: HeadConfig = field(default_factory=lambda: HeadConfig(layers=2, dim=128))
    key_encoder: Literal["shared", "ema", "frozen"] = "ema"
    momentum: float = 0.99
    momentum_end: float = 1.0
    queue: int = 4096
    symmetric: bool = False
    temperature: float = 0.2
    contrast_weight: float = 1.0
    """0: reconstruction alone"""
    weight_a: float = 1.0
    """of the reconstruction of the first view"""
    weight_b: float = 1.0
    """of the reconstruction of the second view"""
    ratio_a: float = 0.75
    """share of the first view's patches that is removed"""
    ratio_b: float = 0.5
    """share of the second view's patches that is removed"""
    asymmetric: bool = True
    """the second view is a crop without changes of colour"""
    normalise: bool = False
    """targets are pixels less their patch's mean, over its deviation"""
    decoder_dim: int = 128
    decoder_depth: int = 2
    decoder_heads: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("contrast_weight", "weight_a", "weight_b"):
            expect(getattr(self, name) >= 0, f"method.{name}", "0 or more", getattr(self, name))
        expect(self.contrast_weight + self.weight_a + self.weight_b > 0, "method.contrast_weight",
               "above 0 where weight_a and weight_b are 0", self.contrast_weight)  # fmt: skip
        for name in ("ratio_a", "ratio_b"):
            expect(0 <= getattr(self, name) < 1, f"method.{name}", "a number in [0, 1)", getattr(self, name))
        for name in ("decoder_dim", "decoder_depth", "decoder_heads"):
            expect(getattr(self, name) >= 1, f"method.{name}", "1 or more", getattr(self, name))
        expect(not self.shuffle_keys, "method.shuffle_keys", "off, since keys have masks of their own", True)

    def build(self, info: DataInfo, encoder: nn.Module, views: Views) -> Method:
        from nearfar_images.methods.macrl import MACRL

        return MACRL(self, info, encoder, views)


def macrl() -> Recipe:
    """MACRL for your own images on one machine, with a small vision transformer."""
    return Recipe(
        name="images/macrl",
        method=MACRLConfig(),
        views=_views.imagenet(strength=0.5, crop=0.2),
        encoder=EncoderConfig(name="timm/vit_tiny_patch16_224"),
        optimiser=OptimiserConfig(
            name="adamw", lr=5e-4, lr_scaling="linear", weight_decay=0.05, betas=(0.9, 0.95), warmup_epochs=10.0
        ),
        trainer=TrainerConfig(epochs=100, batch_size=256),
    )


def macrl_cifar() -> Recipe:
    """For images of 32 pixels, such as CIFAR's: 8 x 8 patches, 40 epochs warm-up; not the paper's settings."""
    return dataclasses.replace(
        macrl(),
        name="images/macrl_cifar",
        data=DataConfig(image_size=32, channels=3),
        views=dataclasses.replace(_views.small(), crop_scale=(0.2, 1.0)),
        encoder=EncoderConfig(name="tiny-vit", dim=192),
        optimiser=OptimiserConfig(
            name="adamw", lr=1.5e-4, lr_scaling="linear", weight_decay=0.05, betas=(0.9, 0.95), warmup_epochs=40.0
        ),
        trainer=TrainerConfig(epochs=400, batch_size=256, evaluate_every=50),
    )


def _on_digits(name: str, **options: Any) -> Recipe:
    head = HeadConfig(layers=2, hidden=128, dim=64)
    method = MACRLConfig(head=head, queue=1024, momentum=0.95, decoder_dim=64, **options)
    return Recipe(
        name=f"images/{name}",
        method=method,
        data=DataConfig(source="digits", validation=0.25, image_size=16, channels=1),
        views=_views.digits(),
        encoder=EncoderConfig(name="tiny-vit", dim=64),
        optimiser=OptimiserConfig(name="adamw", lr=1e-3, warmup_epochs=3.0),
        trainer=TrainerConfig(epochs=60, batch_size=128, evaluate_every=10),
    )


def macrl_digits() -> Recipe:
    """The demonstration: handwritten digits of 16 pixels, 4 x 4 patches, a tiny vision transformer."""
    return _on_digits("macrl_digits")


def macrl_half_digits() -> Recipe:
    """Half of the first view's patches removed, on digits."""
    return _on_digits("macrl_half_digits", ratio_a=0.5)


def macrl_symmetric_digits() -> Recipe:
    """Both views drawn and masked alike, on digits."""
    return _on_digits("macrl_symmetric_digits", ratio_b=0.75, asymmetric=False)


def mae_only_digits() -> Recipe:
    """The reconstruction of the first view alone, on digits."""
    return _on_digits("mae_only_digits", contrast_weight=0.0, weight_b=0.0)


def moco_only_digits() -> Recipe:
    """The contrast of whole views alone, on digits."""
    return _on_digits("moco_only_digits", weight_a=0.0, weight_b=0.0, ratio_a=0.0, ratio_b=0.0)


RECIPES = {
    recipe.__name__: recipe
    for recipe in (
        macrl, macrl_cifar, macrl_digits, macrl_half_digits, macrl_symmetric_digits, mae_only_digits, moco_only_digits,
    )
}  # fmt: skip
DEMONSTRATION = Demonstration(
    arms=("macrl", "macrl_half", "macrl_symmetric", "mae_only", "moco_only", "untrained"),
    run="nearfar_images.demonstrations.macrl:arm",
    data="scikit-learn's digits of 16 pixels, 1,347 to learn from and 450 held out; a tiny vision transformer",
)
