"""DINO: self-distillation over prototypes, with a teacher that is centred and sharpened.

Legend: B batch, V views, W views that the teacher sees, E embedding, K prototypes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nearfar import distributed
from nearfar.batch import Batch
from nearfar.checks import expect
from nearfar.config import DataInfo
from nearfar.heads import PrototypeHead
from nearfar.method import Progress, Terms, Views
from nearfar.methods import Frame, encode_views
from nearfar.momentum import Teacher
from nearfar.objectives import centred_softmax, self_distillation, update_centre
from nearfar.prototypes import sinkhorn

if TYPE_CHECKING:
    from nearfar_images.systems.dino import DINOConfig


class DINO(Frame):
    """The student's probabilities for every view follow the teacher's for the other views of the image.

    Embeddings stay in the bottleneck until the loss, so that neither caches nor diagnostics hold K numbers a row.

    Args:
        config: prototypes, temperatures, centring.
        info: of the data; not needed here.
        encoder: from a view to features.
        views: random views, two or more.

    Attributes:
        centre: [K], moving average of the teacher's logits.
    """

    config: DINOConfig
    head: PrototypeHead
    centre: Tensor

    def __init__(self, config: DINOConfig, info: DataInfo, encoder: nn.Module, views: Views) -> None:
        super().__init__(config, encoder, views)
        self.head = PrototypeHead(self.head.dim_in, config.head, config.num_prototypes)
        self.teacher = Teacher(nn.Sequential(encoder, self.head), momentum=config.momentum)
        self.register_buffer("centre", torch.zeros(config.num_prototypes))

    @property
    def teacher_parts(self) -> tuple[nn.Module, PrototypeHead]:
        """The teacher's encoder and head."""
        assert self.teacher is not None  # made above
        encoder, head = self.teacher.module.children()
        return encoder, head  # type: ignore[return-value]

    # -- the step ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def targets(self, batch: Batch, progress: Progress) -> dict[str, Any]:
        """The teacher's embeddings [B, W, E], and the sum of their logits [1, K] for the centre."""
        encoder, head = self.teacher_parts
        seen = self._seen(batch)
        key = encode_views(lambda x: head.embed(encoder(x)), seen, shuffle=self.config.shuffle_keys)
        return {"key": key, "total": sum_of_logits(head, key)}

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Unit embeddings [B, V, E] of the student."""
        return {"embedding": encode_views(lambda x: self.head.embed(self.encoder(x)), batch["views"])}

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        """Cross-entropy of every view with the teacher's answers to the others."""
        student_VBK = self.head.logits(z["embedding"].transpose(0, 1))
        target_WBK = self.answers(targets["key"].transpose(0, 1), self.centre, progress)
        loss = self_distillation(student_VBK, target_WBK, temperature=self.config.temperature)
        entropy = torch.special.entr(target_WBK).sum(-1).mean()
        terms = Terms().add("distillation", loss, count=float(len(targets["key"])))
        return terms.log(teacher_entropy=entropy, used_prototypes=used(target_WBK))

    def on_gradients(self, progress: Progress) -> None:
        """Holds the prototypes still at first."""
        if progress.epoch < self.config.freeze_epochs:
            self.head.prototypes.grad = None

    def after_update(self, z: Mapping[str, Tensor], targets: Mapping[str, Any], progress: Progress) -> None:
        """The teacher follows the student, the centre the teacher."""
        super().after_update(z, targets, progress)
        self.move_centre(self.centre, targets["total"], targets["key"].shape[:2].numel())

    # -- what iBOT shares ----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def answers(self, key: Tensor, centre: Tensor, progress: Progress) -> Tensor:
        """The teacher's probabilities [..., K] for its embeddings [..., E], centred or balanced."""
        logits = self.teacher_parts[1].logits(key)
        temperature = self.teacher_temperature(progress)
        if self.config.centring == "mean":
            return centred_softmax(logits, centre, temperature=temperature)
        rows = logits.flatten(0, -2)
        codes = sinkhorn(
            rows, eps=temperature, num_iterations=self.config.sinkhorn_iterations,
            distributed=distributed.world() > 1,
        )  # fmt: skip
        return codes.view_as(logits)

    def teacher_temperature(self, progress: Progress) -> float:
        """Rises evenly over the warm-up."""
        config = self.config
        share = min(1.0, progress.epoch / config.teacher_warmup_epochs) if config.teacher_warmup_epochs else 1.0
        return config.teacher_temperature + share * (config.teacher_temperature_end - config.teacher_temperature)

    @torch.no_grad()
    def move_centre(self, centre: Tensor, total: Tensor, num_rows: int) -> None:
        """Towards the mean of the teacher's logits over all processes, of which there are sums here."""
        sums = distributed.reduce_sum(torch.cat([total.sum(0), total.new_tensor([float(num_rows)])]))
        centre.copy_(update_centre(centre, sums[:-1] / sums[-1], momentum=self.config.centre_momentum))

    def _seen(self, batch: Batch) -> list[Any]:
        """The views that the teacher sees."""
        views, num = batch["views"], self.config.teacher_views
        expect(len(views) >= 2, "views.num_views", "2 or more, of which each is told another's answer", len(views))
        expect(num <= len(views), "method.teacher_views", f"at most the {len(views)} views", num)
        return views[:num]

    # -- what users keep -----------------------------------------------------------------------------------------------

    def features(self, batch: Batch, output: str = "default") -> Tensor:
        """Encoder features [B, D] of the plain view, or the bottleneck's embedding."""
        feature = self.encoder(self.make_views.plain(batch[self.field]))
        return feature if output == "default" else self.head.embed(feature)


def sum_of_logits(head: PrototypeHead, key: Tensor) -> Tensor:
    """[1, K] over all rows [..., E]; the last layer is linear, so that one product does it."""
    wide = torch.promote_types(key.dtype, torch.float32)
    return head.logits(key.flatten(0, -2).sum(0, keepdim=True, dtype=wide))


def used(target: Tensor) -> Tensor:
    """exp of the entropy of the mean answer: about how many prototypes are in use; 1 where all answers are one."""
    return torch.special.entr(target.flatten(0, -2).mean(0)).sum().exp()
