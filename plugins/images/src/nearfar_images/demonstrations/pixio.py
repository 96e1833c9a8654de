"""Pixio on digits with blocks or single patches, a deep or shallow decoder, several class tokens or one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

EPOCHS, QUICK_EPOCHS, QUICK_NUM = 10, 1, 256
INK = 0.3
"""mean brightness from which a patch belongs to its digit"""
PATCHES = 6
"""patches of an image that the dense probe learns from"""


def arm(name: str, seed: int, quick: bool) -> dict[str, float]:
    """Scores of features on digits after ten epochs, of patches, and the error of reconstruction.

    "dense" is the accuracy of a linear probe that tells of single patches which digit they belong to, or none;
    "reconstruction" the mean squared error of removed patches of held-out digits.

    Args:
        name: "pixio"; "pixio_single", patches removed one by one; "pixio_shallow", one decoder block; "pixio_one", one
            class token; "untrained".
        seed: of weights, views and order.
        quick: one epoch of a few images.
    """
    from nearfar.batch import collate
    from nearfar.data import Data, Subset
    from nearfar.evaluate import linear_probe
    from nearfar.plugin import load
    from nearfar.rng import Rng
    from nearfar_images.data import open_images
    from nearfar_images.demonstrations._trained import trained, untrained

    recipe = load("images").recipe("pixio_digits" if name == "untrained" else f"{name}_digits")
    some: Data | None = None
    if quick:
        whole = open_images(recipe.data)
        some = Data(Subset(whole.train, np.arange(QUICK_NUM)), Subset(whole.test, np.arange(QUICK_NUM // 2)))
    if name == "untrained":
        data, method, scores = untrained(recipe, seed)
    else:
        data, method, scores = trained(recipe, seed, QUICK_EPOCHS if quick else EPOCHS, data=some)
    model: Any = method
    parts = [collate([part[i] for i in range(len(part))]) for part in (data.train, data.test)]
    (train_x, train_y), (test_x, test_y) = (patches(model, batch, seed) for batch in parts)
    viewed = model.views(parts[1], Rng(seed))
    with torch.no_grad():
        error = float(model.errors(model.encode(viewed), viewed).mean())
    return scores | {"dense": linear_probe(train_x, train_y, test_x, test_y).value, "reconstruction": error}


@torch.no_grad()
def patches(method: Any, batch: Any, seed: int) -> tuple[Tensor, Tensor]:
    """Features and labels of some random patches of every image; 10 where there is no ink."""
    from nearfar_images.methods._masked import patchify

    x = method.make_views.plain(batch["image"])
    dense = method.encoder.dense(x).flatten(2).transpose(1, 2)
    ink = patchify(x, method.side).mean(2) > INK
    label = torch.where(ink, batch["label"][:, None], 10)
    chosen = torch.rand(label.shape, generator=torch.Generator().manual_seed(seed)).argsort(1)[:, :PATCHES]
    rows = dense.gather(1, chosen[:, :, None].expand(-1, -1, dense.shape[2]))
    return rows.flatten(0, 1), label.gather(1, chosen).flatten()
