"""ORL: BYOL of whole images, of a region and its jittered copy, and of two regions that correspond across images.

Legend: B batch, V views, P patches, D embedding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from nearfar.batch import Batch
from nearfar.config import DataInfo
from nearfar.heads import Head
from nearfar.method import Progress, Terms, Views
from nearfar.methods import Frame
from nearfar.methods.frame import encode_views
from nearfar.objectives import regression
from nearfar.rng import Rng
from nearfar.views import ImageViews

if TYPE_CHECKING:
    from nearfar_images.systems.orl import ORLConfig

PATCHES = {"intra": (0, 1), "inter": (2, 3)}
"""which of a sample's patches each branch compares, see `nearfar_images.correspondence.RegionSource`"""


class ORL(Frame):
    """Three branches with one encoder, one head and one teacher, each with a predictor of its own.

    `encode` gives "embedding" [B, V, D] of the views and, of each branch of regions, its name [B, 2, D].

    Args:
        config: heads, weights, size of patches.
        encoder: from a view [B, ...] to features; sees views and patches, of two sizes.
        views: makes the views of the image; patches are changed as those are, without cropping.

    Raises:
        TypeError: views that are not `nearfar.views.ImageViews`.

    Source: Xie et al., "Unsupervised Object-Level Representation Learning from Scene Images", NeurIPS 2021.
    """

    config: ORLConfig

    def __init__(self, config: ORLConfig, info: DataInfo, encoder: nn.Module, views: Views) -> None:
        super().__init__(config, encoder, views)
        self.weights = {name: getattr(config, f"{name}_weight") for name in PATCHES}
        self.branches = tuple(name for name, weight in self.weights.items() if weight > 0)
        self.local_predictors = nn.ModuleDict({name: Head(self.head.dim, config.predictor) for name in self.branches})
        if not isinstance(views, ImageViews):
            raise TypeError(f"views: expected nearfar.views.ImageViews, received {type(views).__name__}")
        whole = dataclasses.replace(
            views.config, num_views=1, global_size=0, local_views=0, centred_views=0, crop_scale=(1.0, 1.0),
            crop_ratio=(1.0, 1.0),
        )  # fmt: skip
        self.patch_views = ImageViews(whole, size=config.side(views.size), channels=views.channels)

    def views(self, batch: Batch, rng: Rng) -> Batch:
        """The batch with two views of the image and, of each branch, of its two patches."""
        patches = batch.get("patches")
        if self.branches and patches is None:
            raise ValueError("batch: expected patches of regions, received none; set method.regions, or train by "
                             "`nearfar images train orl`, which looks for regions first")  # fmt: skip
        viewed = super().views(batch, rng)
        first = len(viewed["views"])
        for name in self.branches:
            viewed["views"] += [
                dataclasses.replace(
                    self.patch_views(viewed["patches"][:, p], batch["index"], rng, first_view=first + p)[0], role=name
                )
                for p in PATCHES[name]
            ]
        return {name: value for name, value in viewed.items() if name != "patches"}

    def targets(self, batch: Batch, progress: Progress) -> dict[str, Any]:
        """What the teacher says of the views, as "key" [B, V, D], and of the patches of each branch [B, 2, D]."""
        assert self.teacher is not None
        found = {name: encode_views(self.teacher, self._of(batch, name)) for name in self.branches}
        return {"key": encode_views(self.teacher, self._of(batch, "")), **found}

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """What the predictor of each branch says; batch statistics are those of one branch."""
        found = {}
        for name in ("", *self.branches):
            z = encode_views(lambda x: self.head(self.encoder(x)), self._of(batch, name))
            predictor = self.local_predictors[name] if name else self.predictor
            found[name or "embedding"] = predictor(z.flatten(0, 1)).unflatten(0, z.shape[:2])
        return found

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        """L = w_g L_g + w_a L_a + w_i L_i, each the sum over both directions of 2 - 2 cos(prediction, key)."""
        terms = Terms()
        for name in ("", *self.branches):
            prediction, key = z[name or "embedding"], targets[name or "key"]
            value = 2 * regression(prediction.transpose(0, 1), key.transpose(0, 1))
            weight = self.weights[name] if name else self.config.global_weight
            terms.add(name or "global", value, weight=weight, count=len(prediction))
        return terms

    def _of(self, batch: Batch, name: str) -> list[Any]:
        """The views of a branch; of the whole image without a name."""
        views = batch["views"]
        return [view for view in views if view.role == name or (not name and view.role not in PATCHES)]
