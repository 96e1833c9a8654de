"""What the demonstrations of several systems run: recipes on handwritten digits, and what they are held against."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

from nearfar.catalog import Demonstration
from nearfar.recipe import Recipe

DIGITS = "scikit-learn's digits, 1,347 to learn from and 450 held out"
EPOCHS, QUICK_EPOCHS = 30, 2


def digits(*arms: str, seeds: int = 3) -> Demonstration:
    """A demonstration whose arms are recipes on digits, or controls: "untrained", "pixels"."""
    return Demonstration(arms=arms, run="nearfar_images.demonstrations:recipe_arm", data=DIGITS, seeds=seeds)


def recipe_arm(arm: str, seed: int, quick: bool) -> dict[str, float]:
    """Scores of one arm on digits.

    Args:
        arm: a recipe, "NAME" or "NAME_digits" of this plugin; "untrained" is SimCLR's encoder before any step,
            "pixels" the images themselves.
        seed: of weights, views and order.
        quick: two epochs instead of thirty.
    """
    from nearfar.plugin import load
    from nearfar_images import pipeline
    from nearfar_images.data import open_images

    recipes = load("images").recipes()
    if arm not in ("untrained", "pixels"):
        name = f"{arm}_digits" if f"{arm}_digits" in recipes else arm
        return train_and_score(load("images").recipe(name), seed, quick)
    recipe = _seeded(load("images").recipe("simclr_digits"), seed)
    if arm == "untrained":
        data, method = pipeline.build(recipe)
    else:
        data = open_images(recipe.data)
        method = pipeline.load_pixels(pipeline.resolve_data(recipe.data, data.train))
    return {name: score.value for name, score in pipeline.evaluate(method.eval(), data, recipe.evaluate).items()}


def train_and_score(recipe: Recipe, seed: int, quick: bool, *, epochs: int = EPOCHS) -> dict[str, float]:
    """Trains a recipe for the demonstration's epochs and gives the scores of its last step."""
    from nearfar_images import pipeline

    with tempfile.TemporaryDirectory() as folder:
        recipe = _seeded(recipe, seed)
        trainer = dataclasses.replace(
            recipe.trainer, epochs=QUICK_EPOCHS if quick else epochs, evaluate_every=0, evaluate_before=False,
            progress=False, checkpoint_every=10**6, report=False,
            output=str(Path(folder) / "run"),
        )  # fmt: skip
        run = pipeline.train(dataclasses.replace(recipe, trainer=trainer))
        return {name: score["value"] for name, score in run.scores["after"].items()}


def _seeded(recipe: Recipe, seed: int) -> Recipe:
    return dataclasses.replace(recipe, trainer=dataclasses.replace(recipe.trainer, seed=seed))
