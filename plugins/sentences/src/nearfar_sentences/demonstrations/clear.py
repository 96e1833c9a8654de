"""CLEAR's arms: what each change of words keeps and loses, by probes of frozen features.

In the sentences one person acts on another, in some place, at some time; parts stand in several orders. Probed are the
place, which a bag of words tells, and which of the two people acts, which only their order tells.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from nearfar.data import without_test
from nearfar.evaluate import linear_probe
from nearfar.objectives import uniformity
from nearfar.plugin import load_recipe
from nearfar_sentences import demonstrations as shared
from nearfar_sentences import pipeline, templates
from nearfar_sentences.config import AugmentConfig
from nearfar_sentences.data import TextSource

NUM = 4000
VERBS = templates._pairs("follows/trails, helps/assists, greets/welcomes, calls/phones, pays/rewards, warns/alerts")
RATE = 3e-4


def sentences(num: int, seed: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Sentences, the place of each, and whether the one of the two people who comes first in the list acts."""
    rng = np.random.default_rng(seed)
    texts, places, acts = [], [], []
    for _ in range(num):
        who, whom = rng.choice(len(templates.WHO), 2, replace=False).tolist()
        place, when, verb = (int(rng.integers(len(slot))) for slot in (templates.WHERE, templates.WHEN, VERBS))
        said = [
            slot[value][int(rng.integers(2))]
            for slot, value in (
                (templates.WHO, who), (VERBS, verb), (templates.WHO, whom), (templates.WHERE, place),
                (templates.WHEN, when),
            )
        ]  # fmt: skip
        core = f"the {said[0]} {said[1]} the {said[2]}"
        orders = (f"{core} {said[3]} {said[4]}", f"{said[4]} {core} {said[3]}", f"{said[3]} {core} {said[4]}")
        texts.append(orders[int(rng.integers(3))])
        places.append(place)
        acts.append(int(who < whom))
    return texts, np.array(places), np.array(acts)


def source(num: int, seed: int) -> TextSource:
    """The sentences alone."""
    return TextSource(sentences(num, seed)[0], name="sentences of who does what to whom")


def arm(name: str, seed: int, quick: bool) -> dict[str, float]:
    """An arm and a seed to metrics; "mlm" goes on predicting masked words alone, for as many epochs as the others."""
    num, epochs, more = (400, 1, 1) if quick else (NUM, 6, 4)
    words = shared.short(load_recipe("sentences/mlm"), seed, epochs=epochs)
    texts = source(num, seed)
    if name == "untrained":
        return _scores(pipeline.build(words, without_test(texts))[1], seed, quick)
    start: Any = shared.fitted(words, texts)
    recipe = shared.short(load_recipe("sentences/clear"), seed, epochs=more, rate=RATE)
    options = recipe.method
    if name == "mlm":
        options = dataclasses.replace(options, contrast_weight=0.0)  # type: ignore[type-var]
    else:
        augment = AugmentConfig(first=(name,), second=(name,))  # type: ignore[arg-type]
        options = dataclasses.replace(options, augment=augment)  # type: ignore[call-arg, type-var]
    return _scores(shared.fitted(dataclasses.replace(recipe, method=options), texts, start.encoder), seed, quick)


def _scores(method: Any, seed: int, quick: bool) -> dict[str, float]:
    num = 300 if quick else 2000
    texts, places, acts = sentences(2 * num, 10_000 + seed)
    features = pipeline.embed(method, texts)
    found = {}
    for metric, labels in (("place", places), ("who_did_what", acts)):
        y = torch.from_numpy(labels)
        found[metric] = linear_probe(features[:num], y[:num], features[num:], y[num:]).value
    unit = torch.nn.functional.normalize(features, dim=1)
    return {**found, "uniformity": float(uniformity(unit))}
