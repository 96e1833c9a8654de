"""Hallucinator: further positives made in feature space, for MoCo, SimCLR and SimSiam."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

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

if TYPE_CHECKING:
    from torch import nn

    from nearfar.method import Method, Views

CARD = System(
    slug="hallucinator",
    title="Hallucination Improves the Performance of Unsupervised Visual Representation Learning",
    authors="Jing Wu, Jennifer Hobbs, Naira Hovakimyan",
    year=2023,
    venue="ICCV",
    plugin="images",
    kind="train",
    summary="pretrains as MoCo, SimCLR or SimSiam with further positives that a small module makes of features",
    recipe="images/hallucinator",
    taxonomy=Taxonomy(positive="transformation", negative="memory", key="momentum", loss="probabilistic"),
    evidence="code",
    oracles=(
        "with ratio 0 and a module that returns its first half, MoCo and SimSiam have exactly their own loss",
        "the extrapolated embedding is less similar to the partner, by the closed form, and the less so the larger the "
        "ratio",
        "gradients reach query and module; the key of MoCo gets none, the partner within SimSiam's extrapolation does",
        "centres of crops lie inside the box; their distribution has two modes for 0.1 and is uniform for 1",
        "the loss over duplicated pairs is the mean of the losses of both pairs",
    ),
    claim=Claim(metric="linear", order=("hallucinator", "hallucinator_base"), margin=0.0),
    export=("safetensors", "onnx"),
)


@dataclass(frozen=True, kw_only=True)
class HallucinatorConfig(FrameConfig):
    """Which method learns, and how positives are added to it."""

    base: Literal["moco", "simclr", "simsiam"] = "moco"
    key_encoder: Literal["shared", "ema", "frozen"] = "ema"
    symmetric: bool = False
    temperature: float = 0.2
    """of moco and simclr"""
    hallucinate: Literal["both", "extrapolation", "none"] = "both"
    """both: extrapolation away from the partner, then a small network; none: the base alone"""
    ratio: float = 0.1
    """largest share of the way from the partner by which the query is moved on"""
    normalize_first: bool = False
    """scale query and partner to unit length before; off, as in the authors' code"""
    keep_twins: bool = False
    """of simclr: further embeddings of the same image are negatives, as in the authors' code"""

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_positive("method.temperature", self.temperature)
        expect(0 <= self.ratio < float("inf"), "method.ratio", "a finite number of 0 or more", self.ratio)
        expect((self.base == "moco") == (self.key_encoder != "shared"), "method.key_encoder",
               "'shared' exactly without base 'moco'", repr(self.key_encoder))  # fmt: skip
        predictor = self.predictor.kind != "none"
        expect((self.base == "simsiam") == predictor, "method.predictor.kind", "one exactly with base 'simsiam'",
               repr(self.predictor.kind))  # fmt: skip
        expect(not predictor or self.head.kind == "none" or self.predictor.dim == self.head.dim,
               "method.predictor.dim", f"{self.head.dim}, that of method.head", self.predictor.dim)  # fmt: skip
        expect(self.symmetric or self.base == "moco", "method.symmetric",
               "True with base 'simclr' or 'simsiam', whose views meet alike", self.symmetric)  # fmt: skip
        expect(not self.keep_twins or self.base == "simclr", "method.keep_twins", "off without base 'simclr'",
               self.keep_twins)  # fmt: skip

    def build(self, info: DataInfo, encoder: nn.Module, views: Views) -> Method:
        from nearfar_images.methods.hallucinator import Hallucinator

        return Hallucinator(self, encoder, views)


def _moco(*, hidden: int, queue: int, momentum: float, **options: Any) -> HallucinatorConfig:
    head = HeadConfig(layers=2, hidden=hidden, dim=128, norm="none")
    return HallucinatorConfig(head=head, queue=queue, momentum=momentum, shuffle_keys=True, **options)


def hallucinator() -> Recipe:
    """MoCo with hallucinated positives for your own images on one machine."""
    return Recipe(
        name="images/hallucinator",
        method=_moco(hidden=0, queue=4096, momentum=0.99),
        views=dataclasses.replace(_views.small(), crop_scale=(0.2, 1.0), centred_views=1),
        encoder=EncoderConfig(name="auto"),
        optimiser=OptimiserConfig(name="adamw", lr=1e-3, weight_decay=1e-4, warmup_epochs=5.0),
        trainer=TrainerConfig(epochs=100, batch_size=256),
    )


def hallucinator_simsiam() -> Recipe:
    """SimSiam with hallucinated positives for your own images."""
    method = HallucinatorConfig(
        base="simsiam", key_encoder="shared", symmetric=True,
        head=HeadConfig(layers=2, hidden=512, dim=512, last_norm=True),
        predictor=HeadConfig(layers=2, hidden=128, dim=512),
    )  # fmt: skip
    return dataclasses.replace(hallucinator(), name="images/hallucinator_simsiam", method=method)


