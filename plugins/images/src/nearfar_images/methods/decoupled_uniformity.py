"""Uniformity of the means of samples' views, mixed by what is known of the samples.

Legend: B batch, N rows of all processes, V views, D embedding, Q prior.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from nearfar import distributed
from nearfar.batch import Batch
from nearfar.checks import expect
from nearfar.config import DataInfo
from nearfar.method import Progress, Terms, Views
from nearfar.methods import Frame
from nearfar.objectives import centroid_alignment, decoupled_uniformity
from nearfar.objectives.decoupled_uniformity import standardise

if TYPE_CHECKING:
    from nearfar_images.systems.decoupled_uniformity import DecoupledUniformityConfig


class DecoupledUniformity(Frame):
    """`nearfar.objectives.decoupled_uniformity` of all views, with a prior from the batch or from a file.

    Args:
        config: sharpness, prior and kernel.
        info: its `num_classes` is the width of the prior "label".
        encoder: from a view to features.
        views: two random views or more.

    Notes:
        The mean over pairs stands inside a logarithm, so every process computes the loss of all. A prior's file is
        read at the first loss, so that a trained run can be read where that file is not.

    Source: Dufumier, Barbano, Louiset, Duchesnay, Gori, "Integrating Prior Knowledge in Contrastive Learning with
    Kernel", ICML 2023.
    """

    config: DecoupledUniformityConfig

    def __init__(self, config: DecoupledUniformityConfig, info: DataInfo, encoder: nn.Module, views: Views) -> None:
        super().__init__(config, encoder, views)
        self.num_classes = info.num_classes
        self._table: Tensor | None = None

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        """The loss of all processes' samples; logs how well the views agree, -1 where entirely."""
        config, z_VBD = self.config, z["embedding"].transpose(0, 1)
        gathered, offset = self.gathered(z_VBD)
        prior = self._prior(batch)
        loss, stats = decoupled_uniformity(
            z_VBD,
            prior=prior,
            kernel=config.kernel,
            sigma=config.sigma or "median",
            ridge=config.ridge or None,
            t=config.t,
            gathered=gathered,
            offset=offset,
            with_stats=True,
        )
        with torch.no_grad():
            alignment = centroid_alignment(z_VBD)
        return Terms().add("decoupled_uniformity", loss, count=stats.num_anchors).log(centroid_alignment=alignment)

    def _prior(self, batch: Batch) -> Tensor | None:
        """What is known of the samples of all processes [N, Q]."""
        config = self.config
        if not config.prior:
            return None
        if config.prior.endswith(".npy"):
            return distributed.gather(self._rows(batch["index"]), grad=False)
        field = batch.get(config.prior)
        numbers = sorted(name for name, value in batch.items() if isinstance(value, Tensor))
        expect(
            isinstance(field, Tensor) and field.ndim in (1, 2),
            "method.prior", f"a file .npy, or a field of the data with numbers [B] or [B, Q] among {numbers}",
            repr(config.prior),
        )  # fmt: skip
        known: Tensor = field  # type: ignore[assignment]
        if config.prior == "label":
            known = nn.functional.one_hot(known, self.num_classes)
        every = distributed.gather(known.double(), grad=False)
        return standardise(every) if config.standardise else every

    def _rows(self, index_B: Tensor) -> Tensor:
        """Rows of the prior's file."""
        if self._table is None:
            table = torch.from_numpy(np.load(self.config.prior, allow_pickle=False)).double()
            expect(table.ndim in (1, 2), f"method.prior, {self.config.prior}", "shape [N] or [N, Q]",
                   tuple(table.shape))  # fmt: skip
            table = standardise(table) if self.config.standardise else table.reshape(len(table), -1)
            self._table = table.to(index_B.device)
        largest = int(index_B.max())
        expect(
            largest < len(self._table), f"method.prior, {self.config.prior}",
            f"a row for every sample, of which one is number {largest}", f"{len(self._table)} rows",
        )  # fmt: skip
        return self._table[index_B]
