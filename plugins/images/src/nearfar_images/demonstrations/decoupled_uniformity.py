"""Decoupled uniformity with a telling, a learnt and a random prior, beside SimCLR, where views vary little."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import numpy as np

from nearfar_images.demonstrations import EPOCHS, train_and_score

SEGMENTS = ("abcdef", "bc", "abged", "abgcd", "fgbc", "afgcd", "afgedc", "abc", "abcdefg", "abcdfg")
"""segments of a seven-segment display that show each digit: attributes that several digits share"""


def arm(name: str, seed: int, quick: bool) -> dict[str, float]:
    """Scores of one arm on digits.

    Args:
        name: "simclr", "no_prior", or where the prior comes from: "attributes" (seven of the class, zeros and ones),
            "pca" (sixteen components of the pixels), "random" (sixteen numbers).
        seed: of weights, views, order, and the random prior.
        quick: two epochs instead of thirty.
    """
    from nearfar.plugin import load

    plugin = load("images")
    recipe = plugin.recipe("decoupled_uniformity_digits")
    if name == "simclr":
        recipe = dataclasses.replace(
            plugin.recipe("simclr_digits"), views=recipe.views, trainer=recipe.trainer, optimiser=recipe.optimiser
        )
    with tempfile.TemporaryDirectory() as folder:
        if name not in ("simclr", "no_prior"):
            path = Path(folder) / "prior.npy"
            np.save(path, _prior(name, seed))
            recipe = dataclasses.replace(recipe, method=dataclasses.replace(recipe.method, prior=str(path)))
        return train_and_score(recipe, seed, quick, epochs=EPOCHS)


def _prior(name: str, seed: int) -> np.ndarray:
    """A row for every digit [N, Q]."""
    from nearfar.data import digits

    source = digits()
    if name == "random":
        return np.random.default_rng(seed).normal(size=(len(source), 16))
    if name == "attributes":
        labels = source.labels
        assert labels is not None  # scikit-learn's digits have them
        return np.array([[float(segment in SEGMENTS[label]) for segment in "abcdefg"] for label in labels])
    pixels = np.stack([source[i]["image"].reshape(-1) for i in range(len(source))]).astype(np.float64)
    pixels -= pixels.mean(0)
    _, _, components = np.linalg.svd(pixels, full_matrices=False)
    return pixels @ components[:16].T
