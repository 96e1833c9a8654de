"""MoCo v2: a query finds its key, encoded by a slow copy of the encoder, among a queue of former keys."""

from __future__ import annotations

from nearfar.catalog import Claim, System, Taxonomy
from nearfar.config import ContrastConfig, EncoderConfig, HeadConfig, ImageViewConfig, OptimiserConfig, TrainerConfig
from nearfar.recipe import Recipe
from nearfar_images.demonstrations import digits
from nearfar_images.systems import _digits, _views

CARD = System(
    slug="moco",
    title="Improved Baselines with Momentum Contrastive Learning",
    authors="Xinlei Chen, Haoqi Fan, Ross Girshick, Kaiming He",
    year=2020,
    venue="arXiv 2003.04297",
    plugin="images",
    kind="baseline",
    summary="pretrains without labels against a queue of keys from a momentum encoder; the batch may be small",
    recipe="images/moco",
    taxonomy=Taxonomy(positive="transformation", negative="memory", key="momentum", loss="probabilistic"),
    evidence="text",
    oracles=(
        "the loss equals cross-entropy over the positive and the queue, with the positive first",
        "the queue holds the newest keys and drops the oldest, through every wrap-around",
        "after several updates the teacher equals the closed form of the exponential moving average",
        "neither the keys, nor the queue, nor the teacher receive a gradient",
    ),
    claim=Claim(metric="few_label", order=("moco", "untrained"), margin=0.04),
    export=("safetensors", "onnx"),
)


def _method(*, hidden: int, queue: int, momentum: float) -> ContrastConfig:
    return ContrastConfig(
        loss="info_nce",
        temperature=0.2,
        head=HeadConfig(layers=2, hidden=hidden, dim=128, norm="none"),
        key_encoder="ema",
        momentum=momentum,
        queue=queue,
        symmetric=False,
        shuffle_keys=True,
    )


def moco() -> Recipe:
    """MoCo v2 for your own images on one machine.

    The queue and the momentum are smaller than the paper's: with thousands of images instead of a million a queue of
    65536 keys would hold every image several times over, from encoders that have long changed.
    """
    return Recipe(
        name="images/moco",
        method=_method(hidden=0, queue=4096, momentum=0.99),
        views=_views.small(),
        encoder=EncoderConfig(name="auto"),
        optimiser=OptimiserConfig(name="adamw", lr=1e-3, weight_decay=1e-4, warmup_epochs=5.0),
        trainer=TrainerConfig(epochs=100, batch_size=256),
    )


def moco_imagenet() -> Recipe:
    """The paper's ImageNet setting: ResNet-50, queue 65536, momentum 0.999, SGD, cosine, 200 epochs."""
    return Recipe(
        name="images/moco_imagenet",
        method=_method(hidden=2048, queue=65536, momentum=0.999),
        views=ImageViewConfig(
            crop_scale=(0.2, 1.0),
            flip=0.5,
            jitter=0.8,
            brightness=0.4,
            contrast=0.4,
            saturation=0.4,
            hue=0.1,
            grayscale=0.2,
            blur=0.5,
            exact_colour=True,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        ),
        encoder=EncoderConfig(name="torchvision/resnet50"),
        optimiser=OptimiserConfig(name="sgd", lr=0.03, momentum=0.9, weight_decay=1e-4),
        trainer=TrainerConfig(epochs=200, batch_size=256),
    )


def moco_digits() -> Recipe:
    """The demonstration: handwritten digits against a queue of 1024 keys."""
    return _digits.demonstration(
        "moco_digits",
        ContrastConfig(
            loss="info_nce",
            temperature=0.2,
            head=_digits.HEAD,
            key_encoder="ema",
            momentum=0.99,
            queue=1024,
            symmetric=False,
            shuffle_keys=True,
        ),
    )


RECIPES = {"moco": moco, "moco_imagenet": moco_imagenet, "moco_digits": moco_digits}
DEMONSTRATION = digits("moco", "untrained")
