"""Alignment and uniformity, optimised as they are.

Legend: B batch, V views, N rows of all processes, D embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nearfar.batch import Batch
from nearfar.checks import expect
from nearfar.method import Progress, Terms
from nearfar.methods import Frame
from nearfar.objectives import alignment, uniformity

if TYPE_CHECKING:
    from nearfar_images.systems.align_uniform import AlignUniformConfig


class AlignUniform(Frame):
    """Views of a sample come together, and all samples spread over the sphere.

    L = w_a mean_(q, k) alignment(z_q, z_k) + w_u mean_q uniformity(z_q) over pairs of views

    With a key encoder the keys are its own and get no gradient, and uniformity is that of the queries: among one
    another, against the queue, or both. Until the queue holds something it is among one another.

    Args:
        config: weights, exponents, and the frame's options.
        encoder, views: as `nearfar.methods.Frame`.

    Notes:
        Uniformity stands inside a logarithm, so every process computes that of the queries of all.
    """

    config: AlignUniformConfig

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        """Two terms, of this process's pairs and of all processes' rows."""
        config = self.config
        z_VBD = z["embedding"].transpose(0, 1)
        every_VND = self.everyone(z_VBD)
        key_VBD, bank = z_VBD, None
        if self.teacher is not None:
            key_VBD = targets["key"].transpose(0, 1)
            pairs = self.pairs(len(z_VBD), len(key_VBD))
            bank = self.queue.view("key") if self.queue is not None and len(self.queue) else None
        else:
            expect(len(z_VBD) >= 2, "views.num_views", "2 or more", len(z_VBD))
            pairs = [(q, k) for q in range(len(z_VBD)) for k in range(q + 1, len(z_VBD))]
        near = torch.stack([alignment(z_VBD[q], key_VBD[k], alpha=config.alpha) for q, k in pairs]).mean()
        in_batch = config.in_batch or bank is None
        spread = torch.stack([uniformity(row, bank, t=config.t, in_batch=in_batch) for row in every_VND]).mean()
        num = z_VBD.shape[1]
        return (
            Terms()
            .add("alignment", near, weight=config.align_weight, count=num)
            .add("uniformity", spread, weight=config.uniform_weight, count=num)
        )
