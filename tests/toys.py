"""A small source and method that several tests train: vectors in three clusters, views by noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nearfar import distributed
from nearfar.batch import Batch, View
from nearfar.method import Method, Progress, Terms
from nearfar.objectives import nt_xent
from nearfar.rng import Rng


class Vectors:
    """Three clusters of vectors as a nearfar source."""

    name, num_classes, class_names, shape = "vectors", 3, ("a", "b", "c"), (8,)

    def __init__(self, num: int = 40, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        centres = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
        self.labels = np.arange(num) % 3
        self.y = torch.from_numpy(self.labels)
        self.x = centres[self.y] + 0.3 * torch.randn(num, 8, generator=generator)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"index": i, "x": self.x[i], "label": int(self.y[i])}

    def path(self, i: int) -> str:
        return f"vectors:{i}"

    def fingerprint(self) -> str:
        return f"vectors-{len(self)}"


class Toy(Method):
    """Noise views, an MLP, NT-Xent; with dropout, batch statistics or a centre buffer where a test wants them."""

    outputs = ("default",)

    def __init__(self, *, dropout: float = 0.0, norm: str = "layer", centre: bool = False) -> None:
        super().__init__()
        layer = {"layer": nn.LayerNorm, "batch": nn.BatchNorm1d}[norm]
        # A bias before batch normalisation has no gradient but rounding, which Adam would blow up to full steps.
        self.encoder = nn.Sequential(
            nn.Linear(8, 16, bias=norm != "batch"), layer(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 8)
        )
        self.cache = "exact" if norm == "layer" else "no: batch normalisation"
        self.register_buffer("centre", torch.zeros(8) if centre else None)

    def views(self, batch: Batch, rng: Rng) -> Batch:
        x, index = batch["x"], batch["index"]
        views = [View(x + 0.1 * rng.at(view=v).normal(index, "noise", 8)) for v in range(2)]
        return {**batch, "views": views}

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        x = torch.cat([view.data for view in batch["views"]])
        return {"embedding": self.encoder(x).unflatten(0, (2, -1)).transpose(0, 1)}

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        z_VBD = z["embedding"].transpose(0, 1)
        gathered, offset = None, 0
        if distributed.world() > 1:
            gathered = distributed.gather(z["embedding"]).transpose(0, 1)
            offset = distributed.offset(len(batch["index"]))
        loss, stats = nt_xent(z_VBD, temperature=0.5, gathered=gathered, offset=offset, with_stats=True)
        return Terms().add("contrast", loss, count=stats.num_anchors)

    def after_update(self, z: Mapping[str, Tensor], targets: Mapping[str, Any], progress: Progress) -> None:
        if self.centre is not None:
            self.centre.lerp_(distributed.gather(z["embedding"], grad=False).mean(dim=(0, 1)), 0.1)

    def features(self, batch: Batch, output: str = "default") -> Tensor:
        return self.encoder(batch["x"])


def mlp(*, dropout: float = 0.0, norm: Callable[[int], nn.Module] = nn.LayerNorm, dim_in: int = 6) -> nn.Module:
    """A small encoder of vectors in double precision."""
    layers = [nn.Linear(dim_in, 16), norm(16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 8)]
    return nn.Sequential(*layers).double()
