"""iBOT: DINO, and the teacher's answers for patches that the student does not see.

Legend: B batch, V views, W views that the teacher sees, T = h w patches, M masked patches, E embedding, K prototypes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nearfar.batch import Batch
from nearfar.checks import expect
from nearfar.config import DataInfo
from nearfar.method import Progress, Terms, Views
from nearfar.objectives import masked_distillation
from nearfar.rng import Rng
from nearfar_images.methods._patches import block_mask, grid, see, token_dim
from nearfar_images.methods.dino import DINO, sum_of_logits

if TYPE_CHECKING:
    from nearfar_images.systems.ibot import IBOTConfig


class IBOT(DINO):
    """Class tokens as DINO does, and masked patches over the same head and prototypes.

    Args:
        config: DINO's options and how patches are hidden.
        info: its `shape` tells the grid of patches.
        encoder: of `nearfar_images.encoders`, with a feature map.
        views: random views, two or more, of one size.

    Attributes:
        grid: (h, w) patches of a view.
        mask_token: learnt, in the place of hidden patches; a token, or for encoders without tokens a colour.
        patch_centre: [K], moving average of the teacher's logits of patches.
    """

    config: IBOTConfig
    patch_centre: Tensor

    def __init__(self, config: IBOTConfig, info: DataInfo, encoder: nn.Module, views: Views) -> None:
        super().__init__(config, info, encoder, views)
        expect(len(info.shape) == 3, "info.shape", "(C, H, W)", info.shape)
        self.grid = grid(encoder, info.shape)
        self.mask_token = nn.Parameter(torch.zeros(token_dim(encoder, info.shape[0])))
        self.register_buffer("patch_centre", torch.zeros(config.num_prototypes))

    def views(self, batch: Batch, rng: Rng) -> Batch:
        """The views, and `mask`, bool [B, W, h, w]: which patches of the teacher's views the student does not see."""
        config = self.config
        masks = [
            block_mask(rng.at(view=v), batch["index"], self.grid, share=config.mask_share, ratio=config.mask_ratio)
            for v in range(config.teacher_views)
        ]
        batch = super().views(batch, rng)
        return batch | {"mask": torch.stack(masks, 1).to(batch["views"][0].data.device)}

    @torch.no_grad()
    def targets(self, batch: Batch, progress: Progress) -> dict[str, Any]:
        """The teacher's embeddings of whole images [B, W, E] and their patches [B, W, T, E], and sums of logits."""
        encoder, head = self.teacher_parts
        seen = self._seen(batch)
        feature, patches = see(encoder, torch.cat([view.data for view in seen]))
        key = _by_view(head.embed(feature), len(seen))
        patch = _by_view(head.embed(patches.flatten(0, 1)).unflatten(0, patches.shape[:2]), len(seen))
        return {
            "key": key, "total": sum_of_logits(head, key),
            "patch": patch, "patch_total": sum_of_logits(head, patch),
        }  # fmt: skip

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """The student's unit embeddings of views [B, V, E], the first of them masked, and of patches [B, W, T, E]."""
        views, mask_BWhw = batch["views"], batch["mask"]
        num, num_seen = len(mask_BWhw), mask_BWhw.shape[1]
        mask = mask_BWhw.transpose(0, 1).flatten(0, 1)
        if len(views) > num_seen:
            mask = torch.cat([mask, mask.new_zeros(num * (len(views) - num_seen), *mask.shape[1:])])
        feature, patches = see(self.encoder, torch.cat([view.data for view in views]), mask, self.mask_token)
        some = patches[: num * num_seen]
        return {
            "embedding": _by_view(self.head.embed(feature), len(views)),
            "patch": _by_view(self.head.embed(some.flatten(0, 1)).unflatten(0, some.shape[:2]), num_seen),
        }

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        """DINO's term, and the cross-entropy of masked patches with the teacher's answers for them."""
        terms = super().loss(z, batch, targets, progress)
        mask = batch["mask"].flatten(2)
        student = self.head.logits(z["patch"][mask])
        target = self.answers(targets["patch"][mask], self.patch_centre, progress)
        loss = masked_distillation(student, target, mask.flatten(0, 1), temperature=self.config.temperature)
        return terms.add("patches", loss, weight=self.config.patch_weight, count=float(len(mask))).log(
            masked=mask.float().mean()
        )

    def after_update(self, z: Mapping[str, Tensor], targets: Mapping[str, Any], progress: Progress) -> None:
        """As DINO, with the centre of patches."""
        super().after_update(z, targets, progress)
        self.move_centre(self.patch_centre, targets["patch_total"], targets["patch"].shape[:3].numel())


def _by_view(rows: Tensor, num_views: int) -> Tensor:
    """[V * B, ...], view after view, to [B, V, ...]."""
    return rows.unflatten(0, (num_views, -1)).transpose(0, 1)
