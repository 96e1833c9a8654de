"""Hydra: any two classes are a positive pair, in the features that both share."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from nearfar.catalog import Claim, Demonstration, System, Taxonomy
from nearfar.checks import expect, expect_positive
from nearfar.config import DataInfo, EncoderConfig, FrameConfig, HeadConfig, OptimiserConfig, TrainerConfig
from nearfar.recipe import Recipe
from nearfar_images.systems import _digits, _views
from nearfar_images.systems._checks import one_encoder

if TYPE_CHECKING:
    from torch import nn

    from nearfar.method import Method, Views

CARD = System(
    slug="hydra",
    title="Rethinking Positive Pairs in Contrastive Learning",
    authors="Jiantao Wu, Sara Atito, Zhenhua Feng, Shentong Mo, Josef Kittler, Muhammad Awais",
    year=2024,
    venue="arXiv 2410.18200",
    plugin="images",
    kind="train",
    summary="trains with labels: any two classes attract each other in the features that a learnt gate leaves them",
    recipe="images/hydra",
    taxonomy=Taxonomy(positive="label", negative="batch", key="shared", loss="probabilistic"),
    evidence="code",
    oracles=(
        "the gated cosine by products of matrices equals the explicit one to 1e-10",
        "with open gates and every class its own partner it is InfoNCE of each positive against other classes",
        "the gate does not depend on the order of the classes, and its gradient reaches the rows of both alone",
        "scaling embeddings, or a constant gate, changes no similarity",
        "positives and negatives of labels [0, 0, 1, 2] with partners [1, 2, 0, 2] are those listed by hand",
        "1000 classes have 500,500 pairs, each with itself included",
    ),
    claim=Claim(metric="held_out", order=("hydra", "supcon"), margin=0.0),
    export=("safetensors", "onnx"),
)


@dataclass(frozen=True, kw_only=True)
class HydraConfig(FrameConfig):
    """Which classes are paired, and how the gate is made."""

    head: HeadConfig = field(default_factory=lambda: HeadConfig(layers=2, hidden=2048, dim=256))
    """its output is layer-normalised"""
    symmetric: bool = False
    """of two views: each takes its turn as the anchor; off: the first alone"""
    temperature: float = 0.1
    learnable_temperature: bool = False
    pairing: Literal["arbitrary", "identical", "distinct"] = "arbitrary"
    """partner classes: a permutation of the batch's labels, the class itself, or any other class there is"""
    label_dim: int = 512
    """width of the classes' embeddings"""
    gate_hidden: int = 1024
    probe: Literal["none", "detached", "joint"] = "detached"
    """a linear classifier on the encoder's features, which tells how far they are; joint: the encoder learns from it"""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_encoder(self)
        expect_positive("method.temperature", self.temperature)
        for name in ("label_dim", "gate_hidden"):
            expect(getattr(self, name) >= 1, f"method.{name}", "1 or more", getattr(self, name))
        expect(self.predictor.kind == "none", "method.predictor.kind", "'none'", repr(self.predictor.kind))

    @property
    def needs_labels(self) -> bool:
        """Whether the data must have labels."""
        return True

    def build(self, info: DataInfo, encoder: nn.Module, views: Views) -> Method:
        from nearfar_images.methods.hydra import Hydra

        return Hydra(self, info, encoder, views)


def hydra() -> Recipe:
    """Hydra for your own labelled images: one subfolder a class, three classes or more."""
    return Recipe(
        name="images/hydra",
        method=HydraConfig(),
        views=dataclasses.replace(_views.small(), crop_scale=(0.4, 1.0)),
        encoder=EncoderConfig(name="auto"),
        optimiser=OptimiserConfig(name="adamw", lr=1e-3, weight_decay=1e-4, warmup_epochs=5.0),
        trainer=TrainerConfig(epochs=100, batch_size=256),
    )


def hydra_cifar() -> Recipe:
    """The authors' CIFAR-10 setting: ResNet-18 with the small stem, 50 epochs, batch 256, crops from 0.7."""
    recipe = hydra()
    return dataclasses.replace(
        recipe,
        name="images/hydra_cifar",
        data=dataclasses.replace(recipe.data, source="cifar10"),
        views=dataclasses.replace(_views.small(), crop_scale=(0.7, 1.0)),
        encoder=EncoderConfig(name="torchvision/resnet18+small-stem"),
        optimiser=OptimiserConfig(name="adamw", lr=1e-3, weight_decay=5e-4, warmup_epochs=2.0),
        trainer=TrainerConfig(epochs=50, batch_size=256),
    )


def _digits_recipe(name: str, **options: Any) -> Recipe:
    method = HydraConfig(head=_digits.HEAD, label_dim=64, gate_hidden=128, **options)
    return _digits.demonstration(name, method)


def hydra_digits() -> Recipe:
    """Handwritten digits, any two of which are a pair."""
    return _digits_recipe("hydra_digits")


RECIPES = {"hydra": hydra, "hydra_cifar": hydra_cifar, "hydra_digits": hydra_digits}
DEMONSTRATION = Demonstration(
    arms=("hydra", "hydra_distinct", "hydra_identical", "supcon", "untrained"),
    run="nearfar_images.demonstrations.hydra:arm",
    data="rendered things of 4 shapes in 4 colours, textured as no label tells; 1,200 to learn from, 400 held out",
)
