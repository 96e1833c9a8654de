"""iBOT beside DINO on the same transformer, and beside that transformer untrained."""

from __future__ import annotations

import dataclasses

from nearfar_images.demonstrations import train_and_score

EPOCHS = 20


def arm(name: str, seed: int, quick: bool) -> dict[str, float]:
    """Scores on digits after twenty epochs: "ibot"; "dino", the same recipe without masked patches; "untrained"."""
    from nearfar.plugin import load
    from nearfar_images import pipeline

    recipe = load("images").recipe("ibot_digits")
    if name == "untrained":
        recipe = dataclasses.replace(recipe, trainer=dataclasses.replace(recipe.trainer, seed=seed))
        data, method = pipeline.build(recipe)
        scores = pipeline.evaluate(method.eval(), data, recipe.evaluate)
        return {metric: score.value for metric, score in scores.items()}
    if name == "dino":
        plain = dataclasses.replace(recipe.method, mask_share=0.0)
        recipe = dataclasses.replace(recipe, method=plain)
    return train_and_score(recipe, seed, quick, epochs=EPOCHS)
