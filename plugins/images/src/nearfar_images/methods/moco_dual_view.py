"""Dual-view MoCo with hard negatives, rebuilt from what is published.

Legend: B batch, V views, N rows of all processes, K queue, D embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nearfar import distributed
from nearfar.batch import Batch
from nearfar.config import DataInfo
from nearfar.method import Progress, Terms, Views
from nearfar.methods import Frame
from nearfar.objectives import dual_view

if TYPE_CHECKING:
    from nearfar_images.systems.moco_dual_view import DualViewConfig


class DualView(Frame):
    """`nearfar.objectives.dual_view` of queries and the teacher's keys against the queue.

    While the queue is empty the other keys of the batch are the negatives. With labels the share of the queries' kept
    negatives that are of their class is logged as `false_negatives`; labels have no part in training.

    A reconstruction: how the key's side is optimised (here keys get no gradient, as in MoCo) and how many entries are
    kept were not read.

    Args:
        config: shares, weights, queue.
        info: whether there are labels.
        encoder: from a view to features.
        views: two random views.

    Source: after Hoang, Ngo, Pham, Nguyen, Bao, Phan, "Momentum Contrastive Learning with Enhanced Negative Sampling
        and Hard Negative Filtering", 2025.
    """

    config: DualViewConfig

    def __init__(self, config: DualViewConfig, info: DataInfo, encoder: nn.Module, views: Views) -> None:
        self.labelled = info.num_classes > 0
        queued = {"label": (0, torch.long)} if self.labelled else None
        super().__init__(config, encoder, views, queued=queued)

    def targets(self, batch: Batch, progress: Progress) -> dict[str, Any]:
        """Keys of the teacher, with labels where there are any."""
        return super().targets(batch, progress) | ({"label": batch["label"]} if self.labelled else {})

    def enqueued(self, targets: Mapping[str, Any]) -> dict[str, Tensor]:
        """Normalised keys of all processes, with labels where there are any."""
        rows = super().enqueued(targets)
        if self.labelled:
            rows["label"] = distributed.gather(targets["label"], grad=False).repeat(targets["key"].shape[1])
        return rows

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        """Both sides' losses over the pairs of views."""
        query_VBD, key_VBD = z["embedding"].transpose(0, 1), targets["key"].transpose(0, 1)
        parts = [self._pair(query_VBD[q], key_VBD[k], targets, progress)
                 for q, k in self.pairs(len(query_VBD), len(key_VBD))]  # fmt: skip
        terms = Terms().add("dual_view", torch.stack([part[0] for part in parts]).mean(), count=query_VBD.shape[1])
        for name in parts[0][1]:
            terms.log(**{name: torch.stack([part[1][name] for part in parts]).mean()})
        return terms

    def _pair(
        self, query_BD: Tensor, key_BD: Tensor, targets: Mapping[str, Any], progress: Progress
    ) -> tuple[Tensor, dict[str, Tensor]]:
        config = self.config
        options: dict[str, Any] = {
            "query_weight": config.query_weight, "key_weight": config.key_weight, "temperature": config.temperature,
            "with_stats": True,
        }  # fmt: skip
        assert self.queue is not None  # the config asks for one
        if len(self.queue):
            bank, label = self.queue.view("key"), self.queue.view("label") if self.labelled else None
            if progress.epoch >= config.warmup:
                options["drop_top"] = int(config.drop * len(bank))
                options["num_hard"] = max(1, int(config.keep * len(bank)))
                options["cosine_range"] = config.cosine_range
        else:
            bank = distributed.gather(key_BD, grad=False).float()
            label = distributed.gather(targets["label"], grad=False) if self.labelled else None
            own = torch.arange(len(query_BD), device=bank.device) + distributed.offset(len(query_BD))
            options["allowed"] = torch.arange(len(bank), device=bank.device) != own[:, None]
        loss, stats = dual_view(query_BD, key_BD.float(), bank, **options)
        logs = {"query_loss": stats.query_loss, "key_loss": stats.key_loss, "kept_cosine": stats.kept_cosine}
        if label is not None:
            kept = stats.kept >= 0
            same = (label[stats.kept.clamp_min(0)] == targets["label"][:, None]) & kept
            logs["false_negatives"] = same.sum() / kept.sum().clamp_min(1)
        return loss, logs
