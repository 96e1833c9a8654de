"""CACR among the views of the batch, or between queries and the keys of a momentum encoder.

Legend: B batch, V views, D embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from nearfar import distributed
from nearfar.batch import Batch
from nearfar.method import Progress, Terms
from nearfar.methods import Frame
from nearfar.objectives import cacr, cacr_momentum

if TYPE_CHECKING:
    from nearfar_images.systems.cacr import CACRConfig


class CACR(Frame):
    """`nearfar.objectives.cacr`, or with a key encoder of its own `cacr_momentum`.

    Args:
        config: sharpness of the weights, cost, and the frame's options.
        encoder: from a view to features.
        views: two random views or more.

    Source: Zheng, Chen, Yao, Yang, Li, Zhang, Zhang, Tsang, Zhou, Zhou, "Contrastive Attraction and Contrastive
    Repulsion for Representation Learning", TMLR 2023.
    """

    config: CACRConfig

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        """The loss of this process's samples against those of all; logs its parts and the entropies of the weights."""
        z_VBD = z["embedding"].transpose(0, 1)
        if self.teacher is not None:
            return self._against_keys(z_VBD, targets["key"])
        config = self.config
        gathered, offset = self.gathered(z_VBD)
        loss, stats = cacr(
            z_VBD,
            t_pos=config.t_pos,
            t_neg=config.t_neg,
            alpha=config.alpha,
            beta=config.beta,
            cost=config.cost,
            t=config.t,
            class_prior=config.class_prior,
            symmetric=config.both_directions,
            detach_weights=config.detach_weights,
            gathered=gathered,
            offset=offset,
            with_stats=True,
        )
        return Terms().add("cacr", loss, count=stats.num_anchors).log(**stats.parts._asdict())

    def _against_keys(self, query_VBD: Tensor, key_BVD: Tensor) -> Terms:
        loss, stats = cacr_momentum(
            query_VBD,
            key_BVD.transpose(0, 1),
            temperature=self.config.temperature,
            cost=self.config.cost,
            detach_weights=self.config.detach_weights,
            gathered=distributed.gather(key_BVD, grad=False).transpose(0, 1),
            offset=distributed.offset(len(key_BVD)),
            with_stats=True,
        )
        return Terms().add("cacr", loss, count=stats.num_anchors)
