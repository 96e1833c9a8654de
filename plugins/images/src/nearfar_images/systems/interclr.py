"""InterCLR: other images of the same pseudo-class are positives too, drawn from a memory whose labels change online."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from nearfar.catalog import Claim, Demonstration, System, Taxonomy
from nearfar.checks import expect
from nearfar.config import (
    ContrastConfig,
    DataInfo,
    EncoderConfig,
    HeadConfig,
    ImageViewConfig,
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
    slug="interclr",
    title="Delving into Inter-Image Invariance for Unsupervised Visual Representations",
    authors="Jiahao Xie, Xiaohang Zhan, Ziwei Liu, Yew Soon Ong, Chen Change Loy",
    year=2022,
    venue="IJCV",
    plugin="images",
    kind="train",
    summary="pretrains without labels: beside its own views an image is drawn to others of its pseudo-class",
    recipe="images/interclr",
    taxonomy=Taxonomy(positive="cluster", negative="mined", key="momentum", loss="probabilistic"),
    evidence="code",
    oracles=(
        "inter weight 0 gives the MoCo loss exactly; margin 0 with the queue as negatives is the function of intra",
        "the margin m is that of InfoNCE with its positive similarity shifted by -m, and a smaller m is a smaller loss",
        "semi-hard draws lie among the P nearest and never share the label; P = N draws as random does; hard negatives "
        "are the first of a full argsort without the own label",
        "after the repair no cluster is below the minimum but split halves, labels are in range and all rows kept",
        "centroids are scatter means, a label is the argmax of products, and w = 1 stores the normalised key exactly",
    ),
    claim=Claim(metric="few_label", order=("interclr", "moco", "untrained"), margin=0.04),
    export=("safetensors", "onnx"),
)


@dataclass(frozen=True, kw_only=True)
class InterCLRConfig(ContrastConfig):
    """The loss between views of an image, any of the frame's, and the branch between images beside it."""

    loss: Literal[
        "nt_xent", "dcl", "supcon", "info_nce", "binary_nce", "triplet", "pair_margin", "jensen_shannon",
        "donsker_varadhan", "regression", "barlow", "vicreg", "wmse",
    ] = "info_nce"  # fmt: skip
    """between views of one image: info_nce with a queue is MoCo, nt_xent SimCLR, regression BYOL"""
    head: HeadConfig = field(default_factory=lambda: HeadConfig(layers=2, dim=128, norm="none"))
    key_encoder: Literal["shared", "ema", "frozen"] = "ema"
    queue: int = 4096
    symmetric: bool = False
    temperature: float = 0.2
    """divides similarities, also those between images"""
    inter_weight: float = 0.25
    """of the branch between images; the one between views has the rest of 1"""
    num_clusters: int = 0
    """pseudo-classes; 0: one for every 50 training samples, 2 at least"""
    min_cluster: int = 20
    """members below which a cluster is given up and the largest one is split; half an equal share at most"""
    negatives: Literal["semi_hard", "semi_easy", "hard", "random"] = "semi_hard"
    """drawn from the nearest, or farthest, `pool` of the memory; the nearest themselves; drawn from all"""
    num_negatives: int = 16384
    """of an image, at most what has another label"""
    pool: float = 0.1
    """share of the memory that semi_hard and semi_easy draw from"""
    inter_margin: float = -0.5
    """subtracted from the similarity of positives of other images, so that below 0 it makes them easier"""
    margin_form: Literal["cosine", "arc"] = "cosine"
    """arc: added to the angle instead, in radians"""
    exclude_self: bool = False
    """an image is no positive of its own while its cluster has others"""
    memory_momentum: float = 0.0
    """share of a memory row that stays when its image comes by"""
    labels: Literal["online", "offline"] = "online"
    """online: an image takes the label of its nearest centroid at each visit; offline: k-means anew, and only then"""
    centroid_every: int = 10
    """steps after which online centroids are computed anew"""
    cluster_every: int = 4
    """epochs after which offline k-means runs again"""

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(self.pairs == "views", "method.pairs", "'views', since pseudo-labels are made here", repr(self.pairs))
        expect(not self.bank, "method.bank", "off, since the memory between images is another", self.bank)
        fraction("method.inter_weight", self.inter_weight)
        expect(self.num_clusters == 0 or self.num_clusters >= 2, "method.num_clusters", "0, or 2 or more",
               self.num_clusters)  # fmt: skip
        for name in ("min_cluster", "num_negatives", "centroid_every", "cluster_every"):
            expect(getattr(self, name) >= 1, f"method.{name}", "1 or more", getattr(self, name))
        expect(0 < self.pool <= 1, "method.pool", "a number in (0, 1]", self.pool)
        expect(-2 <= self.inter_margin <= 2, "method.inter_margin", "a number in [-2, 2]", self.inter_margin)
        expect(0 <= self.memory_momentum < 1, "method.memory_momentum", "a number in [0, 1)", self.memory_momentum)

    def build(self, info: DataInfo, encoder: nn.Module, views: Views) -> Method:
        from nearfar_images.methods.interclr import InterCLR

        return InterCLR(self, info, encoder, views)


