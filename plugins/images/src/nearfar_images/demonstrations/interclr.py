"""InterCLR on digits: scores of features, and how well its pseudo-classes agree with the digits."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from nearfar_images.demonstrations import EPOCHS, QUICK_EPOCHS, recipe_arm

EARLY = 5
"""epochs after which the agreement is first measured"""


def arm(name: str, seed: int, quick: bool) -> dict[str, float]:
    """Scores on digits, and of arms with pseudo-classes their normalised mutual information with the digits.

    "nmi" at the end and "nmi_early" after five epochs, of the labels that the memory holds then.

    Args:
        name: a recipe NAME_digits, or "untrained".
        seed: of weights, views and order.
        quick: two epochs instead of thirty.
    """
    if not name.startswith("interclr"):
        return recipe_arm(name, seed, quick)
    from sklearn.metrics import normalized_mutual_info_score

    from nearfar.data import labels_of
    from nearfar.plugin import load
    from nearfar.train import Trainer
    from nearfar_images import pipeline

    recipe = load("images").recipe(f"{name}_digits")
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        trainer = dataclasses.replace(
            recipe.trainer, epochs=QUICK_EPOCHS if quick else EPOCHS, seed=seed, evaluate_every=0,
            evaluate_before=False, progress=False, checkpoint_every=10**6, log_every=1,
            output=str(Path(folder) / "run"),
        )  # fmt: skip
        recipe = dataclasses.replace(recipe, trainer=trainer)
        data, method = pipeline.build(recipe)

        def agreement() -> float:
            label: Any = method.memory.view("label").cpu()  # type: ignore[operator]
            index = (label >= 0).nonzero()[:, 0]
            return float(normalized_mutual_info_score(labels_of(data.train, index), label[index]))

        def callback(running: Trainer, row: dict[str, Any]) -> None:
            if running.epoch == EARLY and "nmi_early" not in found:
                found["nmi_early"] = agreement()

        run = Trainer(method, data, trainer, optimiser=recipe.optimiser, evaluate=recipe.evaluate,
                      recipe=pipeline.resolve(recipe, data.train), callbacks=[callback]).fit()  # fmt: skip
        found["nmi"] = agreement()
        return {key: score["value"] for key, score in run.scores["after"].items()} | found
