"""MCL on digits in coloured frames: the frame is easy to tell, the digit is not."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

EPOCHS, QUICK_EPOCHS = 15, 1
FRAME = 6
"""pixels of the frame, of 32"""
DIM = 0.4
"""brightness of the digit"""
COLOURS = np.array([
    (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255), (0, 255, 255), (255, 255, 255), (255, 128, 0),
])  # fmt: skip


def arm(name: str, seed: int, quick: bool) -> dict[str, float]:
    """Accuracy of linear probes for the frame ("easy") and the digit ("hard").

    Args:
        name: "mcl": two stages, each batch of the second from one cluster, joined; "second": of these the second alone;
            "first": the first alone; "long": the first for twice as long; "mcl_batch": both in one run, where the
            samples of a batch that share a cluster meet; "untrained".
        seed: of frames, weights, views and order.
        quick: one epoch a stage instead of fifteen.
    """
    from nearfar.data import ArraySource, Data
    from nearfar.plugin import load
    from nearfar_images import pipeline
    from nearfar_images.data import open_images
    from nearfar_images.multistage import Joined, multistage

    epochs = QUICK_EPOCHS if quick else EPOCHS
    recipe = load("images").recipe("mcl_multistage_digits")
    plain = open_images(recipe.data)
    parts = [framed(part, seed, held) for held, part in enumerate((plain.train, plain.test))]
    sources = [ArraySource(image, None, name="framed", layout="nhwc") for image, _, _ in parts]
    # the run's own page needs no more than a few images, and nobody reads it here
    data = Data(sources[0], ArraySource(parts[1][0][:4], None, name="framed", layout="nhwc"))
    times = 2 if name in ("long", "mcl_batch") else 1
    method_config = recipe.method if name == "mcl_batch" else dataclasses.replace(recipe.method, num_stages=0)
    with tempfile.TemporaryDirectory() as folder:
        recipe = dataclasses.replace(
            recipe,
            method=method_config,
            trainer=dataclasses.replace(
                recipe.trainer, epochs=epochs * times, seed=seed, evaluate_every=0, evaluate_before=False,
                progress=False, checkpoint_every=10**6, output=str(Path(folder) / "run"),
            ),
        )  # fmt: skip
        method: Any
        if name == "untrained":
            method = pipeline.build(recipe, data)[1]
        elif name in ("mcl", "second"):
            runs = multistage(recipe, Path(folder) / "stages", num_clusters=len(COLOURS), data=data)
            method = Joined(runs if name == "mcl" else runs[1:])
        else:
            run = pipeline.train(recipe, data=data)
            method = pipeline.load_run(run.path, "last").method
        (train_x, _), (test_x, _) = (pipeline.features(method.eval(), source) for source in sources)
    return {
        key: probe(train_x, torch.as_tensor(parts[0][k]), test_x, torch.as_tensor(parts[1][k]))
        for key, k in (("easy", 2), ("hard", 1))
    }


def framed(source: Any, seed: int, held: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images uint8 [N, 32, 32, 3] of dim digits in frames, their digits [N], and the colours of their frames [N]."""
    rng = np.random.default_rng([seed, held])
    grey = torch.stack([torch.from_numpy(source[i]["image"])[:1] for i in range(len(source))]).float()
    inner = 32 - 2 * FRAME
    grey = F.interpolate(grey, (inner, inner), mode="bilinear") * DIM
    colour = rng.integers(len(COLOURS), size=len(grey))
    images = np.repeat(np.repeat(COLOURS[colour][:, None, None], 32, 1), 32, 2).astype(np.uint8)
    images[:, FRAME:-FRAME, FRAME:-FRAME] = grey.permute(0, 2, 3, 1).round().to(torch.uint8).numpy()
    return images, np.asarray(source.labels), colour


def probe(train_x: torch.Tensor, train_y: torch.Tensor, test_x: torch.Tensor, test_y: torch.Tensor) -> float:
    """Accuracy of the linear probe that all systems are scored by."""
    from nearfar.evaluate import linear_probe

    return linear_probe(train_x, train_y, test_x, test_y).value