def hallucinator_simclr() -> Recipe:
    """SimCLR with hallucinated positives for your own images."""
    method = HallucinatorConfig(base="simclr", key_encoder="shared", symmetric=True, temperature=0.2)
    return dataclasses.replace(hallucinator(), name="images/hallucinator_simclr", method=method)


def hallucinator_cifar() -> Recipe:
    """The authors' CIFAR setting with MoCo: ResNet-18 with the small stem, batch 512, SGD 0.5, 500 epochs."""
    return dataclasses.replace(
        hallucinator(),
        name="images/hallucinator_cifar",
        method=_moco(hidden=512, queue=65536, momentum=0.999),
        encoder=EncoderConfig(name="torchvision/resnet18+small-stem"),
        optimiser=OptimiserConfig(name="sgd", lr=0.5, momentum=0.9, weight_decay=1e-4),
        trainer=TrainerConfig(epochs=500, batch_size=512, evaluate_every=50),
    )


def hallucinator_imagenet() -> Recipe:
    """The authors' ImageNet setting with MoCo: ResNet-50, batch 256, SGD 0.03, 100 epochs."""
    views = ImageViewConfig(
        crop_scale=(0.2, 1.0), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, blur=0.5, exact_colour=True,
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), centred_views=1, centre_box=(0.2, 0.8),
        centre_beta=0.6,
    )  # fmt: skip
    return dataclasses.replace(
        hallucinator(),
        name="images/hallucinator_imagenet",
        method=_moco(hidden=2048, queue=65536, momentum=0.999),
        views=views,
        encoder=EncoderConfig(name="torchvision/resnet50"),
        optimiser=OptimiserConfig(name="sgd", lr=0.03, momentum=0.9, weight_decay=1e-4),
        trainer=TrainerConfig(epochs=100, batch_size=256),
    )


def _digits_recipe(name: str, *, centre: bool = True, base: str = "moco", **options: Any) -> Recipe:
    """All arms of the demonstration crop, which the other systems' digits do not."""
    if base == "moco":
        method = HallucinatorConfig(head=_digits.HEAD, queue=1024, momentum=0.99, shuffle_keys=True, **options)
    else:
        head = dataclasses.replace(_digits.HEAD, last_norm=True)
        predictor = HeadConfig(layers=2, hidden=32, dim=head.dim)
        method = HallucinatorConfig(
            base="simsiam", key_encoder="shared", symmetric=True, head=head, predictor=predictor, **options
        )  # fmt: skip
    recipe = _digits.demonstration(name, method)
    views = dataclasses.replace(recipe.views, crop_scale=(0.6, 1.0), centred_views=int(centre))
    return dataclasses.replace(recipe, views=views, trainer=dataclasses.replace(recipe.trainer, batch_size=128))


def hallucinator_digits() -> Recipe:
    """The demonstration: MoCo on digits with centre crops and hallucinated positives."""
    return _digits_recipe("hallucinator_digits")


def hallucinator_extrapolation_digits() -> Recipe:
    """MoCo on digits with extrapolated positives, without the network."""
    return _digits_recipe("hallucinator_extrapolation_digits", hallucinate="extrapolation")


def hallucinator_centre_digits() -> Recipe:
    """MoCo on digits with centre crops alone."""
    return _digits_recipe("hallucinator_centre_digits", hallucinate="none")


def hallucinator_base_digits() -> Recipe:
    """MoCo on digits as it is."""
    return _digits_recipe("hallucinator_base_digits", hallucinate="none", centre=False)


def hallucinator_simsiam_digits() -> Recipe:
    """SimSiam on digits with centre crops and hallucinated positives."""
    return _digits_recipe("hallucinator_simsiam_digits", base="simsiam")


def hallucinator_simsiam_base_digits() -> Recipe:
    """SimSiam on digits as it is."""
    return _digits_recipe("hallucinator_simsiam_base_digits", base="simsiam", hallucinate="none", centre=False)


RECIPES = {
    "hallucinator": hallucinator,
    "hallucinator_simsiam": hallucinator_simsiam,
    "hallucinator_simclr": hallucinator_simclr,
    "hallucinator_cifar": hallucinator_cifar,
    "hallucinator_imagenet": hallucinator_imagenet,
    "hallucinator_digits": hallucinator_digits,
    "hallucinator_extrapolation_digits": hallucinator_extrapolation_digits,
    "hallucinator_centre_digits": hallucinator_centre_digits,
    "hallucinator_base_digits": hallucinator_base_digits,
    "hallucinator_simsiam_digits": hallucinator_simsiam_digits,
    "hallucinator_simsiam_base_digits": hallucinator_simsiam_base_digits,
}
DEMONSTRATION = digits(
    "hallucinator", "hallucinator_extrapolation", "hallucinator_centre", "hallucinator_base",
    "hallucinator_simsiam", "hallucinator_simsiam_base", "untrained",
)  # fmt: skip
