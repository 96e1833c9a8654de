"""iBOT: DINO on class tokens, and beside it the teacher's answers for patches that the student does not see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nearfar.catalog import Claim, Demonstration, System, Taxonomy
from nearfar.checks import expect
from nearfar.config import DataConfig, DataInfo, EncoderConfig, HeadConfig, OptimiserConfig, TrainerConfig
from nearfar.recipe import Recipe
from nearfar_images.systems._views import digits
from nearfar_images.systems.dino import DINOConfig, imagenet_views, views

if TYPE_CHECKING:
    from torch import nn

    from nearfar.method import Method, Views

CARD = System(
    slug="ibot",
    title="iBOT: Image BERT Pre-Training with Online Tokenizer",
    authors="Jinghao Zhou, Chen Wei, Huiyu Wang, Wei Shen, Cihang Xie, Alan Yuille, Tao Kong",
    year=2022,
    venue="ICLR",
    plugin="images",
    kind="baseline",
    summary="pretrains without labels: DINO on whole images, and masked patches told as the teacher sees them",
    recipe="images/ibot",
    taxonomy=Taxonomy(positive="transformation", negative="none", key="momentum", loss="clustering"),
    evidence="text",
    oracles=(
        "the loss of masked patches equals a loop over images and their masked patches in float64, each image weighing "
        "alike whatever number is masked",
        "where nothing is masked the loss and its gradient are DINO's",
        "the teacher sees whole images; the student's answer for a masked patch does not depend on its pixels, and "
        "patches in sight get no gradient from the masked term",
        "masks are a function of seed, epoch, view and sample: as many patches as drawn, in blocks, in the asked share "
        "of views",
        "images and patches have a centre each, equal to the closed form of its moving average",
    ),
    claim=Claim(metric="knn", order=("ibot", "untrained"), margin=0.02),
    export=("safetensors", "onnx"),
)


@dataclass(frozen=True, kw_only=True)
class IBOTConfig(DINOConfig):
    """DINO's options, and how patches are hidden."""

    patch_weight: float = 1.0
    """of the masked patches beside the whole images"""
    mask_share: float = 0.5
    """share of the teacher's views that the student sees masked"""
    mask_ratio: tuple[float, float] = (0.1, 0.5)
    """share of their patches that is hidden, drawn evenly"""

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(not self.shuffle_keys, "method.shuffle_keys", "False", self.shuffle_keys)
        expect(self.patch_weight >= 0, "method.patch_weight", "0 or more", self.patch_weight)
        expect(0 <= self.mask_share <= 1, "method.mask_share", "a number in [0, 1]", self.mask_share)
        low, high = self.mask_ratio
        expect(0 < low <= high <= 1, "method.mask_ratio", "two numbers, 0 < low <= high <= 1", self.mask_ratio)

    def build(self, info: DataInfo, encoder: nn.Module, views: Views) -> Method:
        from nearfar_images.methods.ibot import IBOT

        return IBOT(self, info, encoder, views)


def ibot() -> Recipe:
    """iBOT for your own images on one machine, with a small vision transformer."""
    return Recipe(
        name="images/ibot",
        method=IBOTConfig(momentum=0.99),
        views=views(),
        encoder=EncoderConfig(name="timm/vit_tiny_patch16_224"),
        optimiser=OptimiserConfig(name="adamw", lr=5e-4, weight_decay=0.04, warmup_epochs=10.0, final_lr=2e-3),
        trainer=TrainerConfig(epochs=100, batch_size=256, clip_norm=3.0),
    )


def ibot_imagenet() -> Recipe:
    """The paper's ViT-S/16 on ImageNet with two views of 224 pixels: 8192 prototypes, batch 1024, 800 epochs."""
    return Recipe(
        name="images/ibot_imagenet",
        method=IBOTConfig(num_prototypes=8192, teacher_temperature_end=0.07, teacher_warmup_epochs=30, momentum=0.996),
        views=imagenet_views(),
        encoder=EncoderConfig(name="timm/vit_small_patch16_224"),
        optimiser=OptimiserConfig(
            name="adamw", lr=5e-4, lr_scaling="linear", weight_decay=0.04, warmup_epochs=10.0, final_lr=2e-3
        ),
        trainer=TrainerConfig(epochs=800, batch_size=1024, clip_norm=3.0),
    )


def ibot_digits() -> Recipe:
    """The demonstration: handwritten digits of 16 pixels, 4 x 4 patches, a tiny vision transformer."""
    head = HeadConfig(layers=2, hidden=128, dim=64, norm="batch")
    return Recipe(
        name="images/ibot_digits",
        method=IBOTConfig(head=head, num_prototypes=256, momentum=0.95),
        data=DataConfig(source="digits", validation=0.25, image_size=16, channels=1),
        views=digits(),
        encoder=EncoderConfig(name="tiny-vit", dim=64),
        optimiser=OptimiserConfig(name="adamw", lr=1e-3, schedule="cosine", warmup_epochs=3.0),
        trainer=TrainerConfig(epochs=60, batch_size=128, evaluate_every=10, clip_norm=3.0),
    )


RECIPES = {"ibot": ibot, "ibot_imagenet": ibot_imagenet, "ibot_digits": ibot_digits}
DEMONSTRATION = Demonstration(
    arms=("ibot", "dino", "untrained"),
    run="nearfar_images.demonstrations.ibot:arm",
    data="scikit-learn's digits of 16 pixels, 1,347 to learn from and 450 held out; a tiny vision transformer",
)
