"""Poly-view contrast of many views.

Legend: B batch, V views, D embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from nearfar.batch import Batch
from nearfar.method import Progress, Terms
from nearfar.methods import Frame
from nearfar.objectives import information_bound, poly_view

if TYPE_CHECKING:
    from nearfar_images.systems.poly_view import PolyViewConfig


class PolyView(Frame):
    """`nearfar.objectives.poly_view` of all views.

    Args:
        config: which form.
        encoder: from a view to features.
        views: two random views or more.

    Source: Shidani, Hjelm, Ramapuram, Webb, Dhekane, Busbridge, "Poly-View Contrastive Learning", ICLR 2024.
    """

    config: PolyViewConfig

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        """The loss of every view against the samples of all processes; logs a bound of what one view tells, in nats."""
        z_VBD = z["embedding"].transpose(0, 1)
        gathered, offset = self.gathered(z_VBD)
        loss, stats = poly_view(
            z_VBD,
            form=self.config.form,
            temperature=self.config.temperature,
            normalize_average=self.config.normalize_average,
            gathered=gathered,
            offset=offset,
            with_stats=True,
        )
        num = (z_VBD if gathered is None else gathered).shape[1]
        terms = Terms().add(self.config.form, loss, count=stats.num_anchors)
        return terms.log(information=information_bound(loss, num, len(z_VBD)))
