"""MV-InfoNCE, MV-DHEL, and the losses of pairs of views that they are compared with.

Legend: B batch, V views, D embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from nearfar.batch import Batch
from nearfar.method import Progress, Terms
from nearfar.methods import Frame
from nearfar.objectives import multi_view_baseline, mv_dhel, mv_infonce

if TYPE_CHECKING:
    from nearfar_images.systems.mv_infonce_mv_dhel import MultiViewConfig


class MultiView(Frame):
    """All views of a sample in one loss.

    Args:
        config: which loss, and its options.
        encoder: from a view to features.
        views: two random views or more.

    Source: Koromilas, Georgiou, Bouritsas, Giannakopoulos, Nicolaou, Panagakis, "A Principled Framework for Multi-View
    Contrastive Learning", arXiv 2507.06979, 2025.
    """

    config: MultiViewConfig

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        """The loss of every sample's views against the samples of all processes."""
        config, z_VBD = self.config, z["embedding"].transpose(0, 1)
        gathered, offset = self.gathered(z_VBD)
        options: dict[str, Any] = {
            "temperature": config.temperature, "gathered": gathered, "offset": offset, "with_stats": True,
        }  # fmt: skip
        if config.loss == "mv_dhel":
            loss, stats = mv_dhel(z_VBD, include_self=config.include_self, **options)
        elif config.loss == "mv_infonce":
            loss, stats = mv_infonce(z_VBD, same_view_negatives=config.same_view_negatives, **options)
        else:
            loss, stats = multi_view_baseline(z_VBD, combine=config.loss, base=config.base, **options)
        return Terms().add(config.loss, loss, count=stats.num_anchors)
