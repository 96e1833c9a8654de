"""GradCache: the loss of a large batch and its exact gradient, with the memory of a small one."""

from __future__ import annotations

import dataclasses

from nearfar.catalog import Claim, Demonstration, System, Taxonomy
from nearfar.config import ContrastConfig, EncoderConfig, HeadConfig, OptimiserConfig, TrainerConfig
from nearfar.recipe import Recipe
from nearfar_images.systems import _digits, _views

CARD = System(
    slug="gradcache",
    title="Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
    authors="Luyu Gao, Yunyi Zhang, Jiawei Han, Jamie Callan",
    year=2021,
    venue="RepL4NLP",
    plugin="images",
    kind="train",
    summary="trains on batches too large for memory: embeddings first, then the encoder chunk by chunk, exactly",
    recipe="images/gradcache",
    taxonomy=Taxonomy(positive="transformation", negative="batch", key="shared", loss="probabilistic"),
    evidence="code",
    oracles=(
        "gradients in chunks of 1, 3, 7 and the whole batch equal the plain ones to 1e-10 in float64, for NT-Xent, "
        "SupCon and CLIP, chunks that do not divide the batch included",
        "with dropout, loss and gradient are those of one graph over the same chunks that drew the same masks",
        "loss value, gradient of a learnable temperature and gradient of an encoder used on both sides are equal",
        "accumulating the losses of the chunks instead gives another gradient",
        "what autograd holds for a fixed chunk does not grow with the batch, embeddings apart",
    ),
    claim=Claim(metric="relative_gradient_error", order=("gradcache", "accumulated"), direction="lower", margin=0.1),
    export=("safetensors", "onnx"),
)

HEAD = HeadConfig(layers=2, dim=128, norm="layer")


def gradcache() -> Recipe:
    """SimCLR for your own images at a batch of 1024, of which a process holds the graph of 64.

    The encoder has no batch normalisation, whose statistics would be those of a chunk; the head takes layer norm.
    """
    return Recipe(
        name="images/gradcache",
        method=ContrastConfig(loss="nt_xent", temperature=0.1, head=HEAD),
        views=_views.small(),
        encoder=EncoderConfig(name="timm/vit_tiny_patch16_224", norm="group"),
        optimiser=OptimiserConfig(name="adamw", lr=1e-3, weight_decay=0.05, warmup_epochs=5.0),
        trainer=TrainerConfig(epochs=100, batch_size=1024, cache=64),
    )


def gradcache_digits() -> Recipe:
    """The demonstration: handwritten digits, a batch of 256 in chunks of 16."""
    recipe = _digits.demonstration(
        "gradcache_digits",
        ContrastConfig(loss="nt_xent", temperature=0.2, head=dataclasses.replace(_digits.HEAD, norm="layer")),
    )
    return dataclasses.replace(
        recipe,
        encoder=dataclasses.replace(recipe.encoder, norm="group"),
        trainer=dataclasses.replace(recipe.trainer, cache=16),
    )


RECIPES = {"gradcache": gradcache, "gradcache_digits": gradcache_digits}
DEMONSTRATION = Demonstration(
    arms=("gradcache", "accumulated"),
    run="nearfar_images.demonstrations.gradcache:arm",
    data="one batch of 256 digits in chunks of 16, beside the gradient of the whole",
)
