"""Two photographs enlarged to twice their side, with and without contrast."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

STEPS, QUICK_STEPS = 1000, 20
TILE, CROP, BATCH = 64, 32, 8
HELD = 160
"""columns at the right of either photograph that training never sees"""
ARMS = {"pcl": "pcl_sr_tiny", "l1": "pcl_sr_tiny_l1", "frozen": "pcl_sr_tiny_frozen"}


def arm(name: str, seed: int, quick: bool) -> dict[str, float]:
    """PSNR, SSIM and the errors of detail and edges on the held-out quarters.

    Args:
        name: "pcl": L1 and contrast in the discriminator's embedding; "l1": L1 alone; "frozen": L1 and contrast in a
            random embedding; "bicubic": no network.
        seed: of weights, crops and order.
        quick: 20 steps instead of 1,000.
    """
    from nearfar.data import ArraySource
    from nearfar.plugin import load
    from nearfar_images import restoration, upscalers
    from nearfar_images.demonstrations._fit import fit

    train, held = photographs()
    network: Any = None
    if name != "bicubic":
        recipe = load("images").recipe(ARMS[name])
        recipe = dataclasses.replace(
            recipe,
            method=dataclasses.replace(recipe.method, num_crops=1),
            data=dataclasses.replace(recipe.data, image_size=CROP),
            trainer=dataclasses.replace(recipe.trainer, batch_size=BATCH, monitor="knn", report=False),
        )  # fmt: skip
        source = ArraySource(train, name="photographs", layout="nchw")
        network = fit(recipe, source, seed, steps=QUICK_STEPS if quick else STEPS).network
    rows = []
    for true in held:
        low = restoration.quantise(upscalers.reduce(true, 2))
        with torch.no_grad():
            made = upscalers.enlarge(low, 2) if network is None else network(low)
        rows.append(restoration.compare(made, true, border=2))
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def photographs() -> tuple[np.ndarray, list[Tensor]]:
    """Tiles uint8 [N, 3, 64, 64] of the left of scikit-learn's two photographs, and their right ends in [0, 1]."""
    from sklearn.datasets import load_sample_images

    tiles, held = [], []
    for image in load_sample_images().images:
        image = image.transpose(2, 0, 1)
        height, width = image.shape[1] // TILE * TILE, (image.shape[2] - HELD) // TILE * TILE
        part = image[:, :height, :width].reshape(3, height // TILE, TILE, width // TILE, TILE)
        tiles.append(part.transpose(1, 3, 0, 2, 4).reshape(-1, 3, TILE, TILE))
        end = image[:, : image.shape[1] // 2 * 2, -HELD:].copy()
        held.append(torch.from_numpy(end)[None].float() / 255)
    return np.concatenate(tiles), held
