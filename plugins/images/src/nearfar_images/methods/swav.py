"""SwAV: crops of an image predict the balanced prototype assignments of its other crops.

Legend: B batch, V views, D embedding, K prototypes, L queued rows, F features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from nearfar import distributed
from nearfar.batch import Batch
from nearfar.checks import expect
from nearfar.memory import Queue
from nearfar.method import Progress, Terms, Views
from nearfar.methods import Frame, encode_views
from nearfar.prototypes import swapped_prediction

if TYPE_CHECKING:
    from nearfar_images.systems.swav import SwAVConfig


class SwAV(Frame):
    """Unit embeddings of all crops, scored against unit prototypes that are trained with them.

    Prototypes are brought back to unit length after every update, which is before every forward that meets new ones.

    Args:
        config: prototypes, codes, queue.
        encoder: from a view to features, for views of every size.
        views: random views; the first `num_assigned` of them are global ones.

    Raises:
        ValueError: at the first batch, fewer than two views or than `num_assigned` global ones; at the first push, a
            queue shorter than the batch of all processes.

    Source: Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", NeurIPS 2020.
    """

    config: SwAVConfig

    def __init__(self, config: SwAVConfig, encoder: nn.Module, views: Views) -> None:
        super().__init__(config, encoder, views)
        dim = self.head.dim
        self.prototypes = nn.Parameter(normalize(torch.randn(config.num_prototypes, dim), dim=1))
        fields = {_field(view): dim for view in range(config.num_assigned)}
        self.former = Queue(config.code_queue, **fields) if config.code_queue else None

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Unit embeddings [B, V, D]: one forward of the encoder a size, one of the head over all crops."""
        roles = [view.role for view in batch["views"]]
        num_assigned = self.config.num_assigned
        expect(len(roles) >= 2, "views.num_views", "2 or more, local ones included", len(roles))
        expect(
            roles[:num_assigned] == ["global"] * num_assigned,
            "views.num_views", f"{num_assigned} or more, which are assigned to prototypes", roles.count("global"),
        )  # fmt: skip
        feature_BVF = encode_views(self.encoder, batch["views"])
        embedding = self.head(feature_BVF.flatten(0, 1)).unflatten(0, feature_BVF.shape[:2])
        return {"embedding": normalize(embedding.float(), dim=-1)}

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        """Swapped prediction of the codes of the assigned views, balanced over all processes."""
        config, z_VBD = self.config, z["embedding"].transpose(0, 1)
        with torch.autocast(z_VBD.device.type, enabled=False):  # half precision rounds by a tenth of eps
            scores_VBK = z_VBD @ self.prototypes.T
            former = self._former_scores()
        loss = swapped_prediction(
            scores_VBK,
            num_assigned=config.num_assigned,
            queue=former,
            temperature=config.temperature,
            eps=config.eps,
            num_iterations=config.num_iterations,
            distributed=distributed.world() > 1,
        )
        terms = Terms().add("swapped", loss, count=scores_VBK.shape[1])
        with torch.no_grad():
            share_K = (scores_VBK[: config.num_assigned] / config.temperature).softmax(2).mean((0, 1))
            entropy = torch.special.entr(share_K).sum() / torch.tensor(float(len(share_K))).log()
        return terms.log(prototype_entropy=entropy)

    def _former_scores(self) -> tuple[Tensor, ...]:
        """This process's part [L / W, K] of the queue, for each assigned view; none until the queue is full."""
        if self.former is None or len(self.former) < self.former.size:
            return ()
        rows = distributed.shard(len(self.former))
        prototypes = self.prototypes.detach()
        return tuple(
            self.former.view(_field(view))[rows] @ prototypes.T for view in range(self.config.num_assigned)
        )  # fmt: skip

    def on_gradients(self, progress: Progress) -> None:
        """Prototypes hold still at first, while embeddings are still random."""
        if progress.step < self.config.freeze_steps:
            self.prototypes.grad = None

    @torch.no_grad()
    def after_update(self, z: Mapping[str, Tensor], targets: Mapping[str, Any], progress: Progress) -> None:
        """Prototypes back to unit length; embeddings of all processes join the queue."""
        super().after_update(z, targets, progress)
        rows = distributed.local(self.prototypes)
        rows.copy_(normalize(rows, dim=1))
        if self.former is not None and progress.epoch >= self.config.code_queue_start:
            joined = {
                _field(view): distributed.gather(z["embedding"][:, view].contiguous(), grad=False)
                for view in range(self.config.num_assigned)
            }
            num = len(joined[_field(0)])
            expect(num <= self.former.size, "method.code_queue", f"the batch of {num} or more", self.former.size)
            self.former.push(**joined)


def _field(view: int) -> str:
    return f"view{view}"
