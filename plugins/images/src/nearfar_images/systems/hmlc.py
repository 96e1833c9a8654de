"""G-HMLC and A-HMLC (rebuilt): labels from coarse to fine, each contrasted in the features that a mask leaves it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from nearfar.catalog import Claim, Demonstration, System, Taxonomy
from nearfar.checks import expect, expect_positive
from nearfar.config import DataConfig, DataInfo, EncoderConfig, FrameConfig, HeadConfig, OptimiserConfig, TrainerConfig
from nearfar.recipe import Recipe
from nearfar_images.systems import _digits, _views
from nearfar_images.systems._checks import one_encoder

if TYPE_CHECKING:
    from torch import nn

    from nearfar.method import Method, Views

CARD = System(
    slug="hmlc",
    title="Feature Identification for Hierarchical Contrastive Learning",
    authors="Julius Ott, Nastassia Vysotskaya, Huawei Sun, Lorenzo Servadei, Robert Wille",
    year=2025,
    venue="arXiv 2510.00837",
    plugin="images",
    also=("points",),
    kind="train",
    summary="trains an encoder with labels on several levels, each contrasted in features of its own",
    recipe="images/hmlc",
    taxonomy=Taxonomy(positive="label", negative="batch", key="shared", loss="probabilistic"),
    evidence="rebuilt",
    oracles=(
        "with masks of ones it is a weighted sum of SupCon over the levels; with one level it is SupCon",
        "with disjoint hard masks a level's gradient is exactly 0 in the features of the others",
        "the mixture finds at least 95 % of the features that carry the coarse and the fine label",
        "constant soft masks of 0.5 give what masks of ones give",
        "renaming fine labels within a parent changes nothing; the class-balanced mean is the plain one for balanced "
        "batches",
    ),
    claim=Claim(metric="linear_coarse", order=("hmlc", "hmlc_plain"), margin=0.0),
    export=("safetensors", "onnx"),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class HMLCConfig(FrameConfig):
    """Which features serve which level, and how levels weigh."""

    form: Literal["attention", "mixture", "none", "hmce"] = "attention"
    """masks: soft, by a head a level (A-HMLC); hard, by a Gaussian mixture over features (G-HMLC); none, all features
    for all levels; hmce: the earlier loss in one space"""
    levels: int = 2
    """as many as data.levels names"""
    temperature: float = 0.1
    level_weight: Literal["uniform", "halving", "finest"] = "uniform"
    """1 / H; 2^(1 / l) with l = 1 for the finest; the finest level alone"""
    balanced: bool = True
    """on all levels but the finest, average anchors within classes first"""
    gate: Literal["sigmoid", "softmax"] = "sigmoid"
    """of attention"""
    distinct: float = 0.0
    """of attention: weight of the mean cosine between the masks of two levels"""
    samples: int = 4096
    """of mixture: latest embeddings that it is fitted to"""
    warmup: int = 1
    """of mixture: epochs without masks"""
    every: int = 1
    """of mixture: epochs between fits"""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_encoder(self)
        expect_positive("method.temperature", self.temperature)
        for name in ("levels", "samples", "warmup", "every"):
            expect(getattr(self, name) >= 1, f"method.{name}", "1 or more", getattr(self, name))
        expect(self.distinct >= 0, "method.distinct", "0 or more", self.distinct)
        expect(self.distinct == 0 or (self.form == "attention" and self.levels > 1), "method.distinct",
               "0 without attention over several levels", self.distinct)  # fmt: skip
        expect(self.form != "hmce" or self.level_weight == "uniform", "method.level_weight",
               "'uniform' with form 'hmce', which has weights of its own", repr(self.level_weight))  # fmt: skip

    @property
    def needs_labels(self) -> bool:
        """Whether the data must have labels."""
        return True

    @property
    def needs_columns(self) -> tuple[str, ...]:
        """A path of labels of every sample."""
        return ("path",)

    def build(self, info: DataInfo, encoder: nn.Module, views: Views) -> Method:
        from nearfar_images.methods.hmlc import HMLC

        return HMLC(self, encoder, views)


def hmlc() -> Recipe:
    """A-HMLC for your own images in nested folders: --data.root FOLDER, with COARSE/FINE/IMAGE below it."""
    return Recipe(
        name="images/hmlc",
        method=HMLCConfig(head=HeadConfig(layers=2, dim=128)),
        data=DataConfig(levels=("folder1", "folder2")),
        views=_views.small(),
        encoder=EncoderConfig(name="auto"),
        optimiser=OptimiserConfig(name="adamw", lr=1e-3, weight_decay=1e-4, warmup_epochs=5.0),
        trainer=TrainerConfig(epochs=100, batch_size=256),
    )


def hmlc_mixture() -> Recipe:
    """G-HMLC for your own images in nested folders: hard masks."""
    recipe = hmlc()
    method = dataclasses.replace(recipe.method, form="mixture")
    return dataclasses.replace(recipe, name="images/hmlc_mixture", method=method)


def hmlc_cifar100() -> Recipe:
    """CIFAR-100 with its 20 superclasses of five classes each: ResNet-18 with the small stem, SGD, cosine."""
    recipe = hmlc()
    return dataclasses.replace(
        recipe,
        name="images/hmlc_cifar100",
        data=DataConfig(source="cifar100", levels=("superclass", "label")),
        encoder=EncoderConfig(name="torchvision/resnet18+small-stem"),
        optimiser=OptimiserConfig(name="sgd", lr=0.05, momentum=0.9, weight_decay=1e-4, warmup_epochs=5.0),
        trainer=TrainerConfig(epochs=200, batch_size=256),
    )


def _digits_recipe(name: str, **options: Any) -> Recipe:
    recipe = _digits.demonstration(name, HMLCConfig(head=_digits.HEAD, **options))
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, levels=("form", "label")))


def hmlc_digits() -> Recipe:
    """The demonstration: digits below what they are drawn of (a loop, straight, open), soft masks."""
    return _digits_recipe("hmlc_digits")


def hmlc_mixture_digits() -> Recipe:
    """Digits on two levels with hard masks."""
    return _digits_recipe("hmlc_mixture_digits", form="mixture")


def hmlc_plain_digits() -> Recipe:
    """Digits on two levels that share all features: the sum of SupCon over levels."""
    return _digits_recipe("hmlc_plain_digits", form="none")


def hmlc_fine_digits() -> Recipe:
    """SupCon on the digits alone."""
    return _digits_recipe("hmlc_fine_digits", form="none", level_weight="finest")


def hmlc_hmce_digits() -> Recipe:
    """Digits on two levels by the earlier loss HMCE."""
    return _digits_recipe("hmlc_hmce_digits", form="hmce")


RECIPES = {
    "hmlc": hmlc,
    "hmlc_mixture": hmlc_mixture,
    "hmlc_cifar100": hmlc_cifar100,
    "hmlc_digits": hmlc_digits,
    "hmlc_mixture_digits": hmlc_mixture_digits,
    "hmlc_plain_digits": hmlc_plain_digits,
    "hmlc_fine_digits": hmlc_fine_digits,
    "hmlc_hmce_digits": hmlc_hmce_digits,
}
DEMONSTRATION = Demonstration(
    arms=("hmlc", "hmlc_mixture", "hmlc_plain", "hmlc_fine", "hmlc_hmce", "untrained"),
    run="nearfar_images.demonstrations.hmlc:arm",
    data="scikit-learn's digits below what they are drawn of, {0, 6, 8, 9}, {1, 4, 7}, {2, 3, 5}; 450 held out",
)
