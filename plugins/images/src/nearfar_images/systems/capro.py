"""CAPro: learning from web images, whose labels are noisy, with prototypes of images that texts say are right."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from nearfar.catalog import Claim, Demonstration, System, Taxonomy
from nearfar.checks import expect, expect_positive
from nearfar.config import (
    DataConfig,
    DataInfo,
    EncoderConfig,
    FrameConfig,
    HeadConfig,
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
    slug="capro",
    title="CAPro: Webly Supervised Learning with Cross-Modality Aligned Prototypes",
    authors="Yulei Qin, Xingyu Chen, Yunhang Shen, Chaoyou Fu, Yun Gu, Ke Li, Xing Sun, Rongrong Ji",
    year=2023,
    venue="NeurIPS",
    plugin="images",
    also=("sentences",),
    kind="pipeline",
    summary="trains a classifier on noisy web labels: texts choose seeds of prototypes, which correct or drop labels",
    recipe="images/capro",
    taxonomy=Taxonomy(positive="modality", negative="memory", key="momentum", loss="probabilistic"),
    evidence="code",
    oracles=(
        "with beta and all weights 0 and no cleaning it is cross-entropy training",
        "bootstrapped targets sum to 1, are b_j where one key alone is similar, and uniform where all predictions are",
        "a batch made by hand: one label corrected, one kept, one dropped, one of a seed left alone",
        "a prototype's step does not depend on the order of samples to first order, leaves unit length, and the first "
        "prototype is the normalised mean",
        "re-ranking with weight 1 is the original order, equal features have Jaccard distance 0; smoothing with the "
        "identity is the identity, on a complete uniform graph the mean",
    ),
    claim=Claim(metric="polysemy", order=("capro", "mopro", "ce"), margin=0.02),
    export=("safetensors", "onnx"),
)


@dataclass(frozen=True, kw_only=True)
class CAProConfig(FrameConfig):
    """The seeds, when each stage begins, and the weights of the terms."""

    head: HeadConfig = field(default_factory=lambda: HeadConfig(layers=2, dim=128))
    key_encoder: Literal["shared", "ema", "frozen"] = "ema"
    queue: int = 8192
    symmetric: bool = False
    anchors: str = ""
    """file that `nearfar_images.webtext.save_anchors` wrote: images that their texts say are right; empty: none, and
    prototypes begin with the means of whole classes"""
    temperature: float = 0.1
    alpha: float = 0.5
    """share of the classifiers beside the prototypes, in bootstrapping and in cleaning"""
    beta: float = 0.1
    """of the bootstrapped target beside the label"""
    threshold: float = 0.6
    """probability from which a label is corrected"""
    prototype_momentum: float = 0.999
    instance_weight: float = 1.0
    reconstruction_weight: float = 1.0
    prototype_weight: float = 1.0
    own_keys: bool = True
    """the batch's own keys are in the dictionary of bootstrapping, as in the authors' code"""
    frozen_epochs: int = 0
    """at the start, in which the encoder stands still; for encoders that are trained already"""
    prototypes_from: int = 5
    """epoch in which prototypes begin"""
    clean_from: int = 10
    """epoch from which labels are corrected and samples dropped"""
    final_from: int = 0
    """epoch from which the classifier alone learns, from cleaned labels; 0: never"""

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(self.key_encoder == "ema", "method.key_encoder", "'ema'", repr(self.key_encoder))
        expect(self.queue >= 1, "method.queue", "1 or more", self.queue)
        expect(not self.symmetric, "method.symmetric", "False, since one view is weak and one strong", self.symmetric)
        expect(self.predictor.kind == "none", "method.predictor.kind", "'none'", repr(self.predictor.kind))
        expect_positive("method.temperature", self.temperature)
        for name in ("alpha", "beta", "threshold", "prototype_momentum"):
            fraction(f"method.{name}", getattr(self, name))
        for name in ("instance_weight", "reconstruction_weight", "prototype_weight", "frozen_epochs", "final_from"):
            expect(getattr(self, name) >= 0, f"method.{name}", "0 or more", getattr(self, name))
        expect(self.prototypes_from >= 1, "method.prototypes_from", "1 or more, since labels are met in the first "
               "epoch", self.prototypes_from)  # fmt: skip
        expect(self.clean_from >= self.prototypes_from, "method.clean_from", "method.prototypes_from or later",
               self.clean_from)  # fmt: skip
        late = self.final_from == 0 or self.final_from >= self.clean_from
        expect(late, "method.final_from", "0, or method.clean_from or later", self.final_from)

    @property
    def needs_labels(self) -> bool:
        """Whether the data must have labels."""
        return True

    def build(self, info: DataInfo, encoder: nn.Module, views: Views) -> Method:
        from nearfar_images.methods.capro import CAPro

        return CAPro(self, info, encoder, views)


def capro() -> Recipe:
    """CAPro for your own images of noisy labels: one subfolder a class, and a file of anchors if there are texts."""
    return Recipe(
        name="images/capro",
        method=CAProConfig(queue=4096, momentum=0.99, prototype_momentum=0.99),
        views=_views.small(),
        encoder=EncoderConfig(name="auto"),
        optimiser=OptimiserConfig(name="adamw", lr=1e-3, weight_decay=1e-4, warmup_epochs=5.0),
        trainer=TrainerConfig(epochs=60, batch_size=256),
    )


def capro_webvision() -> Recipe:
    """The authors' WebVision setting: ResNet-50, queue 8192, SGD 0.1, batch 256, 60 epochs, the first 5 frozen."""
    return dataclasses.replace(
        capro(),
        name="images/capro_webvision",
        method=CAProConfig(head=HeadConfig(layers=2, hidden=2048, dim=128), frozen_epochs=5),
        data=DataConfig(image_size=224, channels=3),
        views=dataclasses.replace(
            _views.imagenet(strength=0.5, crop=0.2), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
        ),
        encoder=EncoderConfig(name="torchvision/resnet50"),
        optimiser=OptimiserConfig(name="sgd", lr=0.1, momentum=0.9, weight_decay=1e-4, warmup_epochs=5.0),
    )


def _on_digits(name: str, **options: Any) -> Recipe:
    method = CAProConfig(
        head=dataclasses.replace(_digits.HEAD, dim=32), queue=512, momentum=0.97, prototype_momentum=0.99,
        prototypes_from=3, clean_from=6, **options,
    )  # fmt: skip
    recipe = _digits.demonstration(name, method)
    return dataclasses.replace(recipe, trainer=dataclasses.replace(recipe.trainer, epochs=15, batch_size=128))


def capro_digits() -> Recipe:
    """The demonstration's method on digits as they are; `nearfar demonstrate capro` makes labels and texts noisy."""
    return _on_digits("capro_digits")


RECIPES = {"capro": capro, "capro_webvision": capro_webvision, "capro_digits": capro_digits}
DEMONSTRATION = Demonstration(
    arms=("capro", "mopro", "ce"),
    run="nearfar_images.demonstrations.capro:arm",
    data="scikit-learn's digits with 40 % wrong labels, half of them two classes mixed up; made-up texts, 30 % missing",
)
