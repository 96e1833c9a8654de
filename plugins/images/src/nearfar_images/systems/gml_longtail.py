"""GML: long-tailed recognition by contrast with classes, whose priors stand inside the logarithm."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from nearfar.catalog import Claim, Demonstration, System, Taxonomy
from nearfar.checks import expect, expect_positive
from nearfar.config import DataInfo, EncoderConfig, FrameConfig, HeadConfig, OptimiserConfig, TrainerConfig
from nearfar.recipe import Recipe
from nearfar_images.systems import _digits, _views

if TYPE_CHECKING:
    from torch import nn

    from nearfar.method import Method, Views

CARD = System(
    slug="gml_longtail",
    title="Long-Tailed Recognition by Mutual Information Maximization between Latent Features and Ground-Truth Labels",
    authors="Min-Kook Suh, Seung-Woo Seo",
    year=2023,
    venue="ICML",
    plugin="images",
    also=("dense",),
    kind="train",
    summary="trains a classifier on long-tailed labels: contrast with the classes' keys, and logit adjustment",
    recipe="images/gml_longtail",
    taxonomy=Taxonomy(positive="label", negative="memory", key="momentum", loss="probabilistic"),
    evidence="code",
    oracles=(
        "with one key a class it is the logit-adjusted softmax over prototypes; with equal priors the plain one",
        "equals loops over 3 classes and 7 keys; doubling the keys of a class changes nothing",
        "the contrast has no gradient to the temperatures, the bandwidth term to nothing else",
        "with many keys of von Mises classes the posterior is close to the true one",
        "the queue's slots sum to their number, no class has fewer than its least, and rings overwrite the oldest",
    ),
    claim=Claim(metric="few", order=("gml", "ce_adjusted", "ce"), margin=0.1),
    export=("safetensors", "onnx"),
)


@dataclass(frozen=True, kw_only=True)
class GMLConfig(FrameConfig):
    """A cosine classifier and a contrast with the keys of every class; three views: classified, query, key."""

    head: HeadConfig = field(default_factory=lambda: HeadConfig(layers=2, dim=32))
    key_encoder: Literal["ema", "frozen"] = "ema"
    """ema: the student's own; frozen: that of `teacher`, whose keys are embedded by a head that is learnt"""
    queue: int = 4096
    """slots of all classes: `least` each, and the rest in proportion to the classes' sizes"""
    least: int = 2
    temperature: float = 0.1
    """where the classes' learnt temperatures start"""
    classifier_temperature: float = 1 / 30
    supervised_weight: float = 1.0
    """of the classifier's cross-entropy"""
    contrast_weight: float = 1.0
    distil_weight: float = 0.0
    """of the distance to the teacher's logits; needs `teacher`"""
    adjust: bool = True
    """add the logarithm of the classes' shares to the classifier's logits in training"""
    contrast: Literal["gml", "supcon"] = "gml"
    """supcon: against the same keys, to compare with"""
    teacher: str = ""
    """folder of a run of this system that teaches; needed again wherever this run is loaded"""

    def __post_init__(self) -> None:
        super().__post_init__()
        expect((self.key_encoder == "frozen") == bool(self.teacher), "method.key_encoder",
               "'frozen' exactly with method.teacher", repr(self.key_encoder))  # fmt: skip
        for name in ("temperature", "classifier_temperature"):
            expect_positive(f"method.{name}", getattr(self, name))
        for name in ("supervised_weight", "contrast_weight", "distil_weight"):
            expect(getattr(self, name) >= 0, f"method.{name}", "0 or more", getattr(self, name))
        expect(self.supervised_weight + self.contrast_weight > 0, "method.supervised_weight",
               "above 0 where method.contrast_weight is 0", self.supervised_weight)  # fmt: skip
        expect(self.distil_weight == 0 or bool(self.teacher), "method.distil_weight", "0 without method.teacher",
               self.distil_weight)  # fmt: skip
        expect(self.distil_weight == 0 or self.supervised_weight > 0, "method.distil_weight",
               "0 without a classifier (method.supervised_weight 0)", self.distil_weight)  # fmt: skip
        expect(self.least >= 1, "method.least", "1 or more", self.least)
        expect(self.queue >= 1, "method.queue", "1 or more", self.queue)
        expect(self.symmetric, "method.symmetric", "True, since the views have parts of their own", self.symmetric)
        expect(self.predictor.kind == "none", "method.predictor.kind", "'none'", repr(self.predictor.kind))

    @property
    def needs_labels(self) -> bool:
        """Whether the data must have labels."""
        return True

    def build(self, info: DataInfo, encoder: nn.Module, views: Views) -> Method:
        from nearfar_images.methods.gml_longtail import LongTail

        return LongTail(self, info, encoder, views)


def gml_longtail() -> Recipe:
    """GML for your own images of classes of very different sizes: one subfolder a class."""
    return Recipe(
        name="images/gml_longtail",
        method=GMLConfig(head=HeadConfig(layers=2, dim=64)),
        views=dataclasses.replace(_views.small(), num_views=3),
        encoder=EncoderConfig(name="auto"),
        optimiser=OptimiserConfig(name="sgd", lr=0.1, momentum=0.9, weight_decay=5e-4, warmup_epochs=5.0),
        trainer=TrainerConfig(epochs=100, batch_size=128),
    )


def gml_longtail_imagenet() -> Recipe:
    """The authors' ImageNet-LT setting without a teacher: ResNeXt-50, 16384 slots, batch 128, SGD, 90 epochs."""
    recipe = gml_longtail()
    return dataclasses.replace(
        recipe,
        name="images/gml_longtail_imagenet",
        method=GMLConfig(head=HeadConfig(layers=2, dim=128), queue=16384, least=3, temperature=0.07),
        views=dataclasses.replace(_views.imagenet(strength=0.5), num_views=3),
        encoder=EncoderConfig(name="torchvision/resnext50_32x4d"),
        optimiser=OptimiserConfig(name="sgd", lr=0.05, momentum=0.9, weight_decay=5e-4),
        trainer=TrainerConfig(epochs=90, batch_size=128),
    )


def _digits_recipe(name: str, **options: Any) -> Recipe:
    method = GMLConfig(head=dataclasses.replace(_digits.HEAD, dim=32), queue=1024, momentum=0.99, **options)
    recipe = _digits.demonstration(name, method)
    return dataclasses.replace(
        recipe,
        views=dataclasses.replace(recipe.views, num_views=3),
        trainer=dataclasses.replace(recipe.trainer, batch_size=128),
    )


def gml_longtail_digits() -> Recipe:
    """The demonstration's method on all digits; `nearfar demonstrate gml_longtail` makes them long-tailed."""
    return _digits_recipe("gml_longtail_digits")


RECIPES = {
    "gml_longtail": gml_longtail,
    "gml_longtail_imagenet": gml_longtail_imagenet,
    "gml_longtail_digits": gml_longtail_digits,
}
DEMONSTRATION = Demonstration(
    arms=("gml", "gml_contrast", "supcon_adjusted", "ce_adjusted", "ce"),
    run="nearfar_images.demonstrations.gml_longtail:arm",
    data="scikit-learn's digits, the largest class with 50 times the samples of the smallest; 450 held out, balanced",
)
