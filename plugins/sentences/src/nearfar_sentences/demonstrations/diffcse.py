"""DiffCSE's arms: with detection, with a vector that detection gives no gradient, and without detection (SimCSE).

All have the same head and the same steps, and start from the same encoder, a copy of which learns to be the generator.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from nearfar.plugin import load_recipe
from nearfar_sentences import demonstrations as shared

WEIGHT = 0.1
"""of detection: the paper's 0.005 has a hundred times as many steps to act in"""
EPOCHS = 4
CHANGES: dict[str, dict[str, Any]] = {
    "diffcse": {},
    "diffcse_detached": {"condition": "detached"},
    "simcse": {"detection_weight": 0.0},
}


def arm(name: str, seed: int, quick: bool) -> dict[str, float]:
    """An arm and a seed to metrics."""
    if name not in CHANGES:
        return shared.arm(name, seed, quick)
    recipe = load_recipe("sentences/diffcse")
    options: Any = {"detection_weight": WEIGHT, "generator_steps": 20 if quick else 300} | CHANGES[name]
    recipe = dataclasses.replace(recipe, method=dataclasses.replace(recipe.method, **options))
    start = shared.pretrained(seed, quick=quick)
    return shared.scores(shared.trained(recipe, start, seed, quick=quick, epochs=EPOCHS), seed, quick=quick)
