"""The declarative frame: a method is what is positive, what is negative, how keys are encoded, and a loss."""

from __future__ import annotations

import dataclasses
from typing import Any

from nearfar.catalog import Claim, System, Taxonomy
from nearfar.config import ContrastConfig, EncoderConfig, HeadConfig, OptimiserConfig, TrainerConfig
from nearfar.recipe import Recipe
from nearfar_images.demonstrations import digits
from nearfar_images.systems import _digits, _views

CARD = System(
    slug="crl_framework",
    title="Contrastive Representation Learning: A Framework and Review",
    authors="Phuc H. Le-Khac, Graham Healy, Alan F. Smeaton",
    year=2020,
    venue="IEEE Access",
    plugin="images",
    kind="train",
    summary="one description that most contrastive methods are values of: pairs, key encoder, key store, similarity, "
    "loss",
    recipe="images/crl_framework",
    taxonomy=Taxonomy(positive="transformation", negative="memory", key="momentum", loss="probabilistic"),
    evidence="text",
    oracles=(
        "the recipes of SimCLR, MoCo, SupCon and the triplet loss give the loss of NT-Xent, InfoNCE, SupCon and "
        "triplet on the same tensors, and both directions of InfoNCE that of CLIP",
        "with masks the loss equals loops over queries and keys; permuting keys with their masks changes nothing, nor "
        "does a key that is neither positive nor negative",
        "triplet with squared distances of unit vectors is the margin of cosines; InfoNCE with one negative is "
        "softplus(s- - s+); binary NCE with one negative is Jensen-Shannon's loss",
        "written as JSON and read again a config gives the same loss; unknown parts, overlapping masks and a queue of "
        "keys with gradient are refused by name",
        "the bounds of Donsker-Varadhan and InfoNCE with the best critic of a small table do not exceed its mutual "
        "information, nor InfoNCE the logarithm of the number of candidates",
    ),
    claim=Claim(metric="knn", order=("crl_supcon", "crl_simclr", "crl_triplet"), margin=0.0),
    export=("safetensors", "onnx"),
)

KEYS: dict[str, Any] = {"key_encoder": "ema", "momentum": 0.99, "symmetric": False}
HEAD = HeadConfig(layers=2, dim=128)


def _recipe(name: str, *, head: HeadConfig = HEAD, **method: Any) -> Recipe:
    return Recipe(
        name=f"images/{name}",
        method=ContrastConfig(head=head, **method),
        views=_views.small(),
        encoder=EncoderConfig(name="auto"),
        optimiser=OptimiserConfig(name="adamw", lr=1e-3, weight_decay=1e-4, warmup_epochs=5.0),
        trainer=TrainerConfig(epochs=100, batch_size=256),
    )


def _digits_recipe(name: str, **method: Any) -> Recipe:
    """Handwritten digits in batches of 64, where a queue has something to add."""
    recipe = _digits.demonstration(name, ContrastConfig(head=_digits.HEAD, **method))
    return dataclasses.replace(recipe, trainer=dataclasses.replace(recipe.trainer, batch_size=64))


def crl_framework() -> Recipe:
    """Start here to put a method together: queries against a queue of keys from a slow encoder, as MoCo does."""
    return _recipe("crl_framework", loss="info_nce", temperature=0.2, queue=4096, **KEYS)


def crl_simclr() -> Recipe:
    """SimCLR: views of the batch against each other."""
    return _recipe("crl_simclr", loss="nt_xent", temperature=0.2)


def crl_moco() -> Recipe:
    """MoCo without a projection: its first version's linear head, a queue and a slow encoder of keys."""
    return _recipe(
        "crl_moco", loss="info_nce", temperature=0.07, queue=4096, head=HeadConfig(kind="linear", dim=128), **KEYS
    )


def crl_instdisc() -> Recipe:
    """Instance discrimination: every image against a bank with one row for each, its own the positive."""
    return _recipe(
        "crl_instdisc", loss="info_nce", temperature=0.07, bank=True, momentum=0.5,
        head=HeadConfig(kind="linear", dim=128),
    )  # fmt: skip


def crl_supcon() -> Recipe:
    """SupCon: every view of the same label is a positive."""
    return _recipe("crl_supcon", loss="supcon", pairs="labels", temperature=0.1)


