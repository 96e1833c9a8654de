"""Scenes of several digits: what they hold, and what is measured on them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nearfar_images.demonstrations.scenes import SIDE, multi_label_map, neighbour_precision, scenes


def test_scenes_are_a_function_of_the_seed_and_hold_what_they_are_labelled_with() -> None:
    images, labels = scenes(60, (2, 3), 4, held_out=False)
    again, _ = scenes(60, (2, 3), 4, held_out=False)
    assert np.array_equal(images, again)
    assert not np.array_equal(images, scenes(60, (2, 3), 4, held_out=True)[0])
    assert not np.array_equal(images, scenes(60, (2, 3), 5, held_out=False)[0])
    assert (images.shape, images.dtype) == ((60, SIDE, SIDE, 1), np.uint8)
    half = SIDE // 2
    quarters = images.reshape(60, 2, half, 2, half).max(axis=(2, 4)).reshape(60, 4) > 0
    assert set(quarters.sum(1).tolist()) == {2, 3}
    counts = labels.sum(1).numpy()
    assert ((counts >= 1) & (counts <= quarters.sum(1))).all()
    assert set(scenes(30, (1,), 0, held_out=True)[1].sum(1).tolist()) == {1.0}


def test_labels_that_features_give_away_are_found_and_others_are_not() -> None:
    generator = torch.Generator().manual_seed(0)
    y = (torch.rand(400, 4, generator=generator) < 0.3).float()
    noise = torch.randn(400, 4, generator=generator)
    told = y + 0.05 * noise
    assert multi_label_map(told[:300], y[:300], told[300:], y[300:]) == pytest.approx(1, abs=1e-3)
    assert multi_label_map(noise[:300], y[:300], noise[300:], y[300:]) < 0.5


def test_neighbours_by_hand() -> None:
    z = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    y = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    found = neighbour_precision(z, y, num_neighbours=1)
    assert found["label_precision"] == pytest.approx(0.5)  # 0 and 1 share a class, 2 and 3 do not
    assert found["chance_precision"] == pytest.approx(4 / 12)
