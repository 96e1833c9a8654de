"""ORL: BYOL of whole scenes finds regions that correspond across images; a second run learns from those too."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from nearfar.catalog import Claim, Demonstration, System, Taxonomy
from nearfar.checks import expect
from nearfar.config import (
    DataConfig,
    DataInfo,
    EncoderConfig,
    FrameConfig,
    HeadConfig,
    OptimiserConfig,
    TrainerConfig,
)
from nearfar.recipe import Recipe
from nearfar_images.systems import _digits, _views

if TYPE_CHECKING:
    from torch import nn

    from nearfar.data import Source
    from nearfar.method import Method, Views

CARD = System(
    slug="orl",
    title="Unsupervised Object-Level Representation Learning from Scene Images",
    authors="Jiahao Xie, Xiaohang Zhan, Ziwei Liu, Yew Soon Ong, Chen Change Loy",
    year=2021,
    venue="NeurIPS",
    plugin="images",
    kind="pipeline",
    summary="pretrains on scenes of several objects: matching regions of similar images are found and drawn together",
    recipe="images/orl",
    taxonomy=Taxonomy(positive="context", negative="none", key="momentum", loss="regression"),
    evidence="code",
    oracles=(
        "of proposals made by hand, one too small, one too thin, one overlapping, exactly the others stay, in order; "
        "where none stays it is the first",
        "pairs are those of a brute-force sort of a 3 x 4 matrix, query = flat // R_k and key = flat % R_k, and there "
        "is one at least for fewer than 10 boxes",
        "a jittered box lies inside of the image with an IoU above 0.5, or is the box itself; IoU against counted "
        "pixels",
        "a term of the loss is 0 for parallel and 4 for opposite vectors, keys get no gradient, and without weights "
        "of regions the total is BYOL's on the same inputs",
    ),
    claim=Claim(metric="multi_label_map", order=("orl", "byol"), margin=0.02),
    export=("safetensors", "onnx"),
)

_HEAD = HeadConfig(layers=2, hidden=1024, dim=256, last_bias=False)


@dataclass(frozen=True, kw_only=True)
class ORLConfig(FrameConfig):
    """The three branches, and how regions are looked for."""

    head: HeadConfig = _HEAD
    predictor: HeadConfig = _HEAD
    key_encoder: Literal["shared", "ema", "frozen"] = "ema"
    momentum: float = 0.99
    momentum_end: float = 1.0
    global_weight: float = 1.0
    """of whole images"""
    intra_weight: float = 1.0
    """of a region and its jittered copy; 0: without them"""
    inter_weight: float = 1.0
    """of two regions that correspond across images; 0: without them"""
    patch_size: int = 0
    """side of the regions' views in pixels; 0: three sevenths of the image's, 96 of 224"""
    regions: str = ""
    """file of regions that were found already; empty: they are looked for first, in two stages before the run"""
    prior: str = ""
    """folder of a run of another recipe, whose encoder and head look for regions; empty: BYOL is trained first"""
    prior_epochs: int = 0
    """of that BYOL; 0: as many as trainer.epochs"""
    num_neighbours: int = 10
    """similar images of every image"""
    proposals: Literal["auto", "selective", "grid"] = "auto"
    """selective: OpenCV's selective search; grid: squares of four sizes; auto: selective where it is installed"""
    least_side: int = 0
    """pixels of a region; 0: a fifth of the image's shorter side"""
    most_ratio: float = 3.0
    """of a region's longer side to its shorter"""
    most_iou: float = 0.5
    """overlap of two regions of an image"""
    most_boxes: int = 100
    """regions of an image"""
    pair_share: float = 0.1
    """most similar pairs of two images that are kept, as a share of the first one's regions"""

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(self.key_encoder == "ema", "method.key_encoder", "'ema'", repr(self.key_encoder))
        expect(self.queue == 0, "method.queue", "0, since there are no negatives", self.queue)
        expect(self.symmetric, "method.symmetric", "True, since each view predicts the other", self.symmetric)
        expect(self.predictor.kind != "none", "method.predictor.kind", "'linear' or 'mlp'", repr(self.predictor.kind))
        expect(self.head.kind == "none" or self.predictor.dim == self.head.dim, "method.predictor.dim",
               f"{self.head.dim}, that of method.head", self.predictor.dim)  # fmt: skip
        expect(self.global_weight > 0, "method.global_weight", "above 0", self.global_weight)
        for name in ("intra_weight", "inter_weight", "patch_size", "prior_epochs", "least_side"):
            expect(getattr(self, name) >= 0, f"method.{name}", "0 or more", getattr(self, name))
        for name in ("num_neighbours", "most_boxes", "most_ratio"):
            expect(getattr(self, name) >= 1, f"method.{name}", "1 or more", getattr(self, name))
        expect(0 <= self.most_iou <= 1, "method.most_iou", "a number in [0, 1]", self.most_iou)
        expect(0 < self.pair_share <= 1, "method.pair_share", "a number in (0, 1]", self.pair_share)
        expect(not (self.regions and self.prior), "method.prior", "empty with method.regions", self.prior)

    @property
    def stages(self) -> str:
        """What trains in stages, where no regions are given."""
        return "" if self.regions or not (self.intra_weight or self.inter_weight) else "nearfar_images.orl:train"

    def side(self, image_size: int) -> int:
        """Side of the regions' views in pixels."""
        return self.patch_size or max(round(image_size * 3 / 7), 1)

    def source_for(self, source: Source, size: int) -> Source:
        """The source with patches of its regions beside the images."""
        if not self.regions:
            return source
        from nearfar_images.correspondence import Correspondence, with_regions

        return with_regions(source, Correspondence.load(self.regions), self.side(size))

    def build(self, info: DataInfo, encoder: nn.Module, views: Views) -> Method:
        from nearfar_images.methods.orl import ORL

        return ORL(self, info, encoder, views)


