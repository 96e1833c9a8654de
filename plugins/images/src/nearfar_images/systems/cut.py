"""CUT: pictures of one kind into another without pairs; a patch of the output finds its own place in the input."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
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
    SamplerConfig,
    TrainerConfig,
)
from nearfar.recipe import Recipe

if TYPE_CHECKING:
    from torch import nn

    from nearfar.method import Method, Views

CARD = System(
    slug="cut",
    title="Contrastive Learning for Unpaired Image-to-Image Translation",
    authors="Taesung Park, Alexei A. Efros, Richard Zhang, Jun-Yan Zhu",
    year=2020,
    venue="ECCV 2020",
    plugin="images",
    kind="train",
    summary="turns pictures of one kind into another without pairs: each patch keeps what tells it from the others",
    recipe="images/cut",
    taxonomy=Taxonomy(positive="context", negative="batch", key="shared", loss="probabilistic"),
    evidence="code",
    oracles=(
        "a loop over patches equals the loss of all at once, and the shared InfoNCE with negatives of the same image",
        "equal orthonormal patches cost log(1 + (P - 1) exp(-1/t)), patches that are all alike log P",
        "another image of the batch changes nothing unless negatives come from the whole batch; keys get no gradient",
        "with a generator that commutes with mirroring, mirrored and plain inputs cost the same at mirrored places",
        "without the contrast the loss is that of the GAN alone; of one layer it is that layer's, of more their mean",
    ),
    claim=Claim(metric="content", order=("cut", "cut_external", "cut_gan"), margin=0.1),
    export=("none: what is trained makes pictures; see nearfar images translate",),
)


@dataclass(frozen=True, kw_only=True)
class CutConfig(MethodConfig):
    """The networks, where patches are taken, and what stands beside the contrast."""

    width: int = 64
    """channels of the generator's first layer"""
    num_blocks: int = 9
    """of the generator, residual"""
    layers: tuple[int, ...] = (0, 4, 8, 12, 16)
    """of the generator, where patches are compared: 0 the pixels, 4 and 8 before it halves, 12 and more its blocks"""
    num_patches: int = 256
    """places of an image and layer, fewer where a layer has fewer"""
    dim: int = 256
    """width of the vectors that are compared"""
    temperature: float = 0.07
    weight: float = 1.0
    """of the contrast beside the GAN; 0: the GAN alone"""
    identity: bool = True
    """half of the contrast compares the images of b with what the generator makes of them"""
    mirror: float = 0.0
    """probability that the generator sees an image mirrored, whose output is then mirrored back for the contrast"""
    negatives: Literal["image", "batch", "others"] = "image"
    """patches of the same image; of all images of the batch; of the other images alone, for comparison"""
    l1: float = 0.0
    """weight of the absolute difference of images of b and what the generator makes of them"""
    r1: float = 0.0
    """weight of the discriminator's squared gradient at images of b, halved"""
    discriminator_width: int = 64
    discriminator_layers: int = 3
    """halvings; with 3 a score sees 84 pixels, 70 but for the blurs"""
    discriminator_norm: bool = True
    """instance normalisation in the discriminator"""

    @property
    def needs_columns(self) -> tuple[str, ...]:
        return ("group",)

    def __post_init__(self) -> None:
        for name in ("width", "num_blocks", "num_patches", "dim", "discriminator_width", "discriminator_layers"):
            expect(getattr(self, name) >= 1, f"method.{name}", "1 or more", getattr(self, name))
        expect_positive("method.temperature", self.temperature)
        for name in ("weight", "l1", "r1"):
            expect(getattr(self, name) >= 0, f"method.{name}", "0 or more", getattr(self, name))
        expect(0 <= self.mirror <= 1, "method.mirror", "a number in [0, 1]", self.mirror)
        last = 11 + self.num_blocks
        rising = bool(self.layers) and list(self.layers) == sorted(set(self.layers))
        fits = rising and self.layers[0] >= 0 and self.layers[-1] <= last
        expect(fits, "method.layers", f"numbers from 0 to {last}, ascending", self.layers)
        alone = self.negatives == "image" and self.num_patches < 2
        expect(not alone, "method.num_patches", "2 or more with negatives 'image'", self.num_patches)

    def build(self, info: DataInfo, encoder: nn.Module, views: Views) -> Method:
        from nearfar_images.methods.cut import Cut

        return Cut(self, info, views)


def _pairs(num: int) -> dict[str, Any]:
    """So many images of either domain in a batch."""
    return {"sampler": SamplerConfig(kind="zipped", shares=(f"a={num}", f"b={num}"), length="longest")}


def _adam(hold: float, lr: float = 2e-4) -> OptimiserConfig:
    return OptimiserConfig(lr=lr, weight_decay=0.0, betas=(0.5, 0.999), schedule="linear", hold=hold)


