"""InfoNCE under exponential kernels: one, or two mixed, in a batch or against a queue.

Legend: B batch, V views, D embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nearfar import distributed
from nearfar.batch import Batch
from nearfar.checks import expect
from nearfar.method import Progress, Terms, Views
from nearfar.methods import Frame
from nearfar.objectives import KernelInfoNCE, KernelMixture

if TYPE_CHECKING:
    from nearfar_images.systems.kernel_mixture import KernelMixtureConfig


class KernelContrast(Frame):
    """Two views of a sample find each other by a kernel of their distance.

    With a key encoder a query meets its key, and the denominator is the queue alone; until the queue holds something,
    and without one, it is the batch's keys.

    Args:
        config: kernels, how they are mixed, and the frame's options.
        encoder, views: as `nearfar.methods.Frame`; two views.
    """

    config: KernelMixtureConfig

    def __init__(self, config: KernelMixtureConfig, encoder: nn.Module, views: Views) -> None:
        super().__init__(config, encoder, views)
        shared: dict[str, Any] = {"learnable_temperature": config.learnable_temperature, "norm": config.norm}
        self.objective: nn.Module = (
            KernelInfoNCE(config.gamma, config.temperature, **shared)
            if config.mode == "single"
            else KernelMixture(
                config.mode, config.gamma, config.mixing, config.temperature, config.gaussian_temperature or None,
                **shared,
            )
        )  # fmt: skip

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        """The objective, against the candidates of all processes or the queue."""
        expect(len(batch["views"]) == 2, "views.num_views", "2", len(batch["views"]))
        z_VBD = z["embedding"].transpose(0, 1)
        if self.teacher is None:
            gathered, offset = self.gathered(z_VBD)
            loss, stats = self.objective(z_VBD, gathered=gathered, offset=offset, with_stats=True)
            return Terms().add("contrast", loss, count=stats.num_anchors)
        key_VBD = targets["key"].transpose(0, 1)
        pairs = self.pairs(len(z_VBD), len(key_VBD))
        filled = self.queue is not None and len(self.queue) > 0
        losses = []
        for q, k in pairs:
            bank = self.queue.view("key") if filled else distributed.gather(key_VBD[k], grad=False)  # type: ignore[union-attr]
            losses.append(self.objective(z_VBD[q], key_VBD[k].to(z_VBD.dtype), queue=bank))
        return Terms().add("contrast", torch.stack(losses).mean(), count=z_VBD.shape[1])
