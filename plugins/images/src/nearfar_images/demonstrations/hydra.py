"""Things of a shape and a colour, whose texture no label tells: what contrast of any two classes keeps of it.

Legend: N images, C classes, D features.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nearfar.config import ContrastConfig, DataConfig, EncoderConfig, ImageViewConfig
from nearfar_images.demonstrations._fit import fit

SIDE, NUM_TRAIN, NUM_TEST = 24, 1200, 400
STEPS, QUICK_STEPS = 150, 4
SHAPES, COLOURS = ("circle", "triangle", "cross", "ring"), ("red", "green", "blue", "yellow")
TEXTURES = ("plain", "striped", "dotted")
VIEWS = ImageViewConfig(crop_scale=(0.7, 1.0), jitter=0.0, grayscale=0.0, gain=(0.7, 1.3), noise=0.05)


def arm(name: str, seed: int, quick: bool) -> dict[str, float]:
    """Linear probes of the features for class, shape, colour and the texture that no label told; effective rank.

    "held_out" is the texture's probe. Of Hydra also "gate_rank": the Spearman correlation between the cosine of two
    classes' gates and the number of attributes that the classes share.

    Args:
        name: "hydra", or with "_distinct" or "_identical" partners; "supcon"; "untrained".
        seed: of scenes, weights, views and order.
        quick: 4 steps instead of 150.
    """
    from nearfar.data import ArraySource
    from nearfar.evaluate import geometry, linear_probe
    from nearfar.plugin import load
    from nearfar_images import pipeline

    (train_x, train_y), (test_x, test_y) = scenes(seed)
    source = ArraySource(train_x, train_y["label"].numpy(), name="things")
    recipe = load("images").recipe("hydra_digits")
    method: Any = recipe.method
    if name == "supcon":
        method = ContrastConfig(pairs="labels", loss="supcon", temperature=0.1, head=method.head)
    elif name.startswith("hydra_"):
        method = dataclasses.replace(method, pairing=name.removeprefix("hydra_"))
    recipe = dataclasses.replace(
        recipe, method=method, views=VIEWS, data=DataConfig(image_size=SIDE, channels=3),
        trainer=dataclasses.replace(recipe.trainer, batch_size=128),
        encoder=EncoderConfig(name="convnet", width=16, dim=64),
    )  # fmt: skip
    steps = QUICK_STEPS if quick else STEPS
    built = fit(recipe, source, seed, steps=0 if name == "untrained" else steps, epochs=0)
    train_z, test_z = (pipeline.features(built, ArraySource(x))[0] for x in (train_x, test_x))
    found = {
        metric: linear_probe(train_z, train_y[field], test_z, test_y[field]).value
        for metric, field in (("class", "label"), ("shape", "shape"), ("colour", "colour"), ("held_out", "texture"))
    }
    found["effective_rank"] = geometry(test_z)["effective_rank"]
    return found | ({"gate_rank": gate_rank(built.gate)} if name.startswith("hydra") else {})  # type: ignore[arg-type]


@lru_cache(maxsize=2)
def scenes(seed: int) -> tuple[tuple[np.ndarray, dict[str, Tensor]], tuple[np.ndarray, dict[str, Tensor]]]:
    """Images uint8 [N, 3, 24, 24] with shape, colour, texture and class, to learn from and held out."""
    from nearfar.worlds import Factors, Render, Scenes

    factors = Factors(
        shapes=SHAPES, colours=COLOURS, sizes=("large",), radii=(0.3,), textures=TEXTURES, backgrounds=("grey",),
        grounds=("plain",), num=(1, 1),
    )  # fmt: skip
    batch = Scenes(factors, render=Render(size=SIDE)).sample(NUM_TRAIN + NUM_TEST, seed)
    labels = {name: batch[name].values for name in ("shape", "colour", "texture")}
    labels["label"] = labels["shape"] * len(COLOURS) + labels["colour"]
    image = batch["image"].numpy()
    first = (image[:NUM_TRAIN], {name: values[:NUM_TRAIN] for name, values in labels.items()})
    return first, (image[NUM_TRAIN:], {name: values[NUM_TRAIN:] for name, values in labels.items()})


@torch.no_grad()
def gate_rank(gate: Any) -> float:
    """How far classes that share an attribute have similar gates."""
    from scipy.stats import spearmanr

    classes = torch.arange(len(SHAPES) * len(COLOURS))
    gates = gate.eval()(classes, classes)
    gates = torch.nn.functional.normalize(gates - gates.mean(0), dim=1)
    shape, colour = classes // len(COLOURS), classes % len(COLOURS)
    shared = (shape[:, None] == shape).long() + (colour[:, None] == colour).long()
    pairs = torch.triu_indices(len(classes), len(classes), 1).unbind(0)
    return float(spearmanr((gates @ gates.t())[pairs].numpy(), shared[pairs].numpy())[0])  # type: ignore[arg-type]
