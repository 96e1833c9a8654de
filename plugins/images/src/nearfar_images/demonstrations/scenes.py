"""Scenes of a few handwritten digits, labelled with all of them: what systems for several objects are tried on.

Legend: N scenes, C classes, D features.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nearfar.config import DataConfig, EncoderConfig, ImageViewConfig, TrainerConfig
from nearfar.data import ArraySource, Data, digits
from nearfar.recipe import Recipe

SIDE, DIGIT, CLASSES = 64, 22, 10
NUM_TRAIN, NUM_TEST = 1200, 400
EPOCHS, QUICK_EPOCHS, QUICK_PART, BATCH = 15, 1, 3, 128
VIEWS = ImageViewConfig(
    global_size=48, crop_scale=(0.3, 0.8), flip=0.0, jitter=0.0, grayscale=0.0, gain=(0.6, 1.4), noise=0.05
)


def arm(name: str, seed: int, quick: bool) -> dict[str, float]:
    """Mean average precision of a linear probe for the digits of held-out scenes, what the twenty nearest scenes of a
    training scene share with it, and what the method logged.

    Args:
        name: a recipe whose "NAME_digits" gives the method, or "untrained"; NAME_single trains and tests on scenes of
            one digit, which carry one label.
        seed: of scenes, weights, views and order.
        quick: one epoch of a third of the scenes instead of fifteen of all.
    """
    from nearfar.plugin import load
    from nearfar_images import pipeline

    system, single = name.removesuffix("_single"), name.endswith("_single")
    counts = (1,) if single else (2, 3)
    part = QUICK_PART if quick else 1
    train_x, train_y = scenes(NUM_TRAIN // part, counts, seed, held_out=False)
    test_x, test_y = scenes(NUM_TEST // part, counts, seed, held_out=True)
    few = ArraySource(test_x[:4], None, name="scenes")  # for the run's own page, which nobody reads here
    data = Data(ArraySource(train_x, None, name="scenes"), few)
    known = load("images").recipe(f"{'simclr' if system == 'untrained' else system}_digits")
    recipe = on_scenes(known, seed, quick)
    _, method = pipeline.build(recipe, data)
    logged: dict[str, float] = {}
    if system != "untrained":
        from nearfar.train import Trainer

        with tempfile.TemporaryDirectory() as folder:
            config = dataclasses.replace(recipe.trainer, output=str(Path(folder) / "run"))
            run = Trainer(method, data, config, optimiser=recipe.optimiser).fit()
            logged = logs(run.metrics)
    sources = [ArraySource(x, None, name="scenes") for x in (train_x, test_x)]
    (train_z, _), (test_z, _) = (pipeline.features(method.eval(), source) for source in sources)
    found = {"multi_label_map": multi_label_map(train_z, train_y, test_z, test_y)}
    return found | neighbour_precision(train_z, train_y) | logged


def on_scenes(recipe: Recipe, seed: int, quick: bool) -> Recipe:
    """A recipe for digits with the views, encoder and length that every arm on scenes has."""
    return dataclasses.replace(
        recipe,
        data=DataConfig(image_size=SIDE, channels=1),
        views=VIEWS,
        encoder=EncoderConfig(name="convnet", width=16, dim=128),
        trainer=TrainerConfig(
            epochs=QUICK_EPOCHS if quick else EPOCHS, batch_size=BATCH, seed=seed, evaluate_every=0, progress=False,
            log_every=1, device="cpu",
        ),
    )  # fmt: skip


def logs(metrics: list[dict[str, Any]]) -> dict[str, float]:
    """What the method itself logged, at the first and the last step."""
    rows = [row for row in metrics if "loss" in row]
    names = ("image_perplexity", "batch_perplexity")
    first = {f"{name}_first": rows[0][name] for name in names if name in rows[0]}
    return first | {f"{name}_last": rows[-1][name] for name in names if name in rows[-1]}


def scenes(num: int, counts: tuple[int, ...], seed: int, *, held_out: bool) -> tuple[np.ndarray, Tensor]:
    """Digits at places of their own on a black square.

    Args:
        num: N.
        counts: how many digits a scene may have, from 1 to 4.
        seed: of everything.
        held_out: from the quarter of the digits that training scenes never show.

    Returns:
        uint8 [N, 64, 64, 1], and labels [N, 10] of zeros and ones.
    """
    rng = np.random.default_rng([seed, int(held_out)])
    source = digits()
    assert source.labels is not None  # scikit-learn's digits have them
    pool = np.flatnonzero((np.arange(len(source)) % 4 == 3) == held_out)
    image = torch.stack([torch.from_numpy(source[int(i)]["image"]) for i in pool]).float()
    image = F.interpolate(image, (DIGIT, DIGIT), mode="bilinear")[:, 0].round().to(torch.uint8).numpy()
    labels = source.labels[pool]
    canvas, multi_hot = np.zeros((num, SIDE, SIDE, 1), np.uint8), torch.zeros(num, CLASSES)
    half = SIDE // 2
    for n in range(num):
        quarters = rng.permutation(4)[: rng.choice(counts)]
        for quarter, one in zip(quarters, rng.integers(len(pool), size=len(quarters)), strict=True):
            y, x = rng.integers(half - DIGIT + 1, size=2) + half * np.array(divmod(int(quarter), 2))
            canvas[n, y : y + DIGIT, x : x + DIGIT, 0] = image[one]
            multi_hot[n, int(labels[one])] = 1
    return canvas, multi_hot


def neighbour_precision(z: Tensor, y: Tensor, num_neighbours: int = 20) -> dict[str, float]:
    """Share of each scene's nearest other scenes that show one of its digits, and that share of all other scenes.

    Args:
        z: features [N, D], compared by cosine.
        y: [N, C] of zeros and ones.
    """
    unit = F.normalize(z.double(), dim=1)
    cosine = (unit @ unit.T).fill_diagonal_(-torch.inf)
    shared = (y @ y.T > 0).double().fill_diagonal_(0)
    near = shared.gather(1, cosine.topk(num_neighbours).indices)
    return {"label_precision": float(near.mean()), "chance_precision": float(shared.sum() / (len(z) * (len(z) - 1)))}


def multi_label_map(train_z: Tensor, train_y: Tensor, test_z: Tensor, test_y: Tensor, penalty: float = 1.0) -> float:
    """Mean over classes of the average precision of a logistic regression a class, fitted by L-BFGS.

    Args:
        train_z, test_z: features [N, D]; standardised by the training rows.
        train_y, test_y: [N, C] of zeros and ones.
        penalty: weight of half the squared norm, beside the sum of the losses.
    """
    from sklearn.metrics import average_precision_score

    train_z, test_z = train_z.double(), test_z.double()
    mean, std = train_z.mean(0), train_z.std(0).clamp_min(1e-6)
    train_z, test_z = (train_z - mean) / std, (test_z - mean) / std
    weight = torch.zeros(train_z.shape[1], train_y.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(train_y.shape[1], dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        logits = train_z @ weight + bias
        loss = F.binary_cross_entropy_with_logits(logits, train_y.double(), reduction="sum")
        loss = loss + penalty / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    scores = (test_z @ weight + bias).detach().numpy()
    return float(average_precision_score(test_y.numpy(), scores, average="macro"))
