"""Few images with many views beside many images with few, for as many steps."""

from __future__ import annotations

import dataclasses

from nearfar_images.demonstrations import train_and_score

STEPS, QUICK_STEPS = 100, 10
VIEWS, IMAGES = 256, 64
RECIPES = {
    "geometric": "poly_view_digits",
    "arithmetic": "poly_view_arithmetic_digits",
    "sufficient": "poly_view_sufficient_digits",
    "pairs": "multi_view_pairs_digits",
}


def arm(name: str, seed: int, quick: bool) -> dict[str, float]:
    """Scores on digits after as many steps: with 256 views a batch, and with 64 images a batch.

    Args:
        name: FORM_mM: a form and its number of views; with two, every form is NT-Xent.
        seed: of weights, views and order.
        quick: ten steps.
    """
    from nearfar.plugin import load

    form, _, num = name.rpartition("_m")
    recipe = load("images").recipe(RECIPES[form])
    found = {}
    for what, batch in (("views", VIEWS // int(num)), ("images", IMAGES)):
        sized = dataclasses.replace(
            recipe,
            views=dataclasses.replace(recipe.views, num_views=int(num)),
            trainer=dataclasses.replace(recipe.trainer, batch_size=batch, max_steps=QUICK_STEPS if quick else STEPS),
        )
        scores = train_and_score(sized, seed, False)
        found |= {f"{metric}_at_equal_{what}": scores[metric] for metric in ("linear", "few_label", "knn")}
    return found
