"""Pixio: a masked autoencoder with a deep decoder, masks of whole blocks and several class tokens."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nearfar.catalog import Claim, Demonstration, System, Taxonomy
from nearfar.checks import expect
from nearfar.config import (
    DataConfig,
    DataInfo,
    EncoderConfig,
    ImageViewConfig,
    MethodConfig,
    OptimiserConfig,
    TrainerConfig,
)
from nearfar.recipe import Recipe
from nearfar_images.systems import _views

if TYPE_CHECKING:
    from torch import nn

    from nearfar.method import Method, Views

CARD = System(
    slug="pixio",
    title="In Pursuit of Pixel Supervision for Visual Pre-training",
    authors="Lihe Yang, Shang-Wen Li, Yang Li, Xinjie Lei, Dong Wang, Abdelrahman Mohamed, Hengshuang Zhao, Hu Xu",
    year=2025,
    venue="arXiv 2512.15715",
    plugin="images",
    kind="train",
    summary="pretrains a transformer by its pixels alone: masked blocks, a deep decoder, and data chosen by its loss",
    recipe="images/pixio",
    taxonomy=Taxonomy(positive="context", negative="none", key="shared", loss="regression"),
    evidence="code",
    oracles=(
        "with blocks of one patch, one class token and 8 decoder layers it is the masked autoencoder: the same loss as "
        "an independent forward with the same weights and noise",
        "every block is kept or removed whole, block^2 patches for each removed; `restore` gives back the order",
        "a prediction equal to the normalised target on removed patches costs 0, and those kept change nothing",
        "patches and back is exact; a target patch has mean 0 and unbiased variance 1",
        "images are kept as often as min(1, hardness) says, those of 1 or more always",
    ),
    claim=Claim(metric="linear", order=("pixio", "pixio_single")),
    export=("safetensors", "onnx"),
)


@dataclass(frozen=True, kw_only=True)
class PixioConfig(MethodConfig):
    """What is removed, and the decoder that fills it in."""

    num_cls: int = 8
    """class tokens of nearfar's own transformer, whose mean is the feature; other encoders keep what they have"""
    ratio: float = 0.75
    """share of the blocks that is removed"""
    block: int = 0
    """side of a block in patches, a divisor of the grid; 0: a quarter of the grid's side, 4 at most"""
    decoder_dim: int = 512
    decoder_depth: int = 32
    decoder_heads: int = 16
    normalise: bool = True
    """targets are pixels less their patch's mean, over its deviation"""

    def __post_init__(self) -> None:
        for name in ("num_cls", "decoder_dim", "decoder_depth", "decoder_heads"):
            expect(getattr(self, name) >= 1, f"method.{name}", "1 or more", getattr(self, name))
        expect(0 < self.ratio < 1, "method.ratio", "a number in (0, 1)", self.ratio)
        expect(self.block >= 0, "method.block", "0 or more", self.block)

    def build(self, info: DataInfo, encoder: nn.Module, views: Views) -> Method:
        from nearfar_images.methods.pixio import Pixio

        return Pixio(self, info, encoder, views)


def _crops() -> ImageViewConfig:
    """Random crops and nothing else."""
    return ImageViewConfig(num_views=1, crop_scale=(0.2, 1.0), flip=0.0, jitter=0.0, grayscale=0.0)


def pixio() -> Recipe:
    """Pixio for your own images on one machine, with a small vision transformer and a decoder of 8 blocks."""
    return Recipe(
        name="images/pixio",
        method=PixioConfig(decoder_dim=192, decoder_depth=8, decoder_heads=6),
        views=_crops(),
        data=DataConfig(image_size=256),
        encoder=EncoderConfig(name="timm/vit_tiny_patch16_224"),
        optimiser=OptimiserConfig(
            name="adamw", lr=1.5e-4, lr_scaling="linear", weight_decay=0.05, betas=(0.9, 0.95), warmup_epochs=10.0
        ),
        trainer=TrainerConfig(epochs=200, batch_size=256, evaluate_every=20),
    )


def pixio_small() -> Recipe:
    """For images of 32 pixels: 8 x 8 patches, blocks of 2 x 2, 8 class tokens."""
    return dataclasses.replace(
        pixio(),
        name="images/pixio_small",
        method=PixioConfig(decoder_dim=192, decoder_depth=4, decoder_heads=6),
        data=DataConfig(image_size=32),
        encoder=EncoderConfig(name="tiny-vit", dim=192),
    )


def pixio_imagenet() -> Recipe:
    """The authors' setting with a smaller encoder, ViT-L/16: 256 pixels, 32 decoder blocks, batch 8192, 400 epochs."""
    return dataclasses.replace(
        pixio(),
        name="images/pixio_imagenet",
        method=PixioConfig(),
        data=DataConfig(image_size=256, channels=3),
        views=dataclasses.replace(_crops(), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        encoder=EncoderConfig(name="timm/vit_large_patch16_224"),
        optimiser=OptimiserConfig(
            name="adamw", lr=2.5e-5, lr_scaling="linear", weight_decay=0.05, betas=(0.9, 0.95), warmup_epochs=40.0
        ),
        trainer=TrainerConfig(epochs=400, batch_size=8192, precision="bf16", evaluate_every=20),
    )


def _on_digits(name: str, **options: Any) -> Recipe:
    settings: dict[str, Any] = {"num_cls": 4, "block": 2, "decoder_dim": 64, "decoder_depth": 4, "decoder_heads": 4}
    return Recipe(
        name=f"images/{name}",
        method=PixioConfig(**settings | options),
        data=DataConfig(source="digits", validation=0.25, image_size=32, channels=1),
        views=dataclasses.replace(_views.digits(), num_views=1),
        encoder=EncoderConfig(name="tiny-vit", dim=96),
        optimiser=OptimiserConfig(name="adamw", lr=1e-3, weight_decay=0.05, betas=(0.9, 0.95), warmup_epochs=3.0),
        trainer=TrainerConfig(epochs=60, batch_size=128, evaluate_every=10),
    )


def pixio_digits() -> Recipe:
    """The demonstration: digits of 32 pixels, 8 x 8 patches in blocks of 2 x 2, 4 class tokens, 4 decoder blocks."""
    return _on_digits("pixio_digits")


def pixio_single_digits() -> Recipe:
    """Patches removed one by one, on digits."""
    return _on_digits("pixio_single_digits", block=1)


def pixio_shallow_digits() -> Recipe:
    """One decoder block, on digits."""
    return _on_digits("pixio_shallow_digits", decoder_depth=1)


def pixio_one_digits() -> Recipe:
    """One class token, on digits."""
    return _on_digits("pixio_one_digits", num_cls=1)


RECIPES = {
    recipe.__name__: recipe
    for recipe in (
        pixio, pixio_small, pixio_imagenet, pixio_digits, pixio_single_digits, pixio_shallow_digits, pixio_one_digits,
    )
}  # fmt: skip
DEMONSTRATION = Demonstration(
    arms=("pixio", "pixio_single", "pixio_shallow", "pixio_one", "untrained"),
    run="nearfar_images.demonstrations.pixio:arm",
    data="scikit-learn's digits of 32 pixels, 1,347 to learn from and 450 held out; a tiny vision transformer",
)
