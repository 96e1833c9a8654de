"""Debiased contrast between two views, with further views to estimate the share of false negatives.

Legend: B batch, V views, D embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nearfar import distributed
from nearfar.batch import Batch
from nearfar.contrast import contrast
from nearfar.method import Progress, Terms
from nearfar.methods import Frame
from nearfar.objectives import debiased

if TYPE_CHECKING:
    from nearfar_images.systems.debiased import DebiasedConfig


class Debiased(Frame):
    """`nearfar.objectives.debiased` of the first two views; views after them are its `more_positives`.

    Args:
        config: prior, hardness, temperature.
        encoder: from a view to features.
        views: two random views, or more.

    Source: Chuang, Robinson, Lin, Torralba, Jegelka, "Debiased Contrastive Learning", NeurIPS 2020.
    """

    config: DebiasedConfig

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        """The corrected contrast of every view against those of all processes."""
        z_VBD = z["embedding"].transpose(0, 1)
        if self.config.drop_false_negatives:
            return self._without_false_negatives(z_VBD[:2], batch["label"])
        gathered, offset = self.gathered(z_VBD[:2])
        loss, stats = debiased(
            z_VBD[:2],
            class_prior=self.config.class_prior,
            hardness=self.config.hardness,
            more_positives=z_VBD[2:].transpose(0, 1) if len(z_VBD) > 2 else None,
            temperature=self.config.temperature,
            gathered=gathered,
            offset=offset,
            with_stats=True,
        )
        return Terms().add("debiased", loss, count=stats.num_anchors).log(at_floor=stats.at_floor)

    def _without_false_negatives(self, z_VBD: Tensor, label_B: Tensor) -> Terms:
        """NT-Xent in which other samples of the anchor's label stand nowhere."""
        every_VND, offset = self.everyone(z_VBD), distributed.offset(z_VBD.shape[1])
        label_N = distributed.gather(label_B, grad=False)
        row_B = torch.arange(len(label_B), device=label_B.device) + offset
        own = torch.cat([row_B, row_B + len(label_N)])
        loss, stats = contrast(
            z_VBD.flatten(0, 1),
            every_VND.flatten(0, 1),
            targets=(own + len(label_N)) % (2 * len(label_N)),
            own=own,
            ignore=(label_B.repeat(2), label_N.repeat(2)),
            temperature=self.config.temperature,
            with_stats="counts",
        )
        false = (label_B[:, None] == label_N).float().sum(1) - 1
        share = false.mean() / max(len(label_N) - 1, 1)
        return Terms().add("contrast", loss, count=stats.num_anchors).log(false_negatives=share)
