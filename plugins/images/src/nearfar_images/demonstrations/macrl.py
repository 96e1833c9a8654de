"""MACRL beside each of its halves, on the same transformer."""

from __future__ import annotations

import torch

EPOCHS, QUICK_EPOCHS = 20, 1


def arm(name: str, seed: int, quick: bool) -> dict[str, float]:
    """Scores of features on digits after twenty epochs, and the error of reconstruction.

    "reconstruction" is the mean absolute error of removed pixels of held-out digits' first views, in [0, 1] units.

    Args:
        name: "macrl"; "macrl_half", with fewer patches removed; "macrl_symmetric", with views drawn and masked alike;
            "mae_only" and "moco_only", the halves; "untrained".
        seed: of weights, views and order.
        quick: one epoch.
    """
    from nearfar.batch import collate
    from nearfar.method import Progress
    from nearfar.plugin import load
    from nearfar.rng import Rng
    from nearfar_images.demonstrations._trained import trained, untrained

    recipe = load("images").recipe("macrl_digits" if name == "untrained" else f"{name}_digits")
    if name == "untrained":
        data, method, scores = untrained(recipe, seed)
    else:
        data, method, scores = trained(recipe, seed, QUICK_EPOCHS if quick else EPOCHS)
    if name == "moco_only":
        return scores
    batch = method.views(collate([data.test[i] for i in range(len(data.test))]), Rng(seed))
    with torch.no_grad():
        terms = method.loss(method.encode(batch), batch, method.targets(batch, Progress()), Progress())
    return scores | {"reconstruction": float(terms.values["pixels_a"])}
