"""A system's method around vectors instead of images, and batches for it: its equations are tested in milliseconds.

Shapes: B samples, D width, V views.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nearfar.batch import View
from nearfar.config import DataInfo, MethodConfig
from nearfar.method import Method, Progress, Terms
from nearfar.rng import Rng

DIM = 8


class Encoder(nn.Sequential):
    feature_dim = 10

    def __init__(self) -> None:
        super().__init__(nn.Linear(DIM, 12), nn.Tanh(), nn.Linear(12, 10))


class Noise:
    """Views that are the vector and noise."""

    def __init__(self, num_views: int) -> None:
        self.num_views = num_views

    def __call__(self, data: Tensor, index: Tensor, rng: Rng) -> list[View]:
        return [View(data + 0.3 * rng.at(view=v).normal(index, "noise", DIM)) for v in range(self.num_views)]

    def plain(self, data: Tensor) -> Tensor:
        return data


def make(config: MethodConfig, *, num_views: int = 2, num_samples: int = 100, num_classes: int = 0) -> Any:
    """The method of a config, its weights always the same."""
    torch.manual_seed(0)
    info = DataInfo(num_samples=num_samples, shape=(DIM,), num_classes=num_classes, steps=10)
    return config.build(info, Encoder(), Noise(num_views))


def batch(num: int = 6, *, step: int = 0, num_classes: int = 3) -> dict[str, Tensor]:
    """Raw samples: their numbers, vectors and labels."""
    generator = torch.Generator().manual_seed(step)
    index = torch.arange(num) + num * step
    return {"index": index, "image": torch.randn(num, DIM, generator=generator), "label": index % num_classes}


def forward(method: Method, raw: dict[str, Tensor], progress: Progress | None = None) -> tuple[Tensor, Any, Terms]:
    """Embeddings [V, B, D], targets and terms of one pass."""
    progress = progress or Progress(steps=10)
    viewed = method.views(raw, Rng(0))
    targets = method.targets(viewed, progress)
    z = method.encode(viewed)
    return z["embedding"].transpose(0, 1), targets, method.loss(z, viewed, targets, progress)
