"""Where does a bar stand? Contrast for regression beside SupCon on bins and an L1 loss, with few or skewed labels.

Legend: N images, V views, D features.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nearfar.batch import Batch
from nearfar.config import DataConfig, EncoderConfig, FrameConfig, HeadConfig, ImageViewConfig
from nearfar.data import Annotated, ArraySource
from nearfar.method import Progress, Terms, Views
from nearfar.methods import Frame
from nearfar_images.demonstrations._fit import fit

SIDE, RANGE, NUM_BINS = 24, 60.0, 12
NUM_TRAIN, NUM_FEW, NUM_TEST = 600, 60, 300
STEPS, QUICK_STEPS = 120, 6
VIEWS = ImageViewConfig(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0, jitter=0.0, grayscale=0.0,
                        gain=(0.6, 1.4), noise=0.1)  # fmt: skip


def arm(name: str, seed: int, quick: bool) -> dict[str, float]:
    """Error of a ridge probe and rank correlation of distances on held-out bars, from three sets of training samples.

    "mae_full", "mae_few", "mae_skewed" are mean absolute errors in a range of 60; "rank_..." the Spearman correlation
    of |y_i - y_j| with the distance of the features' directions; "mae" and "rank" their means.

    Args:
        name: "supremix", or with "_negative" or "_positive" mixtures alone; "supcon" on 12 bins; "l1", a linear layer
            on the same features with an L1 loss; "untrained".
        seed: of bars, weights, views and order.
        quick: 6 steps instead of 120.
    """
    test_x, test_t = bars(NUM_TEST, seed, held_out=True)
    found: dict[str, float] = {}
    for kind in ("full", "few", "skewed"):
        num = NUM_FEW if kind == "few" else NUM_TRAIN
        train_x, train_t = bars(num, seed, skew=3.0 if kind == "skewed" else 1.0)
        method = trained(name, train_x, train_t, seed, quick)
        scores = judge(method, (train_x, train_t), (test_x, test_t))
        found |= {f"{metric}_{kind}": value for metric, value in scores.items()}
    for metric in ("mae", "rank"):
        found[metric] = float(np.mean([found[f"{metric}_{kind}"] for kind in ("full", "few", "skewed")]))
    return found


def bars(num: int, seed: int, *, skew: float = 1.0, held_out: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 [N, 24, 24] of an upright bar, and its positions from 0 to 60.

    A skew above 1 makes high positions rare: a position is 60 u^skew.
    """
    rng = np.random.default_rng([seed, int(held_out)])
    position = RANGE * rng.random(num) ** skew
    place = 3 + position / RANGE * (SIDE - 6)
    column = np.arange(SIDE)
    bar = np.exp(-(((column - place[:, None]) / 1.2) ** 2))[:, None, :]
    angle, phase, period = rng.uniform(0, np.pi, num), rng.uniform(0, 6, num), rng.uniform(2, 6, num)
    wave = np.cos(angle)[:, None, None] * column + np.sin(angle)[:, None, None] * column[:, None]
    texture = 0.5 + 0.5 * np.sin(wave / period[:, None, None] * 2 + phase[:, None, None])
    pixels = 0.35 * texture + 0.6 * bar * rng.uniform(0.5, 1, (num, 1, 1))
    return np.clip(255 * pixels, 0, 255).astype(np.uint8), position


def trained(name: str, x: np.ndarray, t: np.ndarray, seed: int, quick: bool) -> Any:
    """The method of an arm after its steps; every arm has the same encoder, views, batches and learning rate."""
    from nearfar.plugin import load

    system = {"supcon": "supremix_none", "untrained": "supremix", "l1": "supremix"}.get(name, name)
    recipe = load("images").recipe(f"{system}_bars")
    recipe = dataclasses.replace(
        recipe, data=DataConfig(image_size=SIDE, channels=1), views=VIEWS,
        encoder=EncoderConfig(name="convnet", width=16, dim=64),
        method=L1Config() if name == "l1" else recipe.method,
    )  # fmt: skip
    learnt = np.floor(t / RANGE * NUM_BINS) if name == "supcon" else t
    source = Annotated(ArraySource(x, name="bars"), target=learnt)
    steps = 0 if name == "untrained" else QUICK_STEPS if quick else STEPS
    return fit(recipe, source, seed, steps=steps, epochs=0)


def judge(method: Any, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    """Mean absolute error of the ridge probe, and how far distances of features follow distances of positions."""
    from scipy.stats import spearmanr

    from nearfar.evaluate import regression_probe
    from nearfar_images import pipeline

    (a, b) = (pipeline.features(method, ArraySource(x))[0] for x, _ in (train, test))
    mae = regression_probe(a, torch.from_numpy(train[1]), b, torch.from_numpy(test[1]), draws=1)["mae"].value
    pairs = np.triu_indices(len(b), 1)
    unit = nn.functional.normalize(b.double())
    distance = torch.cdist(unit, unit).numpy()[pairs]
    apart = np.abs(test[1][:, None] - test[1])[pairs]
    return {"mae": mae, "rank": float(spearmanr(distance, apart)[0])}  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True, kw_only=True)
class L1Config(FrameConfig):
    """A linear layer on the encoder's features that tells the target."""

    head: HeadConfig = dataclasses.field(default_factory=lambda: HeadConfig(kind="none"))

    def build(self, info: Any, encoder: nn.Module, views: Views) -> L1:
        return L1(self, encoder, views)


class L1(Frame):
    """End-to-end regression with an L1 loss, the line that contrast is held against."""

    def __init__(self, config: L1Config, encoder: nn.Module, views: Views) -> None:
        super().__init__(config, encoder, views)
        self.regressor = nn.Linear(self.head.dim, 1)

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Predictions [B, V] beside the features."""
        z = super().encode(batch)
        return z | {"prediction": RANGE * self.regressor(z["embedding"])[..., 0]}

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        """Mean absolute error of every view, as a share of the range."""
        error = (z["prediction"] - batch["target"][:, None]).abs() / RANGE
        return Terms().add("l1", error.mean(), count=len(error))
