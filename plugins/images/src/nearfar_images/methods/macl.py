"""MACL between two views of the batch, or between queries, keys and a queue.

Legend: B batch, V views, D embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from nearfar import distributed
from nearfar.batch import Batch
from nearfar.method import Progress, Terms
from nearfar.methods import Frame
from nearfar.objectives import macl

if TYPE_CHECKING:
    from nearfar.objectives.macl import MACLStats
    from nearfar_images.systems.macl import MACLConfig


class MACL(Frame):
    """`nearfar.objectives.macl` with one temperature for all processes.

    Args:
        config: how the temperature moves.
        encoder: from a view to features.
        views: two random views; more with a key encoder of its own.

    Source: Huang, Chen, Wen, Zhang, Li, Wang, Chen, "Model-Aware Contrastive Learning: Towards Escaping the Dilemmas",
    ICML 2023.
    """

    config: MACLConfig

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        """The adapted contrast of views with each other, or the mean over pairs of query and key views."""
        z_VBD = z["embedding"].transpose(0, 1)
        if self.teacher is None:
            parts = [self._among_views(z_VBD)]
        else:
            key_VBD = targets["key"].transpose(0, 1)
            parts = [self._against_keys(z_VBD[q], key_VBD[k]) for q, k in self.pairs(z_VBD.shape[0], key_VBD.shape[0])]
        loss = torch.stack([part for part, _ in parts]).mean()
        stats = [found for _, found in parts]
        terms = Terms().add("macl", loss, count=stats[0].num_anchors)
        for name in ("alignment", "temperature", "positive", "clamped"):
            terms.log(**{name: sum(float(getattr(found, name)) for found in stats) / len(stats)})
        return terms

    def _among_views(self, z_VBD: Tensor) -> tuple[Tensor, MACLStats]:
        gathered, offset = self.gathered(z_VBD)
        return macl(z_VBD, gathered=gathered, offset=offset, **self._options, with_stats=True)

    def _against_keys(self, query_BD: Tensor, key_BD: Tensor) -> tuple[Tensor, MACLStats]:
        """Queries against their keys and the queue; until that holds something, queries and keys among themselves."""
        if self.queue is None or not len(self.queue):
            return self._among_views(torch.stack([query_BD, key_BD]))
        cosine_B = cosine_similarity(query_BD.detach().float(), key_BD.float())
        total, num = distributed.reduce_sum(torch.stack([cosine_B.sum(), cosine_B.new_tensor(float(len(cosine_B)))]))
        return macl(
            query_BD, key_BD, queue=self.queue.view("key"), alignment=total / num, **self._options, with_stats=True
        )

    @property
    def _options(self) -> dict[str, Any]:
        names = ("temperature", "alpha", "alignment_origin", "max_weight")
        return {name: getattr(self.config, name) for name in names}
