"""MoCHi beside MoCo with the same and with twice the queue."""

from __future__ import annotations

from nearfar_images.demonstrations import EPOCHS, QUICK_EPOCHS
from nearfar_images.demonstrations._trained import trained


def arm(name: str, seed: int, quick: bool) -> dict[str, float]:
    """Scores on digits, the uniformity of held-out embeddings, and how often the key was found at the end of training.

    Args:
        name: a recipe without "_digits". Mixtures make the denominator harder, so that accuracy falls; where there are
            some, the share of the hardest keys that are of the query's class is given too.
        seed: of weights, views, order and mixtures.
        quick: two epochs, before anything is mixed, instead of thirty.
    """
    from nearfar.evaluate import geometry
    from nearfar.plugin import load
    from nearfar_images import pipeline

    recipe = load("images").recipe(f"{name}_digits")
    mixes = recipe.method.num_pairs > 0 and not quick  # type: ignore[attr-defined]
    logged = ("accuracy", "false_negatives") if mixes else ("accuracy",)
    data, method, scores = trained(recipe, seed, QUICK_EPOCHS if quick else EPOCHS, logged=logged)
    z, _ = pipeline.features(method, data.test, output="embedding")
    return {k: scores[k] for k in ("linear", "few_label", "knn", *logged)} | {
        "embedding_uniformity": geometry(z)["uniformity"]
    }