def interclr() -> Recipe:
    """MoCo with the branch between images for your own images on one machine."""
    return Recipe(
        name="images/interclr",
        method=InterCLRConfig(momentum=0.99, shuffle_keys=True),
        views=_views.small(),
        encoder=EncoderConfig(name="auto"),
        optimiser=OptimiserConfig(name="adamw", lr=1e-3, weight_decay=1e-4, warmup_epochs=5.0),
        trainer=TrainerConfig(epochs=100, batch_size=256),
    )


def interclr_imagenet() -> Recipe:
    """The authors' ImageNet setting: ResNet-50, 10000 clusters, queue 65536, batch 256, SGD, 200 epochs."""
    head = HeadConfig(layers=2, hidden=2048, dim=128, norm="none")
    views = ImageViewConfig(
        crop_scale=(0.2, 1.0), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, blur=0.5, exact_colour=True,
        mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
    )  # fmt: skip
    return dataclasses.replace(
        interclr(),
        name="images/interclr_imagenet",
        method=InterCLRConfig(head=head, queue=65536, shuffle_keys=True, num_clusters=10000),
        views=views,
        encoder=EncoderConfig(name="torchvision/resnet50"),
        optimiser=OptimiserConfig(name="sgd", lr=0.03, momentum=0.9, weight_decay=1e-4),
        trainer=TrainerConfig(epochs=200, batch_size=256),
    )


def interclr_simclr() -> Recipe:
    """SimCLR with the branch between images for your own images."""
    method = InterCLRConfig(loss="nt_xent", key_encoder="shared", queue=0, symmetric=True)
    return dataclasses.replace(interclr(), name="images/interclr_simclr", method=method)


def _on_digits(name: str, **options: Any) -> Recipe:
    method = InterCLRConfig(
        head=_digits.HEAD, momentum=0.99, queue=1024, shuffle_keys=True, num_clusters=30, num_negatives=256, pool=0.2,
        **options,
    )  # fmt: skip
    return _digits.demonstration(name, method)


def interclr_digits() -> Recipe:
    """The demonstration: digits, 30 clusters, 256 semi-hard negatives, margin -0.5."""
    return _on_digits("interclr_digits")


def interclr_hard_digits() -> Recipe:
    """The nearest of other clusters as negatives, on digits."""
    return _on_digits("interclr_hard_digits", negatives="hard")


def interclr_random_digits() -> Recipe:
    """Random members of other clusters as negatives, on digits."""
    return _on_digits("interclr_random_digits", negatives="random")


def interclr_plain_digits() -> Recipe:
    """Without a margin, on digits."""
    return _on_digits("interclr_plain_digits", inter_margin=0.0)


def interclr_strict_digits() -> Recipe:
    """A margin of +0.5, on digits."""
    return _on_digits("interclr_strict_digits", inter_margin=0.5)


def interclr_offline_digits() -> Recipe:
    """Labels by k-means every fourth epoch alone, on digits."""
    return _on_digits("interclr_offline_digits", labels="offline")


RECIPES = {
    recipe.__name__: recipe
    for recipe in (
        interclr, interclr_imagenet, interclr_simclr, interclr_digits, interclr_hard_digits, interclr_random_digits,
        interclr_plain_digits, interclr_strict_digits, interclr_offline_digits,
    )
}  # fmt: skip
DEMONSTRATION = Demonstration(
    arms=(
        "interclr", "interclr_random", "interclr_hard", "interclr_plain", "interclr_strict", "interclr_offline", "moco",
        "untrained",
    ),
    run="nearfar_images.demonstrations.interclr:arm",
    data="scikit-learn's digits, 1,347 to learn from and 450 held out",
)  # fmt: skip
