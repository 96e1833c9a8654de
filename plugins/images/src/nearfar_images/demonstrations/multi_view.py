"""Losses of many views at several numbers of views, with as many samples in a batch."""

from __future__ import annotations

import dataclasses

from nearfar_images.demonstrations import QUICK_EPOCHS
from nearfar_images.demonstrations._trained import trained

EPOCHS = 8
RECIPES = {
    "mv_dhel": "mv_infonce_mv_dhel_digits",
    "mv_infonce": "mv_infonce_digits",
    "pairs": "multi_view_pairs_digits",
    "pvc": "poly_view_digits",
}


def arm(name: str, seed: int, quick: bool) -> dict[str, float]:
    """Scores on digits, and the effective rank of the centred embeddings of held-out ones.

    Args:
        name: LOSS_vV: a loss and its number of views; pvc is geometric poly-view contrast.
        seed: of weights, views and order.
        quick: two epochs instead of eight.
    """
    from nearfar.evaluate import geometry
    from nearfar.plugin import load
    from nearfar_images import pipeline

    loss, _, num = name.rpartition("_v")
    plugin = load("images")
    base, own = plugin.recipe(RECIPES["mv_dhel"]), plugin.recipe(RECIPES[loss])
    method = dataclasses.replace(own.method, temperature=base.method.temperature)  # type: ignore[call-arg]
    recipe = dataclasses.replace(
        own,
        method=method,
        views=dataclasses.replace(base.views, num_views=int(num)),
        trainer=base.trainer,
        optimiser=base.optimiser,
    )
    data, trained_method, scores = trained(recipe, seed, QUICK_EPOCHS if quick else EPOCHS)
    z, _ = pipeline.features(trained_method, data.test, output="embedding")
    rank = geometry(z - z.mean(0))["effective_rank"]
    return {k: scores[k] for k in ("linear", "few_label", "knn")} | {"effective_rank": rank}
