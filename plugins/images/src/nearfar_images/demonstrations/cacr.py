"""CACR beside its ablations, NT-Xent, and alignment with uniformity, on even and on long-tailed digits."""

from __future__ import annotations

import dataclasses

from nearfar_images.demonstrations import QUICK_EPOCHS
from nearfar_images.demonstrations._trained import trained

EPOCHS = {"balanced": 5, "imbalanced": 15}  # about 100 and 90 steps
IMBALANCE = 20.0
RECIPES = {"nt_xent": "multi_view_pairs_digits", "align_uniform": "align_uniform_digits"}


def arm(name: str, seed: int, quick: bool) -> dict[str, float]:
    """Probes that all training labels fit, of encoders that saw all of the training digits or a long tail of them.

    Args:
        name: a recipe of CACR without "_digits"; "nt_xent" is its mean over pairs of five views.
        seed: of weights, views and order; the tail is the same for every seed but the classes' order.
        quick: two epochs.
    """
    import numpy as np

    from nearfar.data import Data, long_tail
    from nearfar.plugin import load
    from nearfar_images import pipeline
    from nearfar_images.data import open_images

    plugin = load("images")
    base = plugin.recipe("cacr_digits")
    recipe = dataclasses.replace(
        plugin.recipe(RECIPES.get(name, f"{name}_digits")),
        views=base.views,
        trainer=base.trainer,
        optimiser=base.optimiser,
    )
    whole = open_images(recipe.data)
    order = np.random.default_rng(seed).permutation(10).tolist()
    few = Data(long_tail(whole.train, IMBALANCE, order=order), whole.test, whole.holdout)
    found = {}
    for what, data in (("balanced", whole), ("imbalanced", few)):
        _, method, _ = trained(recipe, seed, QUICK_EPOCHS if quick else EPOCHS[what], data=data)
        scores = pipeline.evaluate(method, whole, recipe.evaluate)
        found |= {f"{metric}_{what}": scores[metric].value for metric in ("linear", "few_label", "knn")}
    return found
