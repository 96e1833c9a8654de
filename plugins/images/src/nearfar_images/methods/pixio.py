"""Pixio: the pixels of removed blocks, told by a deep decoder.

Legend: B batch, L patches, N class tokens, D feature, P pixels of a patch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nearfar.batch import Batch
from nearfar.checks import expect
from nearfar.config import DataInfo
from nearfar.method import BATCH_NORM, Method, Progress, Terms, Views
from nearfar.models import TinyViT
from nearfar.rng import Rng
from nearfar_images.methods._masked import (
    Decoder,
    Masking,
    check_masking,
    masking,
    needs_colour,
    normalise_patches,
    patch_grid,
    patchify,
    visible,
)

if TYPE_CHECKING:
    from nearfar_images.systems.pixio import PixioConfig


class Pixio(Method):
    """An encoder that sees some blocks of an image, and a decoder that tells the others.

    Args:
        config: masks, class tokens, decoder.
        info: its `shape` tells the grid of patches.
        encoder: of `nearfar_images.encoders`; those that are no transformers see a learnt colour for what is removed.
        views: one random view.

    Attributes:
        side: (h, w) patches.
        block: side of a block in patches.

    Raises:
        ValueError: blocks that do not divide the grid; a ratio that keeps, or removes, no block.

    Source: Yang et al., "In Pursuit of Pixel Supervision for Visual Pre-training", 2025; He et al., "Masked
        Autoencoders Are Scalable Vision Learners", CVPR 2022.
    """

    def __init__(self, config: PixioConfig, info: DataInfo, encoder: nn.Module, views: Views) -> None:
        super().__init__()
        expect(len(info.shape) == 3, "info.shape", "(C, H, W)", info.shape)
        self.config, self.encoder, self.make_views = config, encoder, views
        model: Any = encoder.model
        if isinstance(model, TinyViT) and model.num_cls:
            model.num_cls = config.num_cls
            tokens = torch.zeros(1, config.num_cls, model.feature_dim)
            model.cls = nn.Parameter(nn.init.trunc_normal_(tokens, std=0.02))
        self.side = patch_grid(encoder, info.shape)
        self.block = config.block or max(1, min(4, min(self.side) // 4))
        check_masking("ratio", self.side, config.ratio, self.block)
        channels, height, width = info.shape
        self.colour = nn.Parameter(torch.zeros(channels)) if needs_colour(encoder) else None
        num = self.side[0] * self.side[1]
        was = encoder.training
        with torch.no_grad():
            x = torch.zeros(1, *info.shape, device=next(encoder.parameters()).device)
            everything = masking(torch.zeros(1, num, device=x.device), self.side, 0.0)
            prefix = visible(encoder.eval(), x, everything, self.side, x.new_zeros(channels))[1]
        encoder.train(was)
        self.decoder = Decoder(
            prefix.shape[2], num, channels * height * width // num, width=config.decoder_dim,
            depth=config.decoder_depth, heads=config.decoder_heads, num_prefix=prefix.shape[1],
        )  # fmt: skip
        norms = [n for n, m in self.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        self.cache = f"{BATCH_NORM} in {norms[0]} mixes samples" if norms else "exact"

    # -- the step ------------------------------------------------------------------------------------------------------

    def views(self, batch: Batch, rng: Rng) -> Batch:
        """The view, and `noise` [B, M], by which its M blocks are removed."""
        index = batch["index"]
        num = self.side[0] * self.side[1] // self.block**2
        made = self.make_views(batch["image"], index, rng)
        expect(len(made) == 1, "views.num_views", "1", len(made))
        rest = {name: value for name, value in batch.items() if name != "image"}
        return rest | {"views": made, "noise": rng.uniform(index, "pixio.mask", num)}

    def masking(self, batch: Batch) -> Masking:
        """Which patches of each image are seen."""
        return masking(batch["noise"], self.side, self.config.ratio, block=self.block)

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Predicted pixels of every patch [B, L, P]."""
        x, kept = batch["views"][0].data, self.masking(batch)
        colour = x.new_zeros(x.shape[1]) if self.colour is None else self.colour
        _, prefix, patches = visible(self.encoder, x, kept, self.side, colour)
        return {"pixels": self.decoder(prefix, patches, kept.restore)}

    def errors(self, z: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """Mean squared error [B] of each image's removed patches."""
        target = patchify(batch["views"][0].data, self.side).float()
        target = normalise_patches(target) if self.config.normalise else target
        mask = self.masking(batch).mask
        error_BL = (z["pixels"].float() - target).square().mean(2)
        return (error_BL * mask).sum(1) / mask.sum(1)

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        """The mean squared error of removed patches, of which every image has as many."""
        error_B = self.errors(z, batch)
        return Terms().add("pixels", error_B.mean(), count=len(error_B))

    # -- what users keep -----------------------------------------------------------------------------------------------

    def features(self, batch: Batch, output: str = "default") -> Tensor:
        """Encoder features [B, D] of the plain view: the mean of the class tokens."""
        return self.encoder(self.make_views.plain(batch["image"]))
