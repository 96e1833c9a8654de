"""Topic-MOO's arms on documents of known topics: a plain topic model, contrast added to its loss, and min-norm steps.

Legend: T topics, V words, N documents.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nearfar.data import without_test
from nearfar.evaluate import linear_probe
from nearfar.plugin import load_recipe
from nearfar.train import Run, Trainer
from nearfar_sentences import pipeline
from nearfar_sentences.data import TextSource

TOPICS, WORDS, LENGTH = 10, 500, 40
ARMS: dict[str, dict[str, Any]] = {
    "topic_moo": {},
    "setwise_sum": {"combine": "sum"},
    "weighted_sum": {"combine": "sum", "set_size": 1},
    "ntm": {"contrast_weight": 0.0},
}


def documents(num: int, seed: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Texts of latent Dirichlet allocation, shares of topics [N, T], and of words in topics [T, V].

    The topics are those of `seed` whatever the number of documents.
    """
    rng = np.random.default_rng(seed)
    topics_TV = rng.dirichlet(np.full(WORDS, 0.05), TOPICS)
    theta_NT = rng.dirichlet(np.full(TOPICS, 0.2), num)
    texts = []
    for theta in theta_NT:
        words = rng.choice(WORDS, LENGTH, p=theta @ topics_TV)
        texts.append(" ".join(f"w{word}" for word in words))
    return texts, theta_NT, topics_TV


def arm(name: str, seed: int, quick: bool) -> dict[str, float]:
    """An arm and a seed to metrics; `alpha_first` and `alpha_last` are means over a quarter of the run each."""
    num, held, epochs = (300, 100, 3) if quick else (2000, 500, 60)
    texts, theta, topics = documents(num + held, seed)
    recipe = load_recipe("sentences/topic_moo")
    method = dataclasses.replace(recipe.method, num_topics=TOPICS, max_share=1.0, **ARMS[name])
    trainer = dataclasses.replace(
        recipe.trainer, epochs=epochs, seed=seed, progress=False, report=False, evaluate_before=False, evaluate_every=0,
        device="cpu", log_every=1,
    )  # fmt: skip
    data, model = pipeline.build(
        dataclasses.replace(recipe, method=method, trainer=trainer), without_test(TextSource(texts[:num]))
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = dataclasses.replace(trainer, output=str(Path(folder, "run")))
        run = Trainer(model, data, trainer, optimiser=recipe.optimiser).fit()
        alphas = _alphas(run)
    model: Any = model.eval()
    labels = torch.from_numpy(theta.argmax(1))
    features = pipeline.embed(model, texts)
    scores = model.topic_scores(texts[num:])
    return {
        **{metric: score.value for metric, score in scores.items()},
        "recovery": recovery(model, topics),
        "probe": linear_probe(features[:num], labels[:num], features[num:], labels[num:]).value,
        **alphas,
    }


def recovery(model: Any, topics_TV: np.ndarray) -> float:
    """Mean cosine of the true topics with those found, each with one of its own, as well as can be paired."""
    from scipy.optimize import linear_sum_assignment

    places = [int(word[1:]) for word in model.encoder.words]
    found = model.topic_words().double().numpy()
    true = topics_TV[:, places]
    cosine = true @ found.T / np.outer(np.linalg.norm(true, axis=1), np.linalg.norm(found, axis=1))
    return float(cosine[linear_sum_assignment(-cosine)].mean())


def _alphas(run: Run) -> dict[str, float]:
    """The weight of the contrast's gradient early and late."""
    found = [row["alpha"] for row in run.metrics if "alpha" in row]
    quarter = max(1, len(found) // 4)
    return (
        {"alpha_first": float(np.mean(found[:quarter])), "alpha_last": float(np.mean(found[-quarter:]))}
        if found
        else {}
    )
