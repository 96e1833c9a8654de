"""PCL-SR: enlarged pictures are drawn to sharpened true ones and away from blurred ones, in an adaptive embedding."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from nearfar.catalog import Claim, Demonstration, System, Taxonomy
from nearfar.checks import expect, expect_positive
from nearfar.config import (
    DataConfig,
    DataInfo,
    EncoderConfig,
    ImageViewConfig,
    MethodConfig,
    OptimiserConfig,
    TrainerConfig,
)
from nearfar.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

    from nearfar.method import Method, Views

CARD = System(
    slug="pcl_sr",
    title="A Practical Contrastive Learning Framework for Single-Image Super-Resolution",
    authors="Gang Wu, Junjun Jiang, Xianming Liu",
    year=2023,
    venue="IEEE TNNLS",
    plugin="images",
    kind="train",
    summary="trains networks that enlarge pictures to come near sharpened true pictures and away from blurred ones",
    recipe="images/pcl_sr",
    taxonomy=Taxonomy(positive="transformation", negative="mined", key="frozen", loss="probabilistic"),
    evidence="code",
    oracles=(
        "the contrast's gradient reaches the enlarged picture, and neither the true one, the negatives nor the "
        "embedding's parameters",
        "an enlarged picture that is the one positive: cosine form mean sim(N) - 1; InfoNCE log(1 + N) where all are "
        "equally similar, log(1 + N e^-2) with the positive at 1 and negatives at -1",
        "the bands of edges of a picture of one colour are 0; the four bands have the energy of the picture",
        "sharpening by 1 and blurring by 0 change nothing; sharpening by more raises the energy of edges, blurring "
        "lowers it",
        "the dual loss equals brute force, is 0 for r far above f, and 2 log(1 + m) for zeros with m of each",
    ),
    claim=Claim(metric="high_band_error", order=("pcl", "l1"), direction="lower"),
    export=("none: what is trained makes pictures; see nearfar images upscale",),
)


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """The network that enlarges."""

    kind: Literal["edsr", "rcan"] = "edsr"
    width: int = 64
    """channels inside"""
    blocks: int = 16
    """residual blocks; of rcan in every group"""
    groups: int = 10
    """of rcan"""
    weights: str = ""
    """what to start from: the folder of a run, or a local .safetensors file"""

    def __post_init__(self) -> None:
        for name in ("width", "blocks", "groups"):
            expect(getattr(self, name) >= 1, f"method.network.{name}", "1 or more", getattr(self, name))


@dataclass(frozen=True, kw_only=True)
class PCLSRConfig(MethodConfig):
    """The scale, the network, and what its pictures are contrasted with."""

    scale: Literal[2, 3, 4] = 2
    """how many times as large"""
    network: NetworkConfig = field(default_factory=NetworkConfig)
    num_crops: int = 4
    """crops of every picture in a batch; a crop has data.image_size pixels a side"""
    contrast: Literal["info_nce", "cosine", "none"] = "info_nce"
    """none: the L1 loss alone"""
    weight: float = 5.0
    """of the contrast beside L1"""
    temperature: float = 1.0
    """of info_nce"""
    num_samples: int = 3
    """sharpened positives beside the true picture, and blurred negatives beside the bicubic one"""
    sharpen: tuple[float, float] = (1.0, 3.0)
    """range of the factor; below 1 a "sharpened" picture is a blurred one"""
    blur: tuple[float, float] = (0.1, 2.0)
    """range of the standard deviation in pixels, of either axis"""
    embedding: Literal["discriminator", "frozen"] = "discriminator"
    """discriminator: learns to tell real detail in a step of its own; frozen: stays as it is made, random"""
    width: int = 64
    """first width of the embedding network"""
    layers: tuple[int, ...] = (4,)
    """of its 8 layers, from 0, those whose maps are compared"""
    judge: Literal["dual", "bce", "lsgan", "relativistic"] = "dual"
    """the discriminator's loss"""
    judge_samples: bool = True
    """sharpened pictures are real and blurred ones fake to it, too"""

    def __post_init__(self) -> None:
        for name in ("num_crops", "num_samples", "width"):
            expect(getattr(self, name) >= 1, f"method.{name}", "1 or more", getattr(self, name))
        expect_positive("method.weight", self.weight)
        expect_positive("method.temperature", self.temperature)
        for name in ("sharpen", "blur"):
            low, high = getattr(self, name)
            fits = math.isfinite(high) and 0 <= low <= high
            expect(fits, f"method.{name}", "two finite numbers, 0 <= low <= high", (low, high))
        fits = bool(self.layers) and all(0 <= k < 8 for k in self.layers)
        expect(fits, "method.layers", "numbers from 0 to 7", self.layers)

    def without_weights(self) -> PCLSRConfig:
        return dataclasses.replace(self, network=dataclasses.replace(self.network, weights=""))

    def build(self, info: DataInfo, encoder: nn.Module, views: Views) -> Method:
        from nearfar_images.methods.pcl_sr import PCLSR

        return PCLSR(self, info, views=views)


