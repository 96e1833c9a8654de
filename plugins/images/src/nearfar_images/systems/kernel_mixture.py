"""Kernel InfoNCE: contrast as spectral clustering, under Gaussian and Laplacian kernels and mixtures of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from nearfar.catalog import Claim, Demonstration, System, Taxonomy
from nearfar.checks import expect, expect_positive
from nearfar.config import DataInfo, EncoderConfig, FrameConfig, HeadConfig, OptimiserConfig, TrainerConfig
from nearfar.recipe import Recipe
from nearfar_images.systems import _digits, _views

if TYPE_CHECKING:
    from torch import nn

    from nearfar.method import Method, Views

CARD = System(
    slug="kernel_mixture",
    title="Contrastive Learning Is Spectral Clustering On Similarity Graph",
    authors="Zhiquan Tan, Yifan Zhang, Jingqin Yang, Yang Yuan",
    year=2024,
    venue="ICLR",
    plugin="images",
    also=("image_text",),
    kind="train",
    summary="pretrains without labels by InfoNCE under kernels of the distance; shows it as spectral clustering",
    recipe="images/kernel_mixture",
    taxonomy=Taxonomy(positive="transformation", negative="batch", key="shared", loss="probabilistic"),
    evidence="code",
    oracles=(
        "with exponent 2 on unit vectors the loss is NT-Xent's at half the temperature",
        "with mixing 0 or 1 both mixtures are the loss of one kernel",
        "the expected InfoNCE of a random graph is the cut by its Laplacian over tau plus the sum of log R_i, to 1e-10",
        "identical embeddings give log(2N - 1) for every kernel, with a finite gradient",
        "the sum of kernels equals brute force for three samples; rotation changes nothing; the Laplacian kernel falls "
        "with distance",
    ),
    claim=Claim(metric="linear", order=("loss_sum", "gaussian"), margin=0.0),
    export=("safetensors", "onnx"),
)


@dataclass(frozen=True, kw_only=True)
class KernelMixtureConfig(FrameConfig):
    """Which kernels, and how they are mixed."""

    mode: Literal["single", "loss_sum", "kernel_sum", "concat"] = "loss_sum"
    """single: one kernel of exponent gamma; loss_sum: two losses, what the authors' code trains; kernel_sum: two
    kernels in one loss, their text; concat: each kernel sees one half of the embedding"""
    gamma: float = 1.0
    """exponent of the distance in (0, 2]; 1: Laplacian, 2: Gaussian; the other kernel of a mixture is Gaussian"""
    mixing: float = 0.5
    """share of the first kernel"""
    temperature: float = 0.1
    gaussian_temperature: float = 0.0
    """of the Gaussian in a mixture; 0: the same"""
    learnable_temperature: bool = False
    norm: float = 2.0
    """p >= 1 of the distance"""

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(0 < self.gamma <= 2, "method.gamma", "a number in (0, 2]", self.gamma)
        expect(0 <= self.mixing <= 1, "method.mixing", "a number in [0, 1]", self.mixing)
        expect_positive("method.temperature", self.temperature)
        expect(self.gaussian_temperature >= 0, "method.gaussian_temperature", "0 or more", self.gaussian_temperature)
        expect(self.norm >= 1, "method.norm", "1 or more", self.norm)
        even = self.head.kind == "none" or self.head.dim % 2 == 0
        expect(self.mode != "concat" or even, "method.head.dim", "an even number with mode 'concat'", self.head.dim)

    def build(self, info: DataInfo, encoder: nn.Module, views: Views) -> Method:
        from nearfar_images.methods.kernel_mixture import KernelContrast

        return KernelContrast(self, encoder, views)


def kernel_mixture() -> Recipe:
    """Kernel InfoNCE for your own images on one machine: the sum of a Laplacian and a Gaussian loss."""
    return Recipe(
        name="images/kernel_mixture",
        method=KernelMixtureConfig(temperature=0.4, head=HeadConfig(layers=2, dim=128)),
        views=_views.small(),
        encoder=EncoderConfig(name="auto"),
        optimiser=OptimiserConfig(name="adamw", lr=1e-3, weight_decay=1e-4, warmup_epochs=5.0),
        trainer=TrainerConfig(epochs=100, batch_size=256),
    )


def kernel_mixture_cifar() -> Recipe:
    """The reference code's CIFAR setting: ResNet-18 with the small stem, batch 128, 10 epochs of warm-up, cosine."""
    return Recipe(
        name="images/kernel_mixture_cifar",
        method=KernelMixtureConfig(
            temperature=0.1, head=HeadConfig(layers=2, hidden=2048, dim=128, last_bias=False), mixing=0.5
        ),
        views=_views.small(),
        encoder=EncoderConfig(name="torchvision/resnet18+small-stem"),
        optimiser=OptimiserConfig(name="adamw", lr=1e-3, weight_decay=1e-6, warmup_epochs=10.0),
        trainer=TrainerConfig(epochs=400, batch_size=128),
    )


def _on_digits(name: str, *, temperature: float = 0.4, **options: Any) -> Recipe:
    return _digits.demonstration(name, KernelMixtureConfig(head=_digits.HEAD, temperature=temperature, **options))


def kernel_mixture_digits() -> Recipe:
    """The demonstration: handwritten digits, the sum of a Laplacian and a Gaussian loss."""
    return _on_digits("kernel_mixture_digits")


def kernel_mixture_gaussian_digits() -> Recipe:
    """The Gaussian kernel alone, which is NT-Xent at half the temperature, on handwritten digits."""
    return _on_digits("kernel_mixture_gaussian_digits", mode="single", gamma=2.0)


def kernel_mixture_laplacian_digits() -> Recipe:
    """The Laplacian kernel alone, on handwritten digits."""
    return _on_digits("kernel_mixture_laplacian_digits", mode="single", gamma=1.0)


def kernel_mixture_kernel_sum_digits() -> Recipe:
    """One loss of the sum of both kernels, on handwritten digits."""
    return _on_digits("kernel_mixture_kernel_sum_digits", mode="kernel_sum")


def kernel_mixture_concat_digits() -> Recipe:
    """Each kernel on one half of the embedding, on handwritten digits."""
    return _on_digits("kernel_mixture_concat_digits", mode="concat")


def kernel_mixture_queue_digits() -> Recipe:
    """Against a queue of 1024 keys of a slow encoder, with the authors' mixing and temperatures for MoCo, on digits."""
    return _on_digits(
        "kernel_mixture_queue_digits", mixing=0.2, temperature=0.1, gaussian_temperature=0.3, key_encoder="ema",
        momentum=0.99, queue=1024, symmetric=False, shuffle_keys=True,
    )  # fmt: skip


RECIPES = {
    recipe.__name__: recipe
    for recipe in (
        kernel_mixture,
        kernel_mixture_cifar,
        kernel_mixture_digits,
        kernel_mixture_gaussian_digits,
        kernel_mixture_laplacian_digits,
        kernel_mixture_kernel_sum_digits,
        kernel_mixture_concat_digits,
        kernel_mixture_queue_digits,
    )
}
DEMONSTRATION = Demonstration(
    arms=("gaussian", "laplacian", "loss_sum", "kernel_sum", "concat", "untrained", "blocks", "blocks_spectral"),
    run="nearfar_images.demonstrations.kernel_mixture:arm",
    data="scikit-learn's digits, 1,347 to learn from and 450 held out; blocks: a random graph of three groups",
)
