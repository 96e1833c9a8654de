"""MACL beside NT-Xent at fixed temperatures, where the batch is small and where it is not."""

from __future__ import annotations

import dataclasses

from nearfar_images.demonstrations import QUICK_EPOCHS
from nearfar_images.demonstrations._trained import trained

EPOCHS = {32: 10, 256: 30}  # about 420 and 150 steps


def arm(name: str, seed: int, quick: bool) -> dict[str, float]:
    """Linear probes on digits after training with small and large batches, learning rates scaled by their root.

    "tau_T" is NT-Xent at temperature T; MACL begins at 0.1 and also tells where its temperature went.
    """
    from nearfar.plugin import load

    recipe = load("images").recipe("macl_digits" if name == "macl" else "simclr_digits")
    if name != "macl":
        method = dataclasses.replace(recipe.method, temperature=float(name.removeprefix("tau_")))
        recipe = dataclasses.replace(recipe, method=method)
    found = {}
    for batch, epochs in EPOCHS.items():
        sized = dataclasses.replace(
            recipe,
            trainer=dataclasses.replace(recipe.trainer, batch_size=batch),
            optimiser=dataclasses.replace(recipe.optimiser, lr_scaling="sqrt"),
        )
        logged = ("temperature", "positive") if name == "macl" else ()
        _, _, scores = trained(sized, seed, QUICK_EPOCHS if quick else epochs, logged=logged)
        found |= {f"{n}_at_batch_{batch}": scores[n] for n in ("linear", "few_label", "knn", *logged)}
    return found
