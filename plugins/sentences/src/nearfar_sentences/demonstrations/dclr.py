"""DCLR's arms on sentences of which random batches hold many wordings of one meaning, and on sentences without any.

All start from the same small encoder, of masked words of many other sentences; the complement is a copy of it, trained
by SimCSE for a while.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from nearfar.plugin import load_recipe
from nearfar_sentences import demonstrations as shared
from nearfar_sentences import templates
from nearfar_sentences.data import TextSource
from nearfar_sentences.debias import keep_negatives

NUM, WORDINGS, BATCH = 640, 10, 64
ARMS: dict[str, dict[str, Any]] = {
    "dclr": {},
    "weighted": {"noise_ratio": 0.0},
    "noise": {"threshold": 1.0},
    "simcse": {"threshold": 1.0, "noise_ratio": 0.0},
}


def corpus(num: int, seed: int, wordings: int) -> tuple[list[str], np.ndarray]:
    """Sentences, so many of each meaning, shuffled; and the number of each one's meaning."""
    rng = np.random.default_rng(seed)
    meanings = [templates.meaning(rng) for _ in range(num // wordings)]
    order = rng.permutation(num)
    texts = [templates.say(scene, rng) for scene in meanings for _ in range(wordings)]
    return [texts[i] for i in order], order // wordings


def arm(name: str, seed: int, quick: bool) -> dict[str, float]:
    """An arm and a seed to metrics; of false negatives how many are found, where there is a complement."""
    base, _, distinct = name.partition("_")
    method: Any = shared.pretrained(seed, quick=quick)
    found: dict[str, float] = {}
    if base != "mlm":
        texts, meaning = corpus(NUM, seed, 1 if distinct else WORDINGS)
        recipe = shared.short(load_recipe("sentences/dclr"), seed, epochs=1 if quick else 12, rate=shared.RATE)
        options = dataclasses.replace(recipe.method, complement_steps=5 if quick else 120, **ARMS[base])  # type: ignore[call-arg]
        recipe = dataclasses.replace(recipe, method=options)
        method = shared.fitted(recipe, TextSource(texts, name="sentences of a grammar"), method.encoder)
        if method.complement is not None and not distinct:
            found = false_negatives(method, texts, meaning, seed)
    return shared.scores(method, seed, quick=quick) | found


def false_negatives(
    method: Any, texts: list[str], meaning: np.ndarray, seed: int, batches: int = 20
) -> dict[str, float]:
    """Share of the false negatives of random batches that are left out (recall), and of what is left out that is one
    (precision); 0 where nothing is."""
    rng = np.random.default_rng(seed)
    hits = left_out = false = 0
    for _ in range(batches):
        rows = rng.choice(len(texts), BATCH, replace=False)
        c = method.complement.module.embed([texts[i] for i in rows])
        out = ~keep_negatives(c, c, torch.arange(BATCH), method.config.threshold)
        same = torch.from_numpy(meaning[rows][:, None] == meaning[rows]) & ~torch.eye(BATCH, dtype=torch.bool)
        hits, left_out, false = hits + int((out & same).sum()), left_out + int(out.sum()), false + int(same.sum())
    return {"recall": hits / max(false, 1), "precision": hits / max(left_out, 1)}
