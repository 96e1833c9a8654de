"""MoCo on digits with a small and a large queue: with the key's side, with hard negatives alone, with both."""

from __future__ import annotations

import dataclasses
from typing import Any

from nearfar_images.demonstrations import train_and_score

QUERY_ALONE: dict[str, Any] = {"query_weight": 1.0, "key_weight": 0.0}
ARMS: dict[str, dict[str, Any]] = {
    "moco": {"keep": 1.0, **QUERY_ALONE},
    "dual": {"keep": 1.0},
    "filter": QUERY_ALONE,
    "both": {},
    "both_drop": {"drop": 0.05},
}


def arm(name: str, seed: int, quick: bool) -> dict[str, float]:
    """Scores on digits; "false_negatives" is the share of the kept negatives of the query's class, at the last step.

    Args:
        name: what differs from MoCo and the size of the queue, e.g. "both_256"; "_drop" leaves out the most similar
            twentieth of the queue.
        seed: of weights, views and order.
        quick: two epochs instead of thirty.
    """
    from nearfar.plugin import load

    kind, _, size = name.rpartition("_")
    recipe = load("images").recipe("moco_dual_view_digits")
    method = dataclasses.replace(recipe.method, queue=int(size), **ARMS[kind])
    recipe = dataclasses.replace(recipe, method=method)
    scores = train_and_score(recipe, seed, quick, logged=("false_negatives", "kept_cosine"))
    names = ("linear", "knn", "few_label", "map", "false_negatives", "kept_cosine")
    return {metric: scores[metric] for metric in names}
