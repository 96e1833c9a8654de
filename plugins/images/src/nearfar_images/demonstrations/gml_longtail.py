"""Long-tailed digits: how well small and large classes are recognised, by each part of the loss.

Legend: N images, C classes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from nearfar_images.demonstrations._fit import fit

IMBALANCE, STEPS, QUICK_STEPS = 50.0, 150, 6
FEW, MANY = 10, 40
"""training samples: classes with fewer than this, with more than this"""
ARMS: dict[str, dict[str, Any]] = {
    "gml": {}, "gml_contrast": {"supervised_weight": 0.0}, "supcon_adjusted": {"contrast": "supcon"},
    "ce_adjusted": {"contrast_weight": 0.0}, "ce": {"contrast_weight": 0.0, "adjust": False},
}  # fmt: skip


def arm(name: str, seed: int, quick: bool) -> dict[str, float]:
    """Accuracy on held-out digits of a classifier trained on long-tailed ones.

    "balanced" is the mean over classes; "many", "medium" and "few" over the classes with more than 40, 10 to 40 and
    fewer than 10 training samples. Which digits are rare depends on the seed.

    Args:
        name: what the loss holds: "gml", all of it; "gml_contrast", the contrast alone, which classifies by its keys;
            "supcon_adjusted", SupCon with the adjusted classifier; "ce_adjusted", that classifier alone; "ce", without
            adjustment.
        seed: of the tail, weights, views and order.
        quick: 6 steps instead of 150.
    """
    from nearfar.batch import collate
    from nearfar.data import class_counts, long_tail
    from nearfar.plugin import load
    from nearfar_images.data import open_images

    recipe = load("images").recipe("gml_longtail_digits")
    data = open_images(recipe.data)
    order = np.random.default_rng(seed).permutation(data.train.num_classes).tolist()
    train = long_tail(data.train, IMBALANCE, order=order, seed=seed)
    recipe = dataclasses.replace(recipe, method=dataclasses.replace(recipe.method, **ARMS[name]))
    method = fit(recipe, train, seed, steps=QUICK_STEPS if quick else STEPS)
    batch = collate([data.test[i] for i in range(len(data.test))])
    hit = method.classify(batch).argmax(1) == batch["label"]
    accuracy = torch.stack([hit[batch["label"] == c].float().mean() for c in range(data.test.num_classes)])
    counts = torch.tensor(class_counts(train))
    parts = {"many": counts > MANY, "medium": (counts >= FEW) & (counts <= MANY), "few": counts < FEW}
    found = {part: float(accuracy[chosen].mean()) for part, chosen in parts.items()}
    return {"balanced": float(accuracy.mean())} | found
