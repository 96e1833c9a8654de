"""Small image encoders that build themselves on any machine; see `nearfar.zoo`. Loads no torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

from nearfar.recipe import Recipe
from nearfar.zoo import Model
from nearfar_images.systems.simclr import simclr_digits
from nearfar_images.systems.supcon import supcon_digits

TRAIN, LOAD = "nearfar_images.pipeline:train", "nearfar_images.pipeline:load_run"


def _short(recipe: Callable[[], Recipe], epochs: int) -> Recipe:
    """A demonstration's recipe within a minute of one core: fewer epochs, scores at the end only."""
    found = recipe()
    return dataclasses.replace(found, trainer=dataclasses.replace(found.trainer, epochs=epochs, evaluate_every=0))


# An untrained encoder has a kNN of about 0.976 on digits already; ten labels a digit tell a trained one from it.
DIGITS = Model(
    summary="handwritten digits, learnt without labels (simclr_digits)",
    recipe=partial(_short, simclr_digits, 30),
    gate={"knn": 0.97, "few_label": 0.92},
    train=TRAIN,
    load=LOAD,
    seconds=45,
)

DIGITS_SUPERVISED = Model(
    summary="handwritten digits, learnt with labels (supcon_digits)",
    recipe=partial(_short, supcon_digits, 30),
    gate={"knn": 0.97, "few_label": 0.97},
    train=TRAIN,
    load=LOAD,
    seconds=45,
)
