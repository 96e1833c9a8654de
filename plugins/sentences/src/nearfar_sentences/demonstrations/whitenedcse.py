"""WhitenedCSE's arms: three whitened copies, three plain ones, two, and one group of all channels, more than sentences.

All start from the same small encoder of masked words.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from nearfar.plugin import load_recipe
from nearfar_sentences import demonstrations as shared
from nearfar_sentences import pipeline, templates
from nearfar_sentences.config import TextRecipe

DIM, BATCH = 96, 64
ARMS: dict[str, dict[str, Any]] = {
    "whitenedcse": {"groups": DIM // 6},
    "simcse_three": {"whitening": "none"},
    "simcse": {"whitening": "none", "copies": 2},
    "one_group": {"groups": 1},
}


def arm(name: str, seed: int, quick: bool) -> dict[str, float]:
    """An arm and a seed to metrics."""
    num = 500 if quick else shared.NUM
    texts = shared.unlabelled(num, seed)
    words = shared.short(load_recipe("sentences/mlm"), seed, epochs=1 if quick else 6)
    method: Any = shared.fitted(_narrow(words), texts)
    if name != "mlm":
        recipe = shared.short(load_recipe("sentences/whitenedcse"), seed, epochs=1 if quick else 2, rate=shared.RATE)
        recipe = dataclasses.replace(_narrow(recipe), method=dataclasses.replace(recipe.method, **ARMS[name]))
        recipe = dataclasses.replace(recipe, trainer=dataclasses.replace(recipe.trainer, batch_size=BATCH))
        method = shared.fitted(recipe, texts, method.encoder)
    features = pipeline.embed(method, templates.corpus(200 if quick else 2000, 30_000 + seed)[0])
    return shared.scores(method, seed, quick=quick) | {"correlation": correlation(features)}


def correlation(features: torch.Tensor) -> float:
    """Mean size of the correlation between two channels of features [N, D]."""
    found = torch.corrcoef(features.double().T)
    return float(found[~torch.eye(len(found), dtype=torch.bool)].abs().mean())


def _narrow(recipe: TextRecipe) -> TextRecipe:
    return dataclasses.replace(recipe, encoder=dataclasses.replace(recipe.encoder, dim=DIM))
