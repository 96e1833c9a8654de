"""SupReMix on images: views of samples whose targets are numbers.

Legend: B batch, V views, N rows of all processes, D embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from nearfar import distributed
from nearfar.batch import Batch
from nearfar.method import Progress, Terms
from nearfar.methods import Frame
from nearfar.objectives import supremix
from nearfar.rng import Rng

if TYPE_CHECKING:
    from nearfar_images.systems.supremix import SupReMixConfig


class SupReMix(Frame):
    """`nearfar.objectives.supremix` over all views; the batch's `target` is what orders the samples.

    Args:
        config: mixtures, weights, temperature.
        encoder: from a view to features.
        views: two random views or more.

    Notes: mixtures are drawn by (seed, step) for the anchors of all processes, so that several give what one does.

    Source: Wu, Dong, Chen, Zhou, Zhou, "Mixup Your Own Pairs", 2023.
    """

    config: SupReMixConfig

    def views(self, batch: Batch, rng: Rng) -> Batch:
        """The batch with its random views, and the seed that mixtures are drawn by."""
        return super().views(batch, rng) | {"seed": rng.seed}

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        """The contrast of every view with those of all processes and with its mixtures."""
        config = self.config
        z_VBD, target_B = z["embedding"].transpose(0, 1), batch["target"] / config.unit
        every, offset = self.gathered(z_VBD)
        loss, stats = supremix(
            z_VBD,
            target_B,
            temperature=config.temperature,
            window=config.window,
            tolerance=config.tolerance,
            mix=config.mix,
            distance_weight=config.distance_weight,
            num_mixtures=config.num_mixtures,
            beta=config.beta,
            normalize_mixtures=config.normalize_mixtures,
            add_one=config.add_one,
            generator=Rng(batch["seed"], progress.step).generator("supremix", z_VBD.device),
            gathered=None if every is None else (every, distributed.gather(target_B, grad=False)),
            offset=offset,
            with_stats=True,
        )
        return Terms().add("supremix", loss, count=stats.num_anchors)