def crl_triplet() -> Recipe:
    """The triplet loss of faces: labels, semi-hard negatives, distances on the sphere."""
    return _recipe("crl_triplet", loss="triplet", pairs="labels", mining="semi_hard", margin=0.1)


def crl_nce() -> Recipe:
    """Binary noise-contrastive estimation: each pair of views is told from each pair of images by itself."""
    return _recipe("crl_nce", loss="binary_nce", temperature=0.2)


def crl_jsd() -> Recipe:
    """The Jensen-Shannon bound on the information that two views have of each other, as Deep InfoMax does."""
    return _recipe("crl_jsd", loss="jensen_shannon", temperature=0.2)


def crl_byol() -> Recipe:
    """BYOL, the frame's limit without negatives: a predictor and a slow encoder of keys."""
    head = HeadConfig(layers=2, hidden=1024, dim=256, last_bias=False)
    return _recipe(
        "crl_byol", loss="regression", head=head, predictor=head, key_encoder="ema", momentum=0.99, momentum_end=1.0
    )


# -- the demonstration: losses by key stores ---------------------------------------------------------------------------


def crl_simclr_digits() -> Recipe:
    """Handwritten digits: SimCLR in batches of 64."""
    return _digits_recipe("crl_simclr_digits", loss="nt_xent", temperature=0.2)


def crl_simclr_queue_digits() -> Recipe:
    """Handwritten digits: InfoNCE against a queue of 1024 keys, which is MoCo."""
    return _digits_recipe("crl_simclr_queue_digits", loss="info_nce", temperature=0.2, queue=1024, **KEYS)


def crl_triplet_digits() -> Recipe:
    """Handwritten digits: triplets of two views and another image."""
    return _digits_recipe("crl_triplet_digits", loss="triplet", margin=0.1)


def crl_triplet_queue_digits() -> Recipe:
    """Handwritten digits: triplets whose negatives come from a queue of 1024 keys too."""
    return _digits_recipe("crl_triplet_queue_digits", loss="triplet", margin=0.1, queue=1024, **KEYS)


def crl_nce_digits() -> Recipe:
    """Handwritten digits: binary noise-contrastive estimation."""
    return _digits_recipe("crl_nce_digits", loss="binary_nce", temperature=0.2)


def crl_nce_queue_digits() -> Recipe:
    """Handwritten digits: binary noise-contrastive estimation with a queue of 1024 keys as noise too."""
    return _digits_recipe("crl_nce_queue_digits", loss="binary_nce", temperature=0.2, queue=1024, **KEYS)


def crl_jsd_digits() -> Recipe:
    """Handwritten digits: the Jensen-Shannon bound."""
    return _digits_recipe("crl_jsd_digits", loss="jensen_shannon", temperature=0.2)


def crl_jsd_queue_digits() -> Recipe:
    """Handwritten digits: the Jensen-Shannon bound with a queue of 1024 keys."""
    return _digits_recipe("crl_jsd_queue_digits", loss="jensen_shannon", temperature=0.2, queue=1024, **KEYS)


def crl_supcon_digits() -> Recipe:
    """Handwritten digits with their labels: SupCon."""
    return _digits_recipe("crl_supcon_digits", loss="supcon", pairs="labels", temperature=0.2)


def crl_supcon_queue_digits() -> Recipe:
    """Handwritten digits with their labels: SupCon against a queue of 1024 keys and their labels."""
    return _digits_recipe(
        "crl_supcon_queue_digits", loss="supcon", pairs="labels", temperature=0.2, queue=1024, **KEYS
    )  # fmt: skip


RECIPES = {
    function.__name__: function
    for function in (
        crl_framework, crl_simclr, crl_moco, crl_instdisc, crl_supcon, crl_triplet, crl_nce, crl_jsd, crl_byol,
        crl_simclr_digits, crl_simclr_queue_digits, crl_triplet_digits, crl_triplet_queue_digits, crl_nce_digits,
        crl_nce_queue_digits, crl_jsd_digits, crl_jsd_queue_digits, crl_supcon_digits, crl_supcon_queue_digits,
    )
}  # fmt: skip
DEMONSTRATION = digits(
    "crl_supcon", "crl_supcon_queue", "crl_simclr", "crl_simclr_queue", "crl_nce", "crl_nce_queue", "crl_jsd",
    "crl_jsd_queue", "crl_triplet", "crl_triplet_queue", "untrained",
)  # fmt: skip
