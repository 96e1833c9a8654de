"""A recipe trained for a demonstration, its method kept for what the scores do not tell."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from nearfar.data import Data
from nearfar.method import Method
from nearfar.recipe import Recipe


def trained(
    recipe: Recipe, seed: int, epochs: int, *, data: Data | None = None, logged: tuple[str, ...] = ()
) -> tuple[Data, Method, dict[str, float]]:  # fmt: skip
    """The data, the method after so many epochs, in evaluation mode, and the scores of its features.

    `data` stands in place of the recipe's. `logged` names what training logged last, to be given with the scores.
    """
    from nearfar_images import pipeline

    with tempfile.TemporaryDirectory() as folder:
        output = str(Path(folder) / "run")
        trainer = dataclasses.replace(
            recipe.trainer, epochs=epochs, seed=seed, evaluate_every=0, evaluate_before=False, progress=False,
            report=False, checkpoint_every=10**6, output=output,
        )  # fmt: skip
        recipe = dataclasses.replace(recipe, trainer=trainer)
        data, _ = pipeline.build(recipe, data)
        run = pipeline.train(recipe, data=data)
        last = [row for row in run.metrics if "loss" in row][-1]
        scores = {name: score["value"] for name, score in run.scores["after"].items()} | {n: last[n] for n in logged}
        return data, pipeline.load_run(output, "last").method.cpu().eval(), scores


def untrained(recipe: Recipe, seed: int) -> tuple[Data, Method, dict[str, float]]:
    """The same before any step."""
    from nearfar_images import pipeline

    recipe = dataclasses.replace(recipe, trainer=dataclasses.replace(recipe.trainer, seed=seed))
    data, method = pipeline.build(recipe)
    scores = pipeline.evaluate(method.eval(), data, recipe.evaluate)
    return data, method.cpu().eval(), {name: score.value for name, score in scores.items()}
