"""What the demonstrations on sentences run: an arm and a seed to metrics.

Every arm starts from the same small encoder, trained for a while to predict masked words of the same sentences; then it
trains as its recipe says. Judged are pairs of sentences whose likeness is known: Spearman's correlation with cosines.
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from pathlib import Path

import torch
from torch.nn.functional import normalize

from nearfar.data import without_test
from nearfar.method import Method
from nearfar.objectives import alignment, uniformity
from nearfar.plugin import load_recipe
from nearfar.train import Trainer
from nearfar_sentences import pipeline, templates
from nearfar_sentences.config import TextRecipe
from nearfar_sentences.data import TextSource
from nearfar_sentences.encoder import TextEncoder
from nearfar_sentences.sts import spearman

NUM, PAIRS = 4000, 1000
RATE = 1e-4


def unlabelled(num: int, seed: int) -> TextSource:
    """Sentences of the grammar alone."""
    return TextSource(templates.corpus(num, seed)[0], name="sentences of a grammar")


def triplets(num: int, seed: int) -> TextSource:
    """Sentence, another wording, and a sentence that differs in one slot."""
    text, positive, negative = templates.triplets(num, seed)
    return TextSource(text, positive=positive, negative=negative, name="triplets of a grammar")


def pretrained(seed: int, *, quick: bool = False, num: int = NUM) -> Method:
    """The method of a small encoder that has learnt to predict masked words of the grammar's sentences."""
    recipe = load_recipe("sentences/mlm")
    recipe = short(recipe, seed, epochs=1 if quick else 6)
    return fitted(recipe, unlabelled(500 if quick else num, seed))


def short(recipe: TextRecipe, seed: int, *, epochs: int, rate: float = 0.0) -> TextRecipe:
    """A recipe without scores and pages on the way."""
    return dataclasses.replace(
        recipe,
        encoder=dataclasses.replace(recipe.encoder, pooling="mean", vocabulary=1000, max_length=24),
        optimiser=dataclasses.replace(recipe.optimiser, lr=rate or recipe.optimiser.lr),
        trainer=dataclasses.replace(
            recipe.trainer, epochs=epochs, seed=seed, progress=False, report=False, evaluate_before=False,
            evaluate_every=0, device="cpu",
        ),
    )  # fmt: skip


def fitted(recipe: TextRecipe, source: TextSource, encoder: TextEncoder | None = None) -> Method:
    """The method of a recipe, trained on a source, from a copy of an encoder where one is given."""
    data, method = pipeline.build(recipe, without_test(source), encoder=copy.deepcopy(encoder))
    with tempfile.TemporaryDirectory() as folder:
        config = dataclasses.replace(recipe.trainer, output=str(Path(folder, "run")))
        Trainer(method, data, config, optimiser=recipe.optimiser, recipe=recipe).fit()
    return method.eval()


def scores(method: Method, seed: int, *, quick: bool = False) -> dict[str, float]:
    """Spearman's correlation, alignment and uniformity on fresh pairs, and how often another wording is nearer than a
    sentence that differs in one slot."""
    num = 120 if quick else PAIRS
    first, second, gold = templates.scored_pairs(num, 10_000 + seed)
    x, y = (normalize(pipeline.embed(method, column), dim=1) for column in (first, second))
    same = torch.from_numpy(gold == 1.0)
    return {
        "spearman": spearman((x * y).sum(1).numpy(), gold),
        "alignment": float(alignment(x[same], y[same])),
        "uniformity": float(uniformity(x)),
        "triplets": nearer(method, num, seed),
    }


def nearer(method: Method, num: int, seed: int) -> float:
    """How often another wording of a sentence is nearer to it than one that differs in one slot, of `num` triplets."""
    text, positive, negative = (pipeline.embed(method, column) for column in templates.triplets(num, 20_000 + seed))
    return float((torch.cosine_similarity(text, positive) > torch.cosine_similarity(text, negative)).float().mean())


def arm(name: str, seed: int, quick: bool) -> dict[str, float]:
    """An arm that is a recipe's name, "mlm" (the encoder that all others start from), or "untrained"."""
    if name == "untrained":
        recipe = short(load_recipe("sentences/mlm"), seed, epochs=1)
        _, method = pipeline.build(recipe, without_test(unlabelled(500 if quick else NUM, seed)))
        return scores(method, seed, quick=quick)
    start = pretrained(seed, quick=quick)
    if name == "mlm":
        return scores(start, seed, quick=quick)
    return scores(trained(load_recipe(f"sentences/{name}"), start, seed, quick=quick), seed, quick=quick)


def trained(
    recipe: TextRecipe, start: Method, seed: int, *, quick: bool, epochs: int = 2, rate: float = RATE
) -> Method:
    """A recipe from the common start, on triplets where it reads pairs."""
    source = (triplets if recipe.data.positive else unlabelled)(500 if quick else NUM, seed)
    return fitted(short(recipe, seed, epochs=1 if quick else epochs, rate=rate), source, start.encoder)  # type: ignore[arg-type]
