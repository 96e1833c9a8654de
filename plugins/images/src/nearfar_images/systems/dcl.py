"""DCL: the positive leaves the denominator, and small batches learn as well as large ones."""

from __future__ import annotations

from nearfar.catalog import Claim, Demonstration, System, Taxonomy
from nearfar.config import ContrastConfig, EncoderConfig, HeadConfig, OptimiserConfig, TrainerConfig
from nearfar.recipe import Recipe
from nearfar_images.demonstrations import DIGITS
from nearfar_images.systems import _digits, _views

CARD = System(
    slug="dcl",
    title="Decoupled Contrastive Learning",
    authors="Chun-Hsiao Yeh, Cheng-Yao Hong, Yen-Chi Hsu, Tyng-Luh Liu, Yubei Chen, Yann LeCun",
    year=2022,
    venue="ECCV",
    plugin="images",
    kind="train",
    summary="pretrains without labels by contrast whose positive is not among the negatives, for small batches",
    recipe="images/dcl",
    taxonomy=Taxonomy(positive="transformation", negative="batch", key="shared", loss="probabilistic"),
    evidence="code",
    oracles=(
        "NT-Xent of an anchor is the softplus of its decoupled loss on the same embeddings",
        "NT-Xent's gradient of an anchor is the sigmoid of its decoupled loss times the decoupled gradient, the others "
        "held fixed",
        "identical views of orthogonal images give -1/tau + log(2N - 2); equal embeddings give log(2N - 2) at every "
        "temperature",
        "the von Mises-Fisher weights average to 1, change nothing where all positives are equally similar, vanish as "
        "sigma grows",
        "equals a loop for four images; rotating and reordering change nothing, and so does swapping the views",
    ),
    claim=Claim(metric="knn_at_batch_16", order=("dcl", "simclr"), margin=0.0),
    export=("safetensors", "onnx"),
)


def dcl() -> Recipe:
    """DCL for your own images where memory allows small batches only."""
    return Recipe(
        name="images/dcl",
        method=ContrastConfig(loss="dcl", temperature=0.1, head=HeadConfig(layers=2, dim=128)),
        views=_views.small(),
        encoder=EncoderConfig(name="auto"),
        optimiser=OptimiserConfig(name="adamw", lr=1e-3, weight_decay=1e-4, warmup_epochs=5.0),
        trainer=TrainerConfig(epochs=100, batch_size=128),
    )


def dcl_cifar() -> Recipe:
    """CIFAR-10 with ResNet-18 and the small stem, batch 128, temperature 0.1, 100 epochs.

    Batch, temperature, encoder and epochs are those of the reference implementation's table; the optimiser is a choice.
    """
    return Recipe(
        name="images/dcl_cifar",
        method=ContrastConfig(loss="dcl", temperature=0.1, head=HeadConfig(layers=2, hidden=512, dim=128)),
        views=_views.small(),
        encoder=EncoderConfig(name="torchvision/resnet18+small-stem"),
        optimiser=OptimiserConfig(name="adamw", lr=1e-3, weight_decay=1e-4, warmup_epochs=5.0),
        trainer=TrainerConfig(epochs=100, batch_size=128),
    )


def dcl_digits() -> Recipe:
    """The demonstration: handwritten digits; try it with --trainer.batch-size 16."""
    return _digits.demonstration("dcl_digits", ContrastConfig(loss="dcl", temperature=0.2, head=_digits.HEAD))


def dclw_digits() -> Recipe:
    """DCLW, whose positives weigh more the harder they are, on handwritten digits."""
    return _digits.demonstration(
        "dclw_digits", ContrastConfig(loss="dcl", temperature=0.2, vmf_sigma=0.5, head=_digits.HEAD)
    )


RECIPES = {"dcl": dcl, "dcl_cifar": dcl_cifar, "dcl_digits": dcl_digits, "dclw_digits": dclw_digits}
DEMONSTRATION = Demonstration(arms=("dcl", "simclr"), run="nearfar_images.demonstrations.dcl:arm", data=DIGITS)
