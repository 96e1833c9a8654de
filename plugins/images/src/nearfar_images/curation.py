"""Images chosen by how hard they are to reconstruct: statistics of a source, the rule, and training by it.

run = curated(load_recipe("images/pixio"), load_recipe("images/pixio_small"), "work")

Legend: B batch, N images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from nearfar.batch import collate, to
from nearfar.checks import expect
from nearfar.data import Data, Source
from nearfar.recipe import Recipe
from nearfar.rng import Rng
from nearfar.samplers.base import Planned, check_batch, fingerprint, generator
from nearfar.train import Context, Features, Pipeline, Stage, Trainer, train_stage
from nearfar_images import pipeline
from nearfar_images.data import open_images
from nearfar_images.methods.pixio import Pixio

BINS = 256  # of a histogram: one a level


@dataclass(frozen=True)
class Statistics:
    """What is known of every image of a source, in its order.

    Args:
        entropy: bits [N], of the histogram of all its pixel values.
        side: pixels [N], the smaller of height and width.
        hardness: [N], the error of its removed patches.
    """

    entropy: np.ndarray
    side: np.ndarray
    hardness: np.ndarray


def entropy(image: Tensor) -> float:
    """Entropy in bits of the histogram of an image's values, uint8 [C, H, W]; from 0 to 8."""
    share = image.flatten().long().bincount(minlength=BINS).double() / image.numel()
    return float(torch.special.entr(share).sum() / np.log(2))


@torch.no_grad()
def statistics(method: Pixio, source: Source, *, batch_size: int = 256, seed: int = 0) -> Statistics:
    """Statistics of every image; one random view of each is masked, always the same."""
    method = method.eval()
    device = next(method.parameters()).device
    values, sides, errors = [], [], []
    for start in range(0, len(source), batch_size):
        samples = [source[i] for i in range(start, min(start + batch_size, len(source)))]
        images = [torch.as_tensor(sample["image"]) for sample in samples]
        values += [entropy(image) for image in images]
        sides += [min(image.shape[1:]) for image in images]
        viewed = method.views(to(collate(samples), device), Rng(seed))
        errors.append(method.errors(method.encode(viewed), viewed).cpu())
    return Statistics(np.array(values), np.array(sides), torch.cat(errors).double().numpy())


def keep(
    hardness: Float[Tensor, " N"], draw: Float[Tensor, " N"]
) -> Bool[Tensor, " N"]:  # fmt: skip
    """Whether an image is taken when it comes by: with probability min(1, hardness).

    Args:
        hardness: of each.
        draw: uniform in [0, 1).
    """
    return draw < hardness


class Curated(Planned):
    """Every image as often as it is hard: an image that comes by is skipped with probability 1 - min(1, hardness).

    Args:
        hardness: finite numbers of 0 or more [N]; images of 0 never come.
        batch_size: images of a batch over all processes.
        seed: 0 or more.

    Raises:
        ValueError: numbers that are negative or not finite; too few images kept for a batch.

    Notes: an epoch has as many batches as the images that one pass keeps would fill on average; where one keeps fewer,
        a further pass makes up for it.

    Source: Yang et al., "In Pursuit of Pixel Supervision for Visual Pre-training", 2025.
    """

    kept = ("batch_size", "seed", "data")

    def __init__(self, hardness: np.ndarray, batch_size: int, *, seed: int = 0) -> None:
        check_batch(batch_size, seed)
        array = np.asarray(hardness, dtype=np.float64)
        good = array.ndim == 1 and bool(np.isfinite(array).all() and (array >= 0).all())
        expect(good, "hardness", "finite numbers of 0 or more, one an image", array[:3])
        self.batch_size, self.seed, self.data = batch_size, seed, fingerprint(array)
        self.hardness = torch.from_numpy(array)
        self._num = int(np.minimum(array, 1).sum() / batch_size + 1e-9)
        expect(self._num >= 1, "batch_size", f"at most the {np.minimum(array, 1).sum():.0f} images kept of a pass",
               batch_size)  # fmt: skip

    def num_batches(self, epoch: int) -> int:
        """Batches of an epoch."""
        return self._num

    def plan(self, epoch: int) -> np.ndarray:
        """All batches of an epoch, int64 [batches, batch_size]."""
        rng, wanted = generator(self.seed, epoch), self._num * self.batch_size
        parts: list[np.ndarray] = []
        while sum(map(len, parts)) < wanted:
            order = rng.permutation(len(self.hardness))
            taken = keep(self.hardness[order], torch.from_numpy(rng.random(len(order))))
            parts.append(order[taken.numpy()])
        return np.concatenate(parts)[:wanted].reshape(self._num, self.batch_size).astype(np.int64)


def curated(
    recipe: Recipe,
    small: Recipe,
    folder: str | Path,
    *,
    least_entropy: float = 4.5,
    least_side: int = 320,
    data: Data | None = None,
    resume: bool = False,
) -> Path:
    """Trains a small masked autoencoder, measures every image by it, and trains on those that are hard more often.

    Args:
        recipe: what is trained in the end, any of this plugin.
        small: a recipe of `pixio`, trained first on the same images.
        folder: where each stage has a folder.
        least_entropy: bits; images of as much or less are dropped.
        least_side: pixels; images with a smaller side are dropped.
        data: instead of what `recipe` describes.
        resume: keep stages that are done, and let an unfinished one go on.

    Returns:
        The folder of the last run.

    Raises:
        ValueError: no batch of images is left.
    """
    found = open_images(recipe.data) if data is None else data

    def first(context: Context) -> Trainer:
        return _trainer(small, found)

    def measure(context: Context) -> Mapping[str, Features]:
        method: Any = pipeline.load_run(context.inputs["small.run"].path, "last").method
        expect(isinstance(method, Pixio), "small", "a recipe of pixio", small.name)
        seen = statistics(method, found.train, seed=small.trainer.seed)
        table = np.stack([seen.entropy, seen.side, seen.hardness], 1).astype(np.float64)
        return {"statistics": Features(table, np.arange(len(table)))}

    def last(context: Context) -> Trainer:
        value, side, hardness = context.inputs["measure.statistics"].x.T
        dropped = (value <= least_entropy) | (side < least_side)
        config = recipe.trainer
        return _trainer(recipe, found, Curated(np.where(dropped, 0.0, hardness), config.batch_size, seed=config.seed))

    data_id = found.train.fingerprint()
    stages = [
        Stage("small", train_stage(first), (), {"recipe": dataclasses.asdict(small), "data": data_id}),
        Stage("measure", measure, ("small.run",), {"data": data_id}),
        Stage("train", train_stage(last), ("measure.statistics",), {
            "recipe": dataclasses.asdict(recipe), "least_entropy": least_entropy, "least_side": least_side,
        }),
    ]  # fmt: skip
    left: Any = Pipeline(folder, stages).run(resume=resume)["train.run"]
    return Path(left.path)


def _trainer(recipe: Recipe, data: Data, sampler: Curated | None = None) -> Trainer:
    _, method = pipeline.build(recipe, data)
    return Trainer(
        method, data, recipe.trainer, optimiser=recipe.optimiser, evaluate=recipe.evaluate,
        recipe=pipeline.resolve(recipe, data.train), sampler=sampler, workers=recipe.data.workers,
    )  # fmt: skip
