"""Encoders trained for alignment, for uniformity, for both and for NT-Xent: what a linear probe says of each.

Legend: B batch, V views, D embedding.
"""

from __future__ import annotations

from typing import Any

import torch

from nearfar_images.demonstrations import EPOCHS, QUICK_EPOCHS
from nearfar_images.demonstrations._trained import trained, untrained


def arm(name: str, seed: int, quick: bool) -> dict[str, float]:
    """Scores of the features on digits, with alignment and uniformity of the embeddings of two views of held-out ones.

    Args:
        name: a recipe without "_digits"; "untrained" is SimCLR's encoder before any step.
        seed: of weights, views and order.
        quick: two epochs instead of thirty.
    """
    from nearfar.plugin import load

    recipes = load("images")
    if name == "untrained":
        data, method, scores = untrained(recipes.recipe("simclr_digits"), seed)
    else:
        data, method, scores = trained(recipes.recipe(f"{name}_digits"), seed, QUICK_EPOCHS if quick else EPOCHS)
    return {k: scores[k] for k in ("linear", "knn", "few_label")} | _two_views(method, data.test, seed)


@torch.no_grad()
def _two_views(method: Any, source: Any, seed: int) -> dict[str, float]:
    """Alignment and uniformity of the embeddings of two random views."""
    from nearfar.batch import collate
    from nearfar.evaluate import geometry
    from nearfar.rng import Rng

    batch = method.views(collate([source[i] for i in range(len(source))]), Rng(seed + 1000))
    first, second = (method.head(method.encoder(view.data)) for view in batch["views"][:2])
    found = geometry(first, second)
    return {"alignment": found["alignment"], "uniformity": found["uniformity"]}
