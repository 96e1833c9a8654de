"""MACRL: a contrast between what is seen of two views, and the pixels of what is not.

Legend: B batch, V = 2 views, L patches, K kept patches, N class tokens, F feature, D embedding, P pixels of a patch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nearfar.batch import Batch, View
from nearfar.checks import expect
from nearfar.config import DataInfo, ImageViewConfig
from nearfar.method import Progress, Terms, Views
from nearfar.methods import Contrast
from nearfar.rng import Rng
from nearfar.views import ImageViews
from nearfar_images.methods._masked import (
    Decoder,
    Masking,
    check_masking,
    masking,
    needs_colour,
    normalise_patches,
    patch_grid,
    patchify,
    pixel_loss,
    visible,
)

if TYPE_CHECKING:
    from nearfar_images.systems.macrl import MACRLConfig

APART = 7919  # between the seeds of the two views' makers, whose draws would else be equal


class MACRL(Contrast):
    """The frame's contrast of masked views, and a decoder that both views share.

    The second view's keys come from the teacher; its reconstruction, from the student.

    Args:
        config: contrast, masks, decoder, weights.
        info: its `shape` tells the grid of patches.
        encoder: of `nearfar_images.encoders`; those that are no transformers see a learnt colour for what is removed.
        views: two random views.

    Attributes:
        side: (h, w) patches of a view.

    Raises:
        ValueError: a ratio that leaves no patch; not two views.

    Source: Yao, Desai, Palaniswami, "Masked Contrastive Representation Learning", 2022, rebuilt from its abstract.
    """

    config: MACRLConfig

    def __init__(self, config: MACRLConfig, info: DataInfo, encoder: nn.Module, views: Views) -> None:
        super().__init__(config, encoder, views)
        expect(len(info.shape) == 3, "info.shape", "(C, H, W)", info.shape)
        assert isinstance(views, ImageViews)
        expect(views.config.num_views == 2, "views.num_views", "2", views.config.num_views)
        self.side = patch_grid(encoder, info.shape)
        self.ratios, self.weights = (config.ratio_a, config.ratio_b), (config.weight_a, config.weight_b)
        for name, ratio in zip(("ratio_a", "ratio_b"), self.ratios, strict=True):
            check_masking(name, self.side, ratio, 1)
        channels, height, width = info.shape
        one = dataclasses.replace(views.config, num_views=1)
        second = without_colour(one) if config.asymmetric else one
        self.makers = [ImageViews(part, size=height, channels=channels) for part in (one, second)]
        both = bool(config.weight_b) or not self.query_views  # the student sees the second view
        painted = needs_colour(encoder) and bool(config.ratio_a or (both and config.ratio_b))
        self.colour = nn.Parameter(torch.zeros(channels)) if painted else None
        self.decoder: Decoder | None = None
        if any(self.weights):
            num = self.side[0] * self.side[1]
            was = encoder.training
            with torch.no_grad():
                x = torch.zeros(1, *info.shape, device=next(encoder.parameters()).device)
                first = masking(torch.zeros(1, num, device=x.device), self.side, 0.0)
                prefix = visible(encoder.eval(), x, first, self.side, x.new_zeros(channels))[1]
            encoder.train(was)
            self.decoder = Decoder(
                prefix.shape[2], num, channels * height * width // num, width=config.decoder_dim,
                depth=config.decoder_depth, heads=config.decoder_heads, num_prefix=prefix.shape[1],
            )  # fmt: skip
        if not config.contrast_weight:  # nothing trains it
            self.head.requires_grad_(False)
            self.predictor.requires_grad_(False)

    # -- the step ------------------------------------------------------------------------------------------------------

    def views(self, batch: Batch, rng: Rng) -> Batch:
        """The two views, and `noise` [B, 2, L], by which patches are removed."""
        raw, index = batch[self.field], batch["index"]
        rngs = (rng, dataclasses.replace(rng, seed=rng.seed + APART))
        made = [maker(raw, index, one)[0] for maker, one in zip(self.makers, rngs, strict=True)]
        num = self.side[0] * self.side[1]
        noise = torch.stack([rng.at(view=v).uniform(index, "macrl.mask", num) for v in range(2)], 1)
        rest = {name: value for name, value in batch.items() if name != self.field}
        return rest | {"views": made, "noise": noise}

    def maskings(self, batch: Batch) -> list[Masking]:
        """Which patches of each view are seen."""
        return [masking(batch["noise"][:, v], self.side, self.ratios[v]) for v in range(2)]

    def see(self, encoder: nn.Module, view: View, kept: Masking) -> tuple[Tensor, Tensor, Tensor]:
        """Features [B, F], class tokens [B, N, F] and kept patches [B, K, F] of a view."""
        colour = view.data.new_zeros(view.data.shape[1]) if self.colour is None else self.colour
        return visible(encoder, view.data, kept, self.side, colour)

    @torch.no_grad()
    def targets(self, batch: Batch, progress: Progress) -> dict[str, Any]:
        """Keys [B, V, D] of the teacher, who sees the same patches as the student."""
        found: dict[str, Any] = {"index": batch["index"]} if self.bank is not None else {}
        if self.queue is not None and self.config.pairs == "labels":
            found["label"] = batch["label"]
        if self.teacher is None:
            return found
        encoder, head = self.teacher.module.children()
        first = self.query_views
        seen = zip(batch["views"][first:], self.maskings(batch)[first:], strict=True)
        feature = torch.cat([self.see(encoder, view, kept)[0] for view, kept in seen])
        return found | {"key": head(feature).unflatten(0, (2 - first, -1)).transpose(0, 1)}

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Embeddings [B, V, D] of the query views, and predicted pixels [B, L, P] of the reconstructed ones."""
        queries, found, features = self.query_views or 2, {}, []
        for v, (view, kept) in enumerate(zip(batch["views"], self.maskings(batch), strict=True)):
            if v >= queries and not self.weights[v]:
                continue
            feature, prefix, patches = self.see(self.encoder, view, kept)
            if v < queries:
                features.append(feature)
            if self.weights[v]:
                assert self.decoder is not None
                found[f"pixels{v}"] = self.decoder(prefix, patches, kept.restore)
        projection = self.head(torch.cat(features)).unflatten(0, (queries, -1)).transpose(0, 1)
        if self.config.predictor.kind == "none":
            return found | {"embedding": projection}
        embedding = self.predictor(projection.flatten(0, 1)).unflatten(0, projection.shape[:2])
        return found | {"embedding": embedding, "projection": projection}

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        """The contrast, and the L1 distance of removed patches from the view's own pixels."""
        config, terms = self.config, Terms()
        if config.contrast_weight:
            terms = super().loss(z, batch, targets, progress)
            terms.weights["contrast"] = config.contrast_weight
        for v, (view, kept) in enumerate(zip(batch["views"], self.maskings(batch), strict=True)):
            if self.weights[v]:
                target = patchify(view.data, self.side)
                target = normalise_patches(target) if config.normalise else target
                loss = pixel_loss(z[f"pixels{v}"], target, kept.mask, power=1)
                terms.add(f"pixels_{'ab'[v]}", loss, weight=self.weights[v], count=len(target))
        return terms


def without_colour(config: ImageViewConfig) -> ImageViewConfig:
    """The same crops, flips and turns, and nothing that changes pixel values."""
    return dataclasses.replace(
        config, jitter=0.0, grayscale=0.0, blur=0.0, solarize=0.0, gain=(1.0, 1.0), noise=0.0
    )  # fmt: skip
