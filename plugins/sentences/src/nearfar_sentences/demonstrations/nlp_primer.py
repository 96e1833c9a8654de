"""The primer's arms: contrast with words before few labels are seen, and what changed words do to negations.

In the first part texts are about one of twelve topics, whose sizes fall as 1, 1/2, 1/3, ...; a topic has a name and
words of its own. The texts that are scored never hold a name.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nearfar.evaluate import linear_probe
from nearfar.plugin import load_recipe
from nearfar_sentences import demonstrations as shared
from nearfar_sentences import pipeline
from nearfar_sentences.config import AugmentConfig, TextRecipe
from nearfar_sentences.data import TextSource
from nearfar_sentences.negation import negation, negations

NUM, RATE = 3000, 1e-3
NAMES = ("music", "sport", "cooking", "travel", "money", "health", "weather", "school", "garden", "cinema", "history",
         "trade")  # fmt: skip
OWN, COMMON, LENGTH = 12, 60, 9
LABELS: dict[str, dict[str, Any]] = {
    "input_label": {},
    "input_label_ranking": {"loss": "ranking"},
    "input_label_hidden": {"hidden": 0.5},
}


def corpus(num: int, seed: int, *, named: bool) -> tuple[list[str], np.ndarray]:
    """Texts and their topics; with `named` three in ten hold their topic's name."""
    rng = np.random.default_rng(seed)
    sizes = 1 / np.arange(1, len(NAMES) + 1)
    topics = rng.choice(len(NAMES), num, p=sizes / sizes.sum())
    texts = []
    for topic in topics.tolist():
        own = [f"{NAMES[topic][:3]}{'abcdefghijkl'[i]}o" for i in rng.integers(OWN, size=3).tolist()]
        rest = [f"{'bcdfgh'[i % 6]}{'aeiou'[i % 5]}{'lmnrst'[i // 10]}" for i in rng.integers(COMMON, size=LENGTH - 3)]
        words = [*own, *rest, *([NAMES[topic]] if named and rng.random() < 0.3 else [])]
        texts.append(" ".join(words[i] for i in rng.permutation(len(words))))
    return texts, topics


def arm(name: str, seed: int, quick: bool) -> dict[str, float]:
    """An arm and a seed to metrics; "mlm" is what the others start from, trained on for as many epochs."""
    if name.endswith("_views"):
        return _negations(name, seed, quick)
    num = 400 if quick else NUM
    texts, _ = corpus(num, seed, named=True)
    start: Any = shared.fitted(_short("mlm", seed, 1 if quick else 4), TextSource(texts))
    recipe = _short("mlm" if name == "mlm" else "input_label", seed, 1 if quick else 6)
    if name != "mlm":
        recipe = dataclasses.replace(recipe, method=dataclasses.replace(recipe.method, **LABELS[name]))
    method: Any = shared.fitted(recipe, TextSource(texts), start.encoder)
    found = _scores(method, seed, quick)
    if name != "mlm":
        held, topics = corpus(500, 20_000 + seed, named=False)
        scores = method.zero_shot(held, NAMES)
        found["zero_shot"] = _balanced(scores.argmax(1), torch.from_numpy(topics))
    return found


def _scores(method: Any, seed: int, quick: bool) -> dict[str, float]:
    """Probes with one label in a hundred, one in ten, and all; `rare`: of the smaller topics, with one in ten."""
    num = 300 if quick else 2000
    texts, topics = corpus(num + 1000, 10_000 + seed, named=False)
    x, y = pipeline.embed(method, texts), torch.from_numpy(topics)
    test = (x[num:], y[num:])
    few, tenth = max(num // 100, 12), num // 10
    rare = test[1] >= len(NAMES) // 2
    return {
        "few_labels": linear_probe(x[:few], y[:few], *test).value,
        "tenth": linear_probe(x[:tenth], y[:tenth], *test).value,
        "all_labels": linear_probe(x[:num], y[:num], *test).value,
        "rare": linear_probe(x[:tenth], y[:tenth], test[0][rare], test[1][rare]).value,
    }


def _balanced(guess: Tensor, true: Tensor) -> float:
    """Accuracy, each class alike."""
    return float(torch.stack([(guess[true == c] == c).float().mean() for c in true.unique()]).mean())


def _negations(name: str, seed: int, quick: bool) -> dict[str, float]:
    """Contrast of dropout copies, or of copies with words deleted, on sentences and their negations."""
    num = 300 if quick else NUM
    texts, _, negated = negations(num, seed)
    source = TextSource([*texts[: num // 2], *negated[num // 2 :]])
    start: Any = shared.fitted(_short("mlm", seed, 1 if quick else 4), source)
    recipe = _short("clear", seed, 1 if quick else 4)
    change = ("delete_words",) if name == "deletion_views" else ()
    method = dataclasses.replace(
        recipe.method, augment=AugmentConfig(first=change, second=change), mlm_weight=0.0  # type: ignore[call-arg]
    )  # fmt: skip
    model = shared.fitted(dataclasses.replace(recipe, method=method), source, start.encoder)
    found = negation(lambda rows: pipeline.embed(model, rows), *negations(500, 10_000 + seed))
    return {f"negation_{metric}": value for metric, value in found.items()}


def _short(name: str, seed: int, epochs: int) -> TextRecipe:
    recipe = shared.short(load_recipe(f"sentences/{name}"), seed, epochs=epochs, rate=RATE)
    return dataclasses.replace(recipe, encoder=dataclasses.replace(recipe.encoder, dim=64))
