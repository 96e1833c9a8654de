"""SimCLR: two views of an image find each other among the views of all other images of the batch."""

from __future__ import annotations

from nearfar.catalog import Claim, System, Taxonomy
from nearfar.config import ContrastConfig, EncoderConfig, HeadConfig, OptimiserConfig, TrainerConfig
from nearfar.recipe import Recipe
from nearfar_images.demonstrations import digits
from nearfar_images.systems import _digits, _views

CARD = System(
    slug="simclr",
    title="A Simple Framework for Contrastive Learning of Visual Representations",
    authors="Ting Chen, Simon Kornblith, Mohammad Norouzi, Geoffrey Hinton",
    year=2020,
    venue="ICML",
    plugin="images",
    kind="train",
    summary="pretrains an image encoder without labels by telling two views of an image from all others of the batch",
    recipe="images/simclr",
    taxonomy=Taxonomy(positive="transformation", negative="batch", key="shared", loss="probabilistic"),
    evidence="code",
    oracles=(
        "equals a double loop over anchors and candidates in float64 for 3 to 5 images to 1e-10",
        "all 2N embeddings identical give log(2N - 1) at every temperature",
        "identical views of mutually orthogonal images give log(1 + (2N - 2) exp(-1/tau)); a single image gives 0",
        "rotating all rows, rescaling any row, reordering images and swapping the views change nothing; the gradient "
        "of a row before normalisation is orthogonal to it",
        "equals cross-entropy on the 2N x 2N logits without their diagonal, and SupCon with every image a class",
        "two simulated processes that share their candidates average to the gradient of one",
    ),
    claim=Claim(metric="few_label", order=("simclr", "untrained"), margin=0.04),
    export=("safetensors", "onnx"),
)


def simclr() -> Recipe:
    """SimCLR for your own images on one machine.

    The temperature is 0.2, not the paper's 0.1: with 256 instead of 4096 images in a batch the hardest candidates are
    fewer and more often of the same kind as the anchor, and a softer softmax weighs them less; it also keeps AdamW
    stable without LARS. Jitter has half the paper's ImageNet strength and there is no blur, so that one recipe serves
    small and large images; `simclr_imagenet` holds the paper's own values.
    """
    return Recipe(
        name="images/simclr",
        method=ContrastConfig(loss="nt_xent", temperature=0.2, head=HeadConfig(layers=2, dim=128)),
        views=_views.small(),
        encoder=EncoderConfig(name="auto"),
        optimiser=OptimiserConfig(name="adamw", lr=2e-3, weight_decay=1e-4, warmup_epochs=5.0),
        trainer=TrainerConfig(epochs=100, batch_size=256),
    )


def simclr_imagenet() -> Recipe:
    """The paper's ImageNet setting: ResNet-50, batch 4096, LARS, full colour distortion and blur."""
    return Recipe(
        name="images/simclr_imagenet",
        method=ContrastConfig(
            loss="nt_xent", temperature=0.1, head=HeadConfig(layers=2, hidden=2048, dim=128, last_norm=True)
        ),
        views=_views.imagenet(strength=1.0, crop=0.08),
        encoder=EncoderConfig(name="torchvision/resnet50"),
        optimiser=OptimiserConfig(
            name="lars", lr=0.3, lr_scaling="linear", momentum=0.9, trust=1e-3, weight_decay=1e-6, warmup_epochs=10.0
        ),
        trainer=TrainerConfig(epochs=100, batch_size=4096),
    )


def simclr_cifar() -> Recipe:
    """The reference code's CIFAR-10 setting: ResNet-18 with the small stem, batch 512, temperature 0.5, 1000 epochs."""
    return Recipe(
        name="images/simclr_cifar",
        method=ContrastConfig(
            loss="nt_xent", temperature=0.5, head=HeadConfig(layers=2, hidden=512, dim=128, last_norm=True)
        ),
        views=_views.small(),
        encoder=EncoderConfig(name="torchvision/resnet18+small-stem"),
        optimiser=OptimiserConfig(
            name="lars", lr=1.0, lr_scaling="linear", momentum=0.9, trust=1e-3, weight_decay=1e-4, warmup_epochs=10.0
        ),
        trainer=TrainerConfig(epochs=1000, batch_size=512, evaluate_every=50),
    )


def simclr_digits() -> Recipe:
    """The demonstration: handwritten digits in a minute or two on a laptop."""
    return _digits.demonstration("simclr_digits", ContrastConfig(loss="nt_xent", temperature=0.2, head=_digits.HEAD))


RECIPES = {
    "simclr": simclr,
    "simclr_imagenet": simclr_imagenet,
    "simclr_cifar": simclr_cifar,
    "simclr_digits": simclr_digits,
}
DEMONSTRATION = digits("simclr", "untrained", "pixels")
