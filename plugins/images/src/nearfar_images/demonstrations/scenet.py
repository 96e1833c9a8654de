"""Pictures of one thing whose shape, colour and size are independent: which of two is closer, by a notion unsaid?

Legend: N pictures, B of a batch, D embedding.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

SIDE, NUM_TRAIN, NUM_TEST = 32, 3000, 600
NUM_SHAPES, COLOURS, RADII = 4, ((230, 60, 60), (60, 200, 80), (70, 90, 230), (230, 210, 60)), (5.0, 8.0, 11.0)
STEPS, QUICK_STEPS, BATCH, TRIPLETS = 400, 4, 96, 6000
OPTIONS: dict[str, dict[str, Any]] = {
    "single": {"conditions": "none"},
    "scenet": {},
    "scenet_triplet": {"form": "triplet"},
    "csn": {"conditions": "known"},
    "untrained": {},
}


def arm(name: str, seed: int, quick: bool) -> dict[str, float]:
    """Share of held-out triplets told right, each closer by shape, colour or size.

    Args:
        name: of OPTIONS: one embedding; SCE-Net in pairs, or in triplets; with the notion known; no step at all.
        seed: of pictures, weights, order and triplets.
        quick: 4 steps instead of 400.

    Returns:
        `accuracy`, and `accuracy_new` where all pictures have a shape that training never saw (closer by colour or
        size); for SCE-Net `information`, mutual information in bits of the heaviest mask and the notion.
    """
    from nearfar.rng import Rng
    from nearfar_images.methods.scenet import triplets
    from nearfar_images.systems.scenet import SCENetConfig

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        method = _method(SCENetConfig(num_conditions=3, notions="notions", **OPTIONS[name]))
    image, notions = pictures(NUM_TRAIN, range(NUM_SHAPES - 1), seed)
    optimiser = torch.optim.AdamW([p for p in method.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0)
    order = torch.Generator().manual_seed(seed)
    for step in range(0 if name == "untrained" else QUICK_STEPS if quick else STEPS):
        rows = torch.randperm(NUM_TRAIN, generator=order)[:BATCH]
        batch = method.views({"image": image[rows], "index": rows, "notions": notions[rows]}, Rng(seed, step))
        terms = method.loss(method.encode(batch), batch, {}, _progress())
        optimiser.zero_grad()
        terms.total.backward()
        optimiser.step()
    method.eval()
    found: dict[str, float] = {}
    for what, shapes, kept in (
        ("accuracy", range(NUM_SHAPES - 1), (0, 1, 2)),
        ("accuracy_new", (NUM_SHAPES - 1,), (1, 2)),
    ):
        image, notions = pictures(NUM_TEST, shapes, seed + 1000)
        with torch.no_grad():
            e = method.features({"image": image}, "embedding")
        draws = torch.rand(TRIPLETS, 3, generator=order)
        parts = [
            triplets(notions[:, kept], part, torch.arange(NUM_TEST)) for part in draws.split(NUM_TEST)
        ]  # one for every picture, ten times
        rows = [torch.cat(column) for column in zip(*parts, strict=True)]
        notion = torch.tensor(kept)[rows[3]]
        right, heaviest = _judge(method, e[rows[0]], e[rows[1]], e[rows[2]], notion, order)
        found[what] = float(right.double().mean())
        if what == "accuracy" and heaviest is not None:
            found["information"] = information(heaviest, notion)
    return found


def _judge(
    method: Any, anchor: Tensor, far: Tensor, close: Tensor, notion: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """Whether each triplet is told right, its candidates in random order; and the heaviest mask of anchor and close."""
    swapped = torch.rand(len(anchor), generator=generator) < 0.5
    first, second = torch.where(swapped[:, None], close, far), torch.where(swapped[:, None], far, close)
    with torch.no_grad():
        d_first, d_second = method.distances(anchor, first, second, notion=notion)
        latent = method.config.conditions == "latent"
        compared = (anchor, close) if method.config.form == "pair" else (anchor, first, second)
        heaviest = method.conditions.weights(*compared).argmax(1) if latent else None
    return torch.where(swapped, d_second > d_first, d_first > d_second), heaviest


def information(first: Tensor, second: Tensor) -> float:
    """Mutual information of two lists of integers, in bits."""
    from sklearn.metrics import mutual_info_score

    return float(mutual_info_score(first.numpy(), second.numpy()) / np.log(2))


def _method(config: Any) -> Any:
    from nearfar.config import DataInfo, ImageViewConfig
    from nearfar.models import ConvNet
    from nearfar.views import ImageViews

    views = ImageViews(
        ImageViewConfig(num_views=1, crop_scale=(0.9, 1.0), flip=0.5, jitter=0.0, grayscale=0.0), SIDE, 3
    )
    return config.build(DataInfo(num_samples=NUM_TRAIN), ConvNet(3, width=16, dim=64), views)


def _progress() -> Any:
    from nearfar.method import Progress

    return Progress()


@cache
def pictures(num: int, shapes: Any, seed: int) -> tuple[Tensor, Tensor]:
    """A thing on a grey, noisy ground: uint8 [N, 3, 32, 32] and its (shape, colour, size), int64 [N, 3]."""
    rng = np.random.default_rng(seed)
    notions = np.stack(
        [rng.choice(list(shapes), num), rng.integers(0, len(COLOURS), num), rng.integers(0, len(RADII), num)], 1
    )
    y, x = np.mgrid[:SIDE, :SIDE]
    image = np.empty((num, 3, SIDE, SIDE))
    for n, (shape, colour, size) in enumerate(notions):
        radius = RADII[size]
        cy, cx = rng.uniform(radius, SIDE - radius, 2) if 2 * radius < SIDE else (SIDE / 2, SIDE / 2)
        v, u = (y - cy) / radius, (x - cx) / radius
        inside = (
            (np.abs(u) < 0.85) & (np.abs(v) < 0.85),
            u**2 + v**2 < 1,
            (v < 0.8) & (v > 2 * np.abs(u) - 1),
            (np.minimum(np.abs(u), np.abs(v)) < 0.3) & (np.maximum(np.abs(u), np.abs(v)) < 1),
        )[shape]
        image[n] = np.where(inside, np.array(COLOURS[colour])[:, None, None], rng.uniform(60, 160))
    image += rng.normal(0, 12, image.shape)
    return torch.from_numpy(np.clip(image, 0, 255).astype(np.uint8)), torch.from_numpy(notions)