def _tiny(name: str, **options: Any) -> Recipe:
    method = PCLSRConfig(network=NetworkConfig(width=16, blocks=4), width=16, **options)
    return dataclasses.replace(
        pcl_sr(), name=f"images/{name}", method=method,
        data=dataclasses.replace(pcl_sr().data, image_size=48),
        optimiser=OptimiserConfig(lr=1e-3, weight_decay=0.0, betas=(0.9, 0.99)),
    )  # fmt: skip


def pcl_sr() -> Recipe:
    """Doubles the side of your own pictures: EDSR's baseline of 16 blocks, crops of 96 pixels, from scratch."""
    return Recipe(
        name="images/pcl_sr",
        method=PCLSRConfig(),
        data=DataConfig(source="pictures", image_size=96, channels=3),
        views=ImageViewConfig(num_views=1, jitter=0.0, grayscale=0.0),
        encoder=EncoderConfig(name="convnet", width=8),
        optimiser=OptimiserConfig(lr=2e-4, weight_decay=0.0, betas=(0.9, 0.99)),
        trainer=TrainerConfig(epochs=300, batch_size=4, evaluate_every=20, monitor="psnr_y"),
    )


def pcl_sr_l1() -> Recipe:
    """The same without contrast: the L1 loss alone."""
    return dataclasses.replace(pcl_sr(), name="images/pcl_sr_l1", method=PCLSRConfig(contrast="none"))


def pcl_sr_rcan() -> Recipe:
    """The authors' setting of RCAN, four times the side; fine-tunes a network of --method.network.weights."""
    return dataclasses.replace(
        pcl_sr(), name="images/pcl_sr_rcan",
        method=PCLSRConfig(scale=4, network=NetworkConfig(kind="rcan", blocks=20), num_crops=1, sharpen=(0.5, 3.0)),
        data=DataConfig(source="pictures", image_size=192, channels=3),
        optimiser=OptimiserConfig(lr=5e-5, weight_decay=0.0),
        trainer=TrainerConfig(epochs=600, batch_size=16, evaluate_every=20, monitor="psnr_y"),
    )  # fmt: skip


def pcl_sr_tiny() -> Recipe:
    """Four blocks of width 16 and crops of 48 pixels, which a laptop trains."""
    return _tiny("pcl_sr_tiny")


def pcl_sr_tiny_rcan() -> Recipe:
    """Two groups of two blocks with channel attention, of width 16."""
    recipe = _tiny("pcl_sr_tiny_rcan")
    network = NetworkConfig(kind="rcan", width=16, blocks=2, groups=2)
    return dataclasses.replace(recipe, method=dataclasses.replace(recipe.method, network=network))  # type: ignore[call-arg]


def pcl_sr_tiny_l1() -> Recipe:
    """The tiny network with the L1 loss alone."""
    return _tiny("pcl_sr_tiny_l1", contrast="none")


def pcl_sr_tiny_frozen() -> Recipe:
    """The tiny network with contrast in a random embedding that never learns."""
    return _tiny("pcl_sr_tiny_frozen", embedding="frozen")


RECIPES = {
    recipe.__name__: recipe
    for recipe in (
        pcl_sr, pcl_sr_l1, pcl_sr_rcan, pcl_sr_tiny, pcl_sr_tiny_rcan, pcl_sr_tiny_l1, pcl_sr_tiny_frozen,
    )
}  # fmt: skip
DEMONSTRATION = Demonstration(
    arms=("pcl", "l1", "frozen", "bicubic"),
    run="nearfar_images.demonstrations.pcl_sr:arm",
    data="scikit-learn's two photographs of 640 x 427 pixels, three quarters to learn from, a quarter to enlarge twice",
)
