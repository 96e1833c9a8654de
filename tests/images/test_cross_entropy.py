from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from nearfar.batch import collate
from nearfar.config import DataConfig, EncoderConfig
from nearfar.data import ArraySource, Data
from nearfar.method import Progress
from nearfar.plugin import load_recipe
from nearfar.rng import Rng
from nearfar_images import pipeline
from nearfar_images.systems.cross_entropy import CrossEntropyConfig


def small():
    recipe = load_recipe("images/cross_entropy")
    return dataclasses.replace(recipe, trainer=dataclasses.replace(recipe.trainer, batch_size=8))


def made(**options):
    recipe = dataclasses.replace(
        small(),
        method=CrossEntropyConfig(**options),
        data=DataConfig(image_size=16, channels=3),
        encoder=EncoderConfig(name="convnet", width=4, dim=16),
    )
    pixels = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)
    source = ArraySource(pixels, np.arange(9) % 3, name="toy")
    data, method = pipeline.build(recipe, Data(train=source, test=source))
    batch = method.views(collate([data.train[i] for i in range(9)]), Rng(0))
    return method, batch


@pytest.mark.parametrize("smoothing", [
    pytest.param(0.0, marks=pytest.mark.oracle("cross_entropy", 1)),
    pytest.param(0.3, marks=pytest.mark.oracle("cross_entropy", 2)),
])  # fmt: skip
def test_the_loss_by_hand(smoothing):
    method, batch = made(label_smoothing=smoothing)
    z = method.encode(batch)
    loss = method.loss(z, batch, {}, Progress()).total
    logits = z["logits"].detach().double().numpy()
    expected = []
    for row, label in zip(logits, batch["label"].tolist(), strict=True):
        for view in row:
            log_p = view - np.log(np.exp(view).sum())
            expected.append(-(1 - smoothing) * log_p[label] - smoothing * log_p.mean())
    assert loss.item() == pytest.approx(np.mean(expected), rel=1e-5)


def test_the_classifier_has_a_logit_a_class():
    method, _ = made()
    batch = {"image": torch.zeros(2, 3, 16, 16, dtype=torch.uint8), "index": torch.arange(2)}
    assert method.eval().classify(batch).shape == (2, 3)


def test_labels_are_needed():
    assert CrossEntropyConfig().needs_labels
    pixels = np.zeros((8, 16, 16, 3), dtype=np.uint8)
    source = ArraySource(pixels, None, name="toy")
    with pytest.raises(ValueError, match="labels: one subfolder a class"):
        pipeline.train(small(), data=Data(train=source, test=source))


def test_smoothing_is_a_share():
    with pytest.raises(ValueError, match="method.label_smoothing"):
        CrossEntropyConfig(label_smoothing=1.0)
