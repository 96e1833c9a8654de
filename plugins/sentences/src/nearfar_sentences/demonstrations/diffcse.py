"""DiffCSE's arms: with detection, with a vector that detection gives no gradient, and without detection (SimCSE).

All have the same head and the same steps, and start from the same encoder, a copy of which learns to be the generator.
Words are drawn from the generator: slots of the grammar are filled evenly, so that its likeliest words are always the
same few, which a discriminator would know without the sentence's vector.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from nearfar.data import without_test
from nearfar.plugin import load_recipe
from nearfar_sentences import demonstrations as shared
from nearfar_sentences import pipeline
from nearfar_sentences.config import TextRecipe

NUM, EPOCHS, TRIPLETS = 2000, 8, 5000
WEIGHT = 0.1
"""of detection: the paper's 0.005 has a hundred times as many steps to act in"""
RATE = 3e-4
CHANGES: dict[str, dict[str, Any]] = {
    "diffcse": {},
    "diffcse_detached": {"condition": "detached"},
    "simcse": {"detection_weight": 0.0},
}


def arm(name: str, seed: int, quick: bool) -> dict[str, float]:
    """An arm and a seed to metrics."""
    source = shared.unlabelled(400 if quick else NUM, seed)
    words = _narrow(shared.short(load_recipe("sentences/mlm"), seed, epochs=1 if quick else 8))
    if name == "untrained":
        return _scores(pipeline.build(words, without_test(source))[1], seed, quick)
    method: Any = shared.fitted(words, source)
    if name != "mlm":
        recipe = _narrow(shared.short(load_recipe("sentences/diffcse"), seed, epochs=1 if quick else EPOCHS, rate=RATE))
        options: Any = {"detection_weight": WEIGHT, "decode": "sample", "generator_steps": 20 if quick else 300}
        recipe = dataclasses.replace(recipe, method=dataclasses.replace(recipe.method, **options | CHANGES[name]))
        method = shared.fitted(recipe, source, method.encoder)
    return _scores(method, seed, quick)


def _scores(method: Any, seed: int, quick: bool) -> dict[str, float]:
    """Those of all demonstrations, with more triplets, since small differences are expected."""
    found = shared.scores(method, seed, quick=quick)
    return found if quick else found | {"triplets": shared.nearer(method, TRIPLETS, seed)}


def _narrow(recipe: TextRecipe) -> TextRecipe:
    return dataclasses.replace(recipe, encoder=dataclasses.replace(recipe.encoder, dim=64))
