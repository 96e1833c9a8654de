"""DCL beside SimCLR where the batch is small."""

from __future__ import annotations

import dataclasses

from nearfar_images.demonstrations import train_and_score

BATCH, EPOCHS = 16, 10


def arm(name: str, seed: int, quick: bool) -> dict[str, float]:
    """Scores on digits after ten epochs of batches of 16, with the learning rate divided by 4 in both arms."""
    from nearfar.plugin import load

    recipe = load("images").recipe(f"{name}_digits")
    recipe = dataclasses.replace(
        recipe,
        trainer=dataclasses.replace(recipe.trainer, batch_size=BATCH),
        optimiser=dataclasses.replace(recipe.optimiser, lr=recipe.optimiser.lr / 4),
    )
    scores = train_and_score(recipe, seed, quick, epochs=EPOCHS)
    return {f"knn_at_batch_{BATCH}": scores["knn"], **{n: scores[n] for n in ("linear", "few_label", "map")}}
