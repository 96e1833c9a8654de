"""SupCon: all views of a class attract one another, all others repel."""

from __future__ import annotations

from nearfar.catalog import Claim, System, Taxonomy
from nearfar.config import ContrastConfig, EncoderConfig, HeadConfig, ImageViewConfig, OptimiserConfig, TrainerConfig
from nearfar.recipe import Recipe
from nearfar_images.demonstrations import digits
from nearfar_images.systems import _digits, _views

CARD = System(
    slug="supcon",
    title="Supervised Contrastive Learning",
    authors="Prannay Khosla, Piotr Teterwak, Chen Wang, Aaron Sarna, Yonglong Tian, Phillip Isola, Aaron Maschinot, "
    "Ce Liu, Dilip Krishnan",
    year=2020,
    venue="NeurIPS",
    plugin="images",
    kind="train",
    summary="trains an encoder with labels: every view of the same class is a positive",
    recipe="images/supcon",
    taxonomy=Taxonomy(positive="label", negative="batch", key="shared", loss="probabilistic"),
    evidence="code",
    oracles=(
        "with all labels distinct and two views both forms equal NT-Xent",
        "the form inside the logarithm never exceeds the one outside; they agree with one positive an anchor, or where "
        "an anchor's positives are equally similar",
        "all n embeddings identical give log(n - 1) in both forms",
        "equals the cross-entropy between the uniform distribution over the positives and the softmax over the others",
        "equals a loop over six rows with an asymmetric mask; renaming labels changes nothing; a batch of one class is "
        "finite and at least log(n - 1)",
        "the gradient of an anchor, the others held fixed, is (softmax-weighted mean of the others - mean of the "
        "positives) / tau",
    ),
    claim=Claim(metric="linear", order=("supcon", "cross_entropy"), margin=0.0),
    export=("safetensors", "onnx"),
)


def supcon() -> Recipe:
    """SupCon for your own labelled images on one machine: one subfolder a class."""
    return Recipe(
        name="images/supcon",
        method=ContrastConfig(
            pairs="labels", loss="supcon", positives="mean", temperature=0.1, head=HeadConfig(layers=2, dim=128)
        ),
        views=_views.small(),
        encoder=EncoderConfig(name="auto"),
        optimiser=OptimiserConfig(name="adamw", lr=2e-3, weight_decay=1e-4, warmup_epochs=5.0),
        trainer=TrainerConfig(epochs=100, batch_size=256),
    )


def supcon_cifar() -> Recipe:
    """The reference code's CIFAR setting: ResNet-50 with the small stem, batch 1024, SGD, 1000 epochs."""
    return Recipe(
        name="images/supcon_cifar",
        method=ContrastConfig(
            pairs="labels",
            loss="supcon",
            positives="mean",
            temperature=0.1,
            head=HeadConfig(layers=2, hidden=2048, dim=128, norm="none"),
        ),
        views=ImageViewConfig(
            crop_scale=(0.2, 1.0), jitter=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grayscale=0.2
        ),
        encoder=EncoderConfig(name="torchvision/resnet50+small-stem"),
        optimiser=OptimiserConfig(name="sgd", lr=0.5, momentum=0.9, weight_decay=1e-4, warmup_epochs=10.0),
        trainer=TrainerConfig(epochs=1000, batch_size=1024, evaluate_every=50),
    )


def supcon_digits() -> Recipe:
    """The demonstration: handwritten digits with their labels."""
    return _digits.demonstration(
        "supcon_digits",
        ContrastConfig(pairs="labels", loss="supcon", positives="mean", temperature=0.1, head=_digits.HEAD),
    )


RECIPES = {"supcon": supcon, "supcon_cifar": supcon_cifar, "supcon_digits": supcon_digits}
DEMONSTRATION = digits("supcon", "cross_entropy", "untrained")
