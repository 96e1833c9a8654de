"""Training for a demonstration that scores features itself: no scores on the way, no page at the end."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nearfar.recipe import Recipe

if TYPE_CHECKING:
    from nearfar.data import Source

FEW = 4
"""images that a run is judged on: too few for scores and for a map of features, which take longer than the training"""


def fit(
    recipe: Recipe, source: Source, seed: int, *, steps: int = 0, epochs: int = 1,
    before: Callable[[Any], None] | None = None,
) -> Any:  # fmt: skip
    """The method of a recipe after training on a source, on the CPU in evaluation mode.

    Args:
        recipe: its batch size is cut to the source's.
        source: to learn from.
        seed: of weights, views and order.
        steps: optimiser steps; 0: after the epochs.
        epochs: where steps is 0; 0: the method as it is made.
        before: called with the method before it learns.
    """
    from nearfar.data import ArraySource, Data
    from nearfar.train import Trainer
    from nearfar_images import pipeline

    batch = min(recipe.trainer.batch_size, len(source))
    few = ArraySource(source[0]["image"][None].repeat(FEW, 0), name="few", layout="nchw")
    with tempfile.TemporaryDirectory() as folder:
        trainer = dataclasses.replace(
            recipe.trainer, batch_size=batch, epochs=-(-steps // (len(source) // batch)) or max(epochs, 1),
            max_steps=steps, seed=seed, evaluate_every=0, evaluate_before=False, checkpoint_every=10**6, monitor="knn",
            progress=False, output=str(Path(folder) / "run"),
        )  # fmt: skip
        recipe = dataclasses.replace(recipe, trainer=trainer)
        data, method = pipeline.build(recipe, Data(source, few))
        if before is not None:
            before(method)
        if steps or epochs:
            Trainer(method, data, recipe.trainer, optimiser=recipe.optimiser).fit()
    return method.cpu().eval()