def _crops(scale: tuple[float, float], **options: Any) -> ImageViewConfig:
    settings: dict[str, Any] = {"num_views": 1, "flip": 0.5, "jitter": 0.0, "grayscale": 0.0}
    return ImageViewConfig(crop_scale=scale, crop_ratio=(1.0, 1.0), **settings | options)


def cut() -> Recipe:
    """The authors' setting: one image of either domain a step, 256 pixels, 200 epochs and 200 of falling rate."""
    return Recipe(
        name="images/cut",
        method=CutConfig(),
        data=DataConfig(image_size=256, channels=3, validation=0.0),
        views=_crops((0.8, 0.8)),
        encoder=EncoderConfig(name="convnet", width=8),
        optimiser=_adam(0.5),
        trainer=TrainerConfig(epochs=400, batch_size=2, evaluate_every=0, evaluate_before=False, log_every=100),
        **_pairs(1),
    )


def fastcut() -> Recipe:
    """Faster and lighter: no identity, ten times the contrast, images mirrored at random; 150 epochs and 50 falling."""
    recipe = cut()
    return dataclasses.replace(
        recipe, name="images/fastcut", method=CutConfig(weight=10.0, identity=False, mirror=0.5),
        optimiser=_adam(0.75), trainer=dataclasses.replace(recipe.trainer, epochs=200),
    )  # fmt: skip


def sincut() -> Recipe:
    """One picture into the style of another: 16 crops of 64 pixels of either a step, negatives from all crops."""
    recipe = cut()
    method = CutConfig(
        layers=(0, 4, 8), num_patches=1, negatives="batch", weight=4.0, l1=1.0, r1=1.0, discriminator_norm=False,
        discriminator_layers=2,
    )  # fmt: skip
    return dataclasses.replace(
        recipe, name="images/sincut", method=method,
        data=DataConfig(image_size=512, channels=3, validation=0.0),
        views=_crops((0.006, 0.015), num_views=16, global_size=64),
        optimiser=OptimiserConfig(lr=2e-3, weight_decay=0.0, betas=(0.0, 0.99), schedule="linear", hold=0.5),
        trainer=dataclasses.replace(recipe.trainer, epochs=20000, checkpoint_every=1000, report=False),
    )  # fmt: skip


def cut_tiny() -> Recipe:
    """For images of 32 pixels: a generator of four blocks and width 16, 16 images of either domain a step."""
    recipe = cut()
    method = CutConfig(
        width=16, num_blocks=4, layers=(0, 4, 8, 12, 14), num_patches=64, dim=64, discriminator_width=32,
        discriminator_layers=2,
    )  # fmt: skip
    return dataclasses.replace(
        recipe, name="images/cut_tiny", method=method,
        data=DataConfig(image_size=32, channels=3, validation=0.0), views=_crops((0.8, 1.0), flip=0.0),
        optimiser=_adam(0.5, lr=3e-4),
        trainer=dataclasses.replace(recipe.trainer, epochs=40, batch_size=32, log_every=10), **_pairs(16),
    )  # fmt: skip


def _on_digits(name: str, **options: Any) -> Recipe:
    recipe = cut_tiny()
    return dataclasses.replace(
        recipe, name=f"images/{name}",
        method=dataclasses.replace(
            recipe.method, width=8, num_blocks=3, layers=(0, 4, 8, 12), discriminator_width=16, **options
        ),
        data=DataConfig(source="digit-styles", image_size=32, channels=3, validation=0.25),
        views=_crops((1.0, 1.0), flip=0.0),
        optimiser=_adam(0.5, lr=3e-4),
        trainer=dataclasses.replace(recipe.trainer, epochs=6, batch_size=16), **_pairs(8),
    )  # fmt: skip


def cut_digits() -> Recipe:
    """The demonstration: grey digits become thick, orange ones on violet."""
    return _on_digits("cut_digits")


def cut_external_digits() -> Recipe:
    """Negatives from other images alone, on digits."""
    return _on_digits("cut_external_digits", negatives="others")


def cut_gan_digits() -> Recipe:
    """The GAN alone, on digits."""
    return _on_digits("cut_gan_digits", weight=0.0)


RECIPES = {
    recipe.__name__: recipe
    for recipe in (cut, fastcut, sincut, cut_tiny, cut_digits, cut_external_digits, cut_gan_digits)
}
DEMONSTRATION = Demonstration(
    arms=("cut", "cut_external", "cut_gan", "untrained", "untranslated", "true"),
    run="nearfar_images.demonstrations.cut:arm",
    data="scikit-learn's digits of 32 pixels: 674 grey ones, 673 others thick, orange on violet; 450 held out",
)
