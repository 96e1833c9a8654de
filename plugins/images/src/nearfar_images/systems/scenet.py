"""SCE-Net: several notions of similarity in one embedding, and which of them a comparison is about, learnt unsaid."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from nearfar.catalog import Claim, Demonstration, System, Taxonomy
from nearfar.checks import expect
from nearfar.config import (
    DataConfig,
    DataInfo,
    EncoderConfig,
    FrameConfig,
    HeadConfig,
    ImageViewConfig,
    OptimiserConfig,
    TrainerConfig,
)
from nearfar.recipe import Recipe
from nearfar_images.systems import _digits
from nearfar_images.systems._checks import one_encoder

if TYPE_CHECKING:
    from torch import nn

    from nearfar.method import Method, Views

CARD = System(
    slug="scenet",
    title="Learning Similarity Conditions Without Explicit Supervision",
    authors="Reuben Tan, Mariya I. Vasileva, Kate Saenko, Bryan A. Plummer",
    year=2019,
    venue="ICCV",
    plugin="images",
    kind="train",
    summary="trains an embedding with labels under several notions of similarity, and learns which one matters when",
    recipe="images/scenet",
    taxonomy=Taxonomy(positive="label", negative="batch", key="shared", loss="energy"),
    evidence="code",
    oracles=(
        "with one mask its weight is 1 and u is the normalised masked embedding; with a mask of ones it is a plain "
        "normalised triplet loss",
        "weights that are one-hot give the conditional similarity network whose condition is known",
        "weights sum to 1; an embedding times a positive factor changes neither u nor weights",
        "in pairs d(a, b) = d(b, a) and d(a, a) = 0; three equal images cost the margin",
        "masks get gradient in positive entries alone; their penalty is the mean L1 norm by hand",
    ),
    claim=Claim(metric="accuracy", order=("csn", "scenet", "single"), margin=0.02),
    export=("safetensors", "onnx"),
)


@dataclass(frozen=True, kw_only=True)
class SCENetConfig(FrameConfig):
    """Masked sub-spaces, who tells them apart, and the triplets."""

    head: HeadConfig = field(default_factory=lambda: HeadConfig(kind="linear", dim=64))
    notions: str = "path"
    """the batch's field with one integer a notion of similarity; path: a notion is to agree down to a level of
    data.levels"""
    num_conditions: int = 4
    """masks; at least the notions with conditions known"""
    conditions: Literal["latent", "known", "none"] = "latent"
    """weights of the masks: inferred from the images; given by the triplet's notion (a conditional similarity network);
    none: one embedding, no masks"""
    form: Literal["pair", "triplet"] = "pair"
    """what weights are inferred from: the two images compared; or all three of a triplet in the order anchor, far,
    close, as in the authors' code"""
    hidden: int = 32
    """width of the branch that infers weights"""
    masks: Literal["learnt", "disjoint"] = "learnt"
    """start: drawn from N(0.9, 0.7^2); or 1 in a part of its own and 0.1 elsewhere"""
    margin: float = 0.2
    norm_weight: float = 5e-3
    """of the embeddings' length"""
    mask_weight: float = 5e-4
    """of the masks' L1 norm"""

    def __post_init__(self) -> None:
        super().__post_init__()
        one_encoder(self)
        expect(bool(self.notions), "method.notions", "a field of the batch", repr(self.notions))
        for name in ("num_conditions", "hidden"):
            expect(getattr(self, name) >= 1, f"method.{name}", "1 or more", getattr(self, name))
        for name in ("margin", "norm_weight", "mask_weight"):
            expect(getattr(self, name) >= 0, f"method.{name}", "0 or more", getattr(self, name))
        expect(self.form == "pair" or self.conditions == "latent", "method.form", "'pair' where conditions are not "
               "latent", repr(self.form))  # fmt: skip

    @property
    def needs_columns(self) -> tuple[str, ...]:
        """A path of labels of every sample, where its levels are the notions."""
        return ("path",) if self.notions == "path" else ()

    def build(self, info: DataInfo, encoder: nn.Module, views: Views) -> Method:
        from nearfar_images.methods.scenet import SCENet

        return SCENet(self, encoder, views)


def scenet() -> Recipe:
    """SCE-Net for your own images in nested folders, COARSE/FINE/IMAGE; the paper's size, rate and batch."""
    return Recipe(
        name="images/scenet",
        method=SCENetConfig(),
        data=DataConfig(levels=("folder1", "folder2"), image_size=112),
        views=ImageViewConfig(num_views=1, crop_scale=(0.8, 1.0), flip=0.5, jitter=0.0, grayscale=0.0),
        encoder=EncoderConfig(name="torchvision/resnet18"),
        optimiser=OptimiserConfig(name="adamw", lr=5e-5, weight_decay=0.0),
        trainer=TrainerConfig(epochs=200, batch_size=96),
    )


def _on_digits(name: str, **options: Any) -> Recipe:
    recipe = _digits.demonstration(name, SCENetConfig(**options))
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, levels=("form", "label")))


def scenet_digits() -> Recipe:
    """Digits that are alike by what they are drawn of (a loop, straight, open), or by the digit."""
    return _on_digits("scenet_digits", num_conditions=2)


def scenet_known_digits() -> Recipe:
    """The same with the notion known to the network: a conditional similarity network."""
    return _on_digits("scenet_known_digits", num_conditions=2, conditions="known")


def scenet_single_digits() -> Recipe:
    """The same without masks: one embedding for both notions."""
    return _on_digits("scenet_single_digits", conditions="none")


RECIPES = {recipe.__name__: recipe for recipe in (scenet, scenet_digits, scenet_known_digits, scenet_single_digits)}
DEMONSTRATION = Demonstration(
    arms=("single", "scenet", "scenet_triplet", "csn", "untrained"),
    run="nearfar_images.demonstrations.scenet:arm",
    data="3,000 pictures of one thing of independent shape, colour and size; 600 others, and 600 of a shape never seen",
)
