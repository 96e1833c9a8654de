"""Core-tuning: a classifier and a focal contrast on features and on mixtures of hard pairs of them.

Legend: B batch, N rows of all processes, C classes, D feature.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nearfar import distributed
from nearfar.batch import Batch
from nearfar.checks import expect
from nearfar.config import DataInfo
from nearfar.method import Progress, Terms, Views
from nearfar.methods import Frame
from nearfar.negatives import hard_pairs
from nearfar.objectives import focal_supcon
from nearfar.rng import Rng
from nearfar.views.mix import symmetric_beta

if TYPE_CHECKING:
    from nearfar_images.systems.core_tuning import CoreTuningConfig


class Points(NamedTuple):
    """Features whose label is shared between two classes.

    Args:
        feature: [B, D].
        label: int64 [B], the class that has `share`.
        other: int64 [B], the class that has the rest.
        share: [B].
    """

    feature: Tensor
    label: Tensor
    other: Tensor
    share: Tensor


class CoreTuning(Frame):
    """L = cross-entropy of soft labels + w `nearfar.objectives.focal_supcon`, over features f and two mixtures of each.

    f+ = l f_p + (1 - l) f_n of the hardest positive and negative
    f- = l f_s + (1 - l) f_i of a random partner s, with l of `partner_share` or more

    Args:
        config: mixtures and weights.
        info: its `num_classes` is the width of the classifier.
        encoder: pretrained, from a view to features.
        views: one random view.

    Notes: hard pairs and partners are found among the rows of all processes.

    Source: Zhang, Hooi, Hu, Liang, Feng, "Unleashing the Power of Contrastive Self-Supervised Visual Models via
        Contrast-Regularized Fine-Tuning", NeurIPS 2021.
    """

    config: CoreTuningConfig

    def __init__(self, config: CoreTuningConfig, info: DataInfo, encoder: nn.Module, views: Views) -> None:
        super().__init__(config, encoder, views)
        self.classifier = nn.Linear(int(encoder.feature_dim), max(info.num_classes, 1), bias=False)  # type: ignore[arg-type]
        self.head.requires_grad_(config.contrast_weight > 0)

    def views(self, batch: Batch, rng: Rng) -> Batch:
        """The batch with its view, shares of both mixtures, and what orders partners."""
        index, alpha = batch["index"], self.config.alpha
        names = ("core_tuning.positive", "core_tuning.negative")
        shares = torch.stack([symmetric_beta(index, rng, alpha, name) for name in names], 1)
        order = rng.uniform(index, "core_tuning.partner")[:, 0]
        return super().views(batch, rng) | {"share": shares, "order": order}

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Features [B, D]."""
        views = batch["views"]
        expect(len(views) == 1, "views.num_views", "1", len(views))
        return {"embedding": self.encoder(views[0].data)}

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        """Cross-entropy of all points, and their focal contrast with those of all processes."""
        config, f_BD, y_B = self.config, z["embedding"], batch["label"]
        num_classes, offset = self.classifier.out_features, distributed.offset(len(y_B))
        y_N = distributed.gather(y_B, grad=False)
        expect(len(y_N) >= 2, "batch", "2 samples or more", len(y_N))
        inside = bool(((y_N >= 0) & (y_N < num_classes)).all())
        expect(inside, "labels", f"classes from 0 to {num_classes - 1}", y_N)
        first = f_BD.detach() if config.detach_originals else f_BD
        points = [Points(first, y_B, y_B, torch.ones_like(f_BD[:, 0]))]
        ids = [y_B]
        if config.mixtures:
            mixed, mixed_ids = self._mixtures(f_BD, y_N, offset, batch)
            points, ids = points + mixed, ids + mixed_ids
        whole = Points(*(torch.cat(parts) for parts in zip(*points, strict=True)))
        logits = self.classifier(whole.feature).float()
        entropy = soft_cross_entropy(logits, whole).mean()
        accuracy = (logits[: len(y_B)].argmax(1) == y_B).float().mean()
        terms = Terms().add("cross_entropy", entropy, count=len(logits)).log(accuracy=accuracy)
        return self._contrast(terms, whole.feature, torch.cat(ids)) if config.contrast_weight else terms

    def _mixtures(
        self, f_BD: Tensor, y_N: Tensor, offset: int, batch: Batch
    ) -> tuple[list[Points], list[Tensor]]:  # fmt: skip
        """Mixed negatives and positives of this process's samples, and the ids by which equal points are positives."""
        config, rows = self.config, torch.arange(len(f_BD), device=f_BD.device) + offset
        f_ND = distributed.gather(f_BD)
        hard = hard_pairs(f_ND, y_N)
        partner_N = ring(distributed.gather(batch["order"], grad=False))
        share = batch["share"].to(f_BD.dtype)
        towards = share[:, 1].clamp_min(config.partner_share)
        negative = blend(f_ND, y_N, partner_N[rows], rows, towards)
        positive = blend(f_ND, y_N, hard.positive[rows], hard.negative[rows], share[:, 0])
        alone = len(self.classifier.weight) + 2 * rows  # a number that no class and no other point has
        ids = [
            torch.where(negative.label == negative.other, negative.label, alone),
            torch.where((positive.label == positive.other) | config.mixture_positive, positive.label, alone + 1),
        ]
        return [negative, positive], ids

    def _contrast(self, terms: Terms, feature: Tensor, ids: Tensor) -> Terms:
        """Adds the focal contrast of points with those of all processes."""
        config, v = self.config, self.head(feature)
        every = distributed.gather(ids, grad=False)
        if int(every.unique(return_counts=True)[1].max()) < 2:  # no point has a positive
            return terms.add("focal", 0.0 * v.sum(), weight=config.contrast_weight, count=0)
        gathered = None if distributed.world() == 1 else (distributed.gather(v), every)
        loss, stats = focal_supcon(
            v, ids, gamma=config.gamma, temperature=config.temperature, average=config.average, gathered=gathered,
            offset=distributed.offset(len(v)), with_stats=True,
        )  # fmt: skip
        return terms.add("focal", loss, weight=config.contrast_weight, count=stats.num_anchors)

    @torch.no_grad()
    def classify(self, batch: Batch) -> Tensor:
        """Logits [B, C] of the plain view."""
        return self.classifier(self.features(batch))


def blend(f_ND: Tensor, y_N: Tensor, first: Tensor, second: Tensor, share: Tensor) -> Points:
    """share f_first + (1 - share) f_second, with labels shared alike; `first` and `second` are rows [B]."""
    feature = share[:, None] * f_ND[first] + (1 - share[:, None]) * f_ND[second]
    return Points(feature, y_N[first], y_N[second], share)


def soft_cross_entropy(logits: Tensor, points: Points) -> Tensor:
    """share CE(label) + (1 - share) CE(other) of every point, [B]."""
    one, two = (F.cross_entropy(logits, y, reduction="none") for y in (points.label, points.other))
    return points.share * one + (1 - points.share) * two


def ring(order: Tensor) -> Tensor:
    """For every row the next one in a circle through all of them that ascends by `order`; alone, the row itself."""
    circle = order.argsort(stable=True)
    partner = torch.empty_like(circle)
    partner[circle] = circle.roll(-1)
    return partner
