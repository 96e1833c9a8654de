"""VICReg: two views agree, every feature varies over the batch, and no two features vary together."""

from __future__ import annotations

from nearfar.catalog import Claim, System, Taxonomy
from nearfar.config import ContrastConfig, EncoderConfig, HeadConfig, OptimiserConfig, TrainerConfig
from nearfar.recipe import Recipe
from nearfar_images.demonstrations import digits
from nearfar_images.systems import _digits, _views

CARD = System(
    slug="vicreg",
    title="VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning",
    authors="Adrien Bardes, Jean Ponce, Yann LeCun",
    year=2022,
    venue="ICLR",
    plugin="images",
    kind="baseline",
    summary="pretrains without labels or negatives: a hinge on every feature's variance, and no covariances",
    recipe="images/vicreg",
    taxonomy=Taxonomy(positive="transformation", negative="none", key="shared", loss="regression"),
    evidence="text",
    oracles=(
        "the three terms equal loops over samples and features, with covariances over n - 1",
        "embeddings that are the same for all samples cost the weight of the variance times (1 - sqrt(eps)), no more",
        "equal views whose features are uncorrelated with a standard deviation of 1 or more give 0",
        "shifting both views alike changes nothing; shifting one costs the invariance the square of the shift",
    ),
    claim=Claim(metric="few_label", order=("vicreg", "untrained"), margin=0.03),
    export=("safetensors", "onnx"),
)


def _method(*, layers: int, dim: int) -> ContrastConfig:
    # no term sees the mean, so that a last bias would have no gradient but rounding
    return ContrastConfig(loss="vicreg", head=HeadConfig(layers=layers, hidden=dim, dim=dim, last_bias=False))


def vicreg() -> Recipe:
    """VICReg for your own images on one machine."""
    return Recipe(
        name="images/vicreg",
        method=_method(layers=3, dim=1024),
        views=_views.small(),
        encoder=EncoderConfig(name="auto"),
        optimiser=OptimiserConfig(name="adamw", lr=1e-3, weight_decay=1e-4, warmup_epochs=5.0),
        trainer=TrainerConfig(epochs=100, batch_size=256),
    )


def vicreg_imagenet() -> Recipe:
    """The paper's ImageNet setting: ResNet-50, batch 2048, LARS, three layers of 8192, 1000 epochs."""
    return Recipe(
        name="images/vicreg_imagenet",
        method=_method(layers=3, dim=8192),
        views=_views.byol(),
        encoder=EncoderConfig(name="torchvision/resnet50"),
        optimiser=OptimiserConfig(
            name="lars", lr=0.2, lr_scaling="linear", momentum=0.9, trust=1e-3, weight_decay=1e-6, warmup_epochs=10.0
        ),
        trainer=TrainerConfig(epochs=1000, batch_size=2048, evaluate_every=50),
    )


def vicreg_digits() -> Recipe:
    """The demonstration: handwritten digits, 256 features."""
    return _digits.demonstration("vicreg_digits", _method(layers=2, dim=256))


RECIPES = {"vicreg": vicreg, "vicreg_imagenet": vicreg_imagenet, "vicreg_digits": vicreg_digits}
DEMONSTRATION = digits("vicreg", "simclr", "untrained")
