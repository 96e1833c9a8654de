"""OBoW: small crops predict which visual words a slow teacher sees in the whole image, words found on the fly."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

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
from nearfar.config._checks import fraction
from nearfar.recipe import Recipe
from nearfar_images.systems import _digits, _views

if TYPE_CHECKING:
    from torch import nn

    from nearfar.method import Method, Views

CARD = System(
    slug="obow",
    title="OBoW: Online Bag-of-Visual-Words Generation for Self-Supervised Learning",
    authors="Spyros Gidaris, Andrei Bursuc, Gilles Puy, Nikos Komodakis, Matthieu Cord, Patrick Perez",
    year=2021,
    venue="CVPR",
    plugin="images",
    kind="train",
    summary="pretrains without labels or negatives: small crops predict the visual words of the whole image",
    recipe="images/obow",
    taxonomy=Taxonomy(positive="context", negative="none", key="momentum", loss="clustering"),
    evidence="code",
    oracles=(
        "a bag is non-negative and sums to 1; one position with hard codes is one-hot",
        "infinite sharpness gives a uniform bag over the distinct nearest words, sharpness towards 0 gives 1/K",
        "distances equal cdist squared; the loss equals sum y (log y - log p) with 0 log 0 = 0",
        "permuting the vocabulary permutes bags and logits alike and leaves the loss unchanged",
        "a step changes exactly B words, the oldest, each to a mean of 3 x 3 teacher positions of its image; the "
        "teacher has no gradient, and with momentum 1 stays as it is",
    ),
    claim=Claim(metric="multi_label_map", order=("obow", "simclr", "untrained"), margin=0.1),
    export=("safetensors", "onnx"),
)


@dataclass(frozen=True, kw_only=True)
class OBoWConfig(FrameConfig):
    """The vocabulary, how positions are assigned to words, and how words are predicted."""

    head: HeadConfig = field(default_factory=lambda: HeadConfig(kind="none"))
    key_encoder: Literal["shared", "ema", "frozen"] = "ema"
    momentum: float = 0.99
    """of the teacher at the start"""
    momentum_end: float = 1.0
    """that a cosine leads to"""
    num_words: int = 8192
    """words of the vocabulary; each step replaces as many as the batch has images"""
    num_levels: int = 2
    """feature maps of the teacher that are described, the coarsest that have 5 x 5 positions or more"""
    sharpness: float = 15.0
    """of soft assignments, over the mean squared distance to the nearest word (the paper's 1 / delta)"""
    assignment: Literal["soft", "hard"] = "soft"
    """hard: each position counts for its nearest word alone"""
    pool: Literal["max", "mean"] = "max"
    """of a map's positions"""
    word: Literal["place", "whole"] = "place"
    """what becomes a word: the mean of 3 x 3 positions at a random place of each map, or of the whole map"""
    kappa: float = 8.0
    """multiplies the logits"""
    flip: float = 0.5
    """probability that the teacher's image is mirrored"""

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(self.key_encoder == "ema", "method.key_encoder", "'ema'", repr(self.key_encoder))
        for name in ("head", "predictor"):
            kind = getattr(self, name).kind
            expect(kind == "none", f"method.{name}.kind", "'none', since features themselves predict words", repr(kind))
        expect(self.queue == 0, "method.queue", "0; the vocabulary is method.num_words", self.queue)
        expect(self.num_words >= 2, "method.num_words", "2 or more", self.num_words)
        expect(self.num_levels >= 1, "method.num_levels", "1 or more", self.num_levels)
        expect_positive("method.sharpness", self.sharpness)
        expect_positive("method.kappa", self.kappa)
        fraction("method.flip", self.flip)

    def build(self, info: DataInfo, encoder: nn.Module, views: Views) -> Method:
        from nearfar_images.methods.obow import OBoW

        return OBoW(self, info, encoder, views)


def obow() -> Recipe:
    """OBoW for your own images on one machine: one level, 2048 words, two crops and three small ones."""
    views = dataclasses.replace(_views.small(), crop_scale=(0.08, 0.6), local_views=3, local_scale=(0.05, 0.15))
    return Recipe(
        name="images/obow",
        method=OBoWConfig(num_words=2048, num_levels=1, sharpness=10.0, kappa=5.0),
        views=views,
        encoder=EncoderConfig(name="auto"),
        optimiser=OptimiserConfig(name="adamw", lr=1e-3, weight_decay=1e-4, warmup_epochs=5.0),
        trainer=TrainerConfig(epochs=100, batch_size=256),
    )


def obow_imagenet() -> Recipe:
    """The paper's ImageNet setting: ResNet-50, 8192 words at two levels, crops of 160 and 96 pixels, 200 epochs."""
    return Recipe(
        name="images/obow_imagenet",
        method=OBoWConfig(),
        data=DataConfig(image_size=224, channels=3),
        views=ImageViewConfig(
            global_size=160,
            crop_scale=(0.08, 0.6),
            local_views=5,
            local_size=96,
            local_scale=(0.084, 0.141),
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
        optimiser=OptimiserConfig(
            name="sgd", lr=0.03, momentum=0.9, weight_decay=1e-4, warmup_epochs=10.0, final_lr=1e-3
        ),
        trainer=TrainerConfig(epochs=200, batch_size=256),
    )


def obow_imagenet_vanilla() -> Recipe:
    """The paper's small setting: ResNet-18, the last level alone, one crop of 160 pixels, 80 epochs."""
    recipe = obow_imagenet()
    return dataclasses.replace(
        recipe,
        name="images/obow_imagenet_vanilla",
        method=dataclasses.replace(recipe.method, num_levels=1, sharpness=10.0, kappa=5.0),
        views=dataclasses.replace(recipe.views, num_views=1, local_views=0),
        encoder=EncoderConfig(name="torchvision/resnet18"),
        optimiser=dataclasses.replace(recipe.optimiser, lr=0.05, weight_decay=5e-4),
        trainer=TrainerConfig(epochs=80, batch_size=128),
    )


def _on_digits(
    name: str, *, assignment: Literal["soft", "hard"] = "soft", word: Literal["place", "whole"] = "place"
) -> Recipe:
    method = OBoWConfig(
        num_words=512, num_levels=1, sharpness=10.0, kappa=5.0, flip=0.0, assignment=assignment, word=word
    )
    return _digits.demonstration(name, method)


def obow_digits() -> Recipe:
    """The demonstration: handwritten digits, 512 words."""
    return _on_digits("obow_digits")


def obow_hard_digits() -> Recipe:
    """Each position counts for its nearest word alone, on handwritten digits."""
    return _on_digits("obow_hard_digits", assignment="hard")


def obow_whole_digits() -> Recipe:
    """Words are means of whole feature maps, on handwritten digits."""
    return _on_digits("obow_whole_digits", word="whole")


RECIPES = {
    recipe.__name__: recipe
    for recipe in (obow, obow_imagenet, obow_imagenet_vanilla, obow_digits, obow_hard_digits, obow_whole_digits)
}
DEMONSTRATION = Demonstration(
    arms=("obow", "obow_hard", "obow_whole", "simclr", "untrained"),
    run="nearfar_images.demonstrations.scenes:arm",
    data="scenes of two or three handwritten digits on 64 x 64 pixels, 1,200 to learn from and 400 held out",
)