def orl() -> Recipe:
    """ORL for your own photographs of several objects on one machine; BYOL of the same length comes first."""
    return Recipe(
        name="images/orl",
        method=ORLConfig(),
        views=_views.byol(),
        encoder=EncoderConfig(name="auto"),
        optimiser=OptimiserConfig(name="adamw", lr=1e-3, weight_decay=1e-4, warmup_epochs=5.0),
        trainer=TrainerConfig(epochs=100, batch_size=256),
    )


def orl_coco() -> Recipe:
    """The paper's COCO setting: ResNet-50, batch 512, SGD 0.4, 800 epochs for either run, boxes of 96 pixels."""
    head = dataclasses.replace(_HEAD, hidden=4096)
    return dataclasses.replace(
        orl(),
        name="images/orl_coco",
        method=ORLConfig(head=head, predictor=head, patch_size=96, least_side=96, proposals="selective"),
        data=DataConfig(image_size=224, channels=3),
        encoder=EncoderConfig(name="torchvision/resnet50"),
        optimiser=OptimiserConfig(name="sgd", lr=0.4, momentum=0.9, weight_decay=1e-4, warmup_epochs=4.0),
        trainer=TrainerConfig(epochs=800, batch_size=512, evaluate_every=50),
    )


def orl_digits() -> Recipe:
    """For a quick look: digits as they are, one an image; `nearfar demonstrate orl` makes scenes of several."""
    head = HeadConfig(layers=2, hidden=128, dim=64, last_bias=False)
    method = ORLConfig(head=head, predictor=head, momentum=0.98, proposals="grid", num_neighbours=5, most_boxes=20)
    recipe = _digits.demonstration("orl_digits", method)
    return dataclasses.replace(recipe, trainer=dataclasses.replace(recipe.trainer, epochs=15, batch_size=128))


RECIPES = {"orl": orl, "orl_coco": orl_coco, "orl_digits": orl_digits}
DEMONSTRATION = Demonstration(
    arms=("orl", "byol", "byol_long", "untrained"),
    run="nearfar_images.demonstrations.orl:arm",
    data="scenes of 96 pixels with 3 of scikit-learn's digits on clutter, 512 to learn from and 256 of other digits",
)
