"""Supervised cross-entropy: the line that systems without labels are held against."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nearfar.catalog import Claim, System, Taxonomy
from nearfar.checks import expect
from nearfar.config import DataInfo, EncoderConfig, FrameConfig, HeadConfig, OptimiserConfig, TrainerConfig
from nearfar.recipe import Recipe
from nearfar_images.demonstrations import digits
from nearfar_images.systems import _digits, _views

if TYPE_CHECKING:
    from torch import nn

    from nearfar.method import Method, Views

CARD = System(
    slug="cross_entropy",
    title="Probabilistic Interpretation of Feedforward Classification Network Outputs, with Relationships to "
    "Statistical Pattern Recognition",
    authors="John S. Bridle",
    year=1990,
    venue="Neurocomputing (NATO ASI)",
    plugin="images",
    kind="baseline",
    summary="supervised training with a softmax classifier; the line that self-supervised ones are held against",
    recipe="images/cross_entropy",
    taxonomy=Taxonomy(positive="label", negative="none", key="shared", loss="probabilistic"),
    evidence="text",
    oracles=(
        "the loss equals the mean over views and samples of the negative log of the softmax, computed by hand",
        "label smoothing mixes in the mean of the negative log-probabilities of all classes",
    ),
    claim=Claim(metric="linear", order=("cross_entropy", "untrained"), margin=0.0),
    export=("safetensors", "onnx"),
)


@dataclass(frozen=True, kw_only=True)
class CrossEntropyConfig(FrameConfig):
    """A classifier on the encoder's features, or on those of a head."""

    head: HeadConfig = field(default_factory=lambda: HeadConfig(kind="none"))
    label_smoothing: float = 0.0
    """share of the target that is spread over all classes"""

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(0 <= self.label_smoothing < 1, "method.label_smoothing", "a number in [0, 1)", self.label_smoothing)

    @property
    def needs_labels(self) -> bool:
        """Whether the data must have labels."""
        return True

    def build(self, info: DataInfo, encoder: nn.Module, views: Views) -> Method:
        from nearfar_images.methods.cross_entropy import CrossEntropy

        return CrossEntropy(self, info, encoder, views)


def cross_entropy() -> Recipe:
    """A supervised encoder for your own labelled images."""
    return Recipe(
        name="images/cross_entropy",
        method=CrossEntropyConfig(label_smoothing=0.1),
        views=_views.small(),
        encoder=EncoderConfig(name="auto"),
        optimiser=OptimiserConfig(name="adamw", lr=1e-3, weight_decay=0.05, warmup_epochs=5.0),
        trainer=TrainerConfig(epochs=100, batch_size=256),
    )


def cross_entropy_digits() -> Recipe:
    """The demonstration: handwritten digits with their labels."""
    return _digits.demonstration("cross_entropy_digits", CrossEntropyConfig())


RECIPES = {"cross_entropy": cross_entropy, "cross_entropy_digits": cross_entropy_digits}
DEMONSTRATION = digits("cross_entropy", "simclr", "untrained", "pixels")
