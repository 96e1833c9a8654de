"""CLEAR's arms: what each change of words keeps and loses, by probes of frozen features.

In the sentences one of four people acts on another, in some place, at some time; parts stand in several orders. Probes
ask for the place, from two labels each, which a bag of words tells, and for which of the two people acts, which only
their order tells.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from nearfar.data import without_test
from nearfar.evaluate import few_label_probe, linear_probe
from nearfar.objectives import uniformity
from nearfar.plugin import load_recipe
from nearfar_sentences import demonstrations as shared
from nearfar_sentences import pipeline, templates
from nearfar_sentences.config import AugmentConfig, TextRecipe
from nearfar_sentences.data import TextSource

NUM = 2000
PEOPLE = ("doctor", "teacher", "farmer", "painter")
VERBS = ("follows", "helps", "greets", "pays")
RATE = 1e-3


def sentences(num: int, seed: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Sentences, the place of each, and whether the one of the two people who comes first in the list acts."""
    rng = np.random.default_rng(seed)
    texts, places, acts = [], [], []
    for _ in range(num):
        who, whom = rng.choice(len(PEOPLE), 2, replace=False).tolist()
        place, when = (int(rng.integers(len(slot))) for slot in (templates.WHERE, templates.WHEN))
        where, then = (
            slot[value][int(rng.integers(2))] for slot, value in ((templates.WHERE, place), (templates.WHEN, when))
        )
        core = f"the {PEOPLE[who]} {VERBS[int(rng.integers(len(VERBS)))]} the {PEOPLE[whom]}"
        orders = (f"{core} {where} {then}", f"{then} {core} {where}", f"{where} {core} {then}")
        texts.append(orders[int(rng.integers(3))])
        places.append(place)
        acts.append(int(who < whom))
    return texts, np.array(places), np.array(acts)


def source(num: int, seed: int) -> TextSource:
    """The sentences alone."""
    return TextSource(sentences(num, seed)[0], name="sentences of who does what to whom")


def arm(name: str, seed: int, quick: bool) -> dict[str, float]:
    """An arm and a seed to metrics; "mlm" goes on predicting masked words alone, for as many epochs as the others."""
    num, epochs, more = (400, 1, 1) if quick else (NUM, 6, 6)
    words = _narrow(shared.short(load_recipe("sentences/mlm"), seed, epochs=epochs))
    texts = source(num, seed)
    if name == "untrained":
        return _scores(pipeline.build(words, without_test(texts))[1], seed, quick)
    start: Any = shared.fitted(words, texts)
    recipe = _narrow(shared.short(load_recipe("sentences/clear"), seed, epochs=more, rate=RATE))
    options = recipe.method
    if name == "mlm":
        options = dataclasses.replace(options, contrast_weight=0.0)  # type: ignore[type-var]
    else:
        augment = AugmentConfig(first=(name,), second=(name,))  # type: ignore[arg-type]
        options = dataclasses.replace(options, augment=augment)  # type: ignore[call-arg, type-var]
    return _scores(shared.fitted(dataclasses.replace(recipe, method=options), texts, start.encoder), seed, quick)


def _narrow(recipe: TextRecipe) -> TextRecipe:
    return dataclasses.replace(recipe, encoder=dataclasses.replace(recipe.encoder, dim=64))


def _scores(method: Any, seed: int, quick: bool) -> dict[str, float]:
    num = 300 if quick else 2000
    texts, places, acts = sentences(2 * num, 10_000 + seed)
    features = pipeline.embed(method, texts)
    place, act = torch.from_numpy(places), torch.from_numpy(acts)
    parts = (features[:num], features[num:])
    return {
        "place": few_label_probe(parts[0], place[:num], parts[1], place[num:], per_class=2, draws=10).value,
        "who_did_what": linear_probe(parts[0], act[:num], parts[1], act[num:]).value,
        "uniformity": float(uniformity(torch.nn.functional.normalize(features, dim=1))),
    }
