"""SupReMix as a system: its loss, what its options do to it, and bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from images.vectors import batch, forward, make
from nearfar.data import ArraySource, Data
from nearfar.method import Progress
from nearfar.objectives import supcon, supremix
from nearfar.plugin import load_recipe
from nearfar.rng import Rng
from nearfar_images import pipeline
from nearfar_images.demonstrations.supremix import arm, bars
from nearfar_images.systems.supremix import SupReMixConfig


def raw(num: int = 7) -> dict[str, Tensor]:
    return batch(num) | {"target": torch.tensor([30.0, 31, 33, 30, 50, 36, 41])[:num]}


def test_the_loss_is_the_objective() -> None:
    options: dict[str, Any] = {
        "temperature": 0.2, "window": 4.0, "num_mixtures": 3, "beta": (5, 5), "normalize_mixtures": True,
        "add_one": True, "distance_weight": "square", "tolerance": 0.5,
    }  # fmt: skip
    z, _, terms = forward(make(SupReMixConfig(unit=2.0, **options)), raw())
    expected = supremix(z, raw()["target"] / 2, generator=Rng(0, 0).generator("supremix"), **options)
    torch.testing.assert_close(terms.total, expected)
    assert terms.counts == {"supremix": 14.0}


def test_every_step_draws_other_mixtures() -> None:
    method = make(SupReMixConfig(mix="negative"))
    losses = [forward(method, raw(), Progress(step=s, steps=10))[2].total for s in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.oracle("supremix", 1)
def test_without_mixtures_and_weights_it_is_supcon_on_equal_targets() -> None:
    z, _, terms = forward(make(SupReMixConfig(mix="none", distance_weight="none")), raw())
    torch.testing.assert_close(terms.total, supcon(z, torch.tensor([0, 1, 2, 0, 3, 4, 5]), temperature=0.3))


def test_the_agedb_recipe_is_the_authors() -> None:
    recipe = load_recipe("images/supremix_agedb")
    assert (recipe.method.temperature, recipe.method.window, recipe.method.head.dim) == (0.3, 5.0, 128)
    assert (recipe.trainer.epochs, recipe.trainer.batch_size, recipe.optimiser.lr) == (100, 64, 1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "method.temperature: expected a finite number > 0"),
        ({"window": 0.0}, "method.window: expected a finite number > 0"),
        ({"unit": -1.0}, "method.unit: expected a finite number > 0"),
        ({"tolerance": -1.0}, "method.tolerance: expected 0 or more"),
        ({"num_mixtures": 0}, "method.num_mixtures: expected 1 or more"),
        ({"beta": (0, 2)}, "method.beta: expected two whole numbers"),
        ({"key_encoder": "ema"}, "method.key_encoder: expected 'shared'"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SupReMixConfig(**options)


def test_one_view_and_data_without_targets_are_refused() -> None:
    with pytest.raises(ValueError, match="2 or more views"):
        forward(make(SupReMixConfig(), num_views=1), raw())
    source = ArraySource(np.zeros((64, 8, 8), np.uint8), name="toy")
    with pytest.raises(ValueError, match="data.target: expected what gives samples a target, received none in toy"):
        pipeline.train(load_recipe("images/supremix_bars"), data=Data(source, source))


def test_bars_stand_where_their_targets_say() -> None:
    pixels, position = bars(50, 0)
    brightest = pixels.astype(float).mean(1)
    assert np.corrcoef(brightest.argmax(1), position)[0, 1] > 0.9
    assert np.median(bars(500, 0, skew=3.0)[1]) < 12
    assert not np.array_equal(bars(50, 0, held_out=True)[1], position)


def test_an_arm_gives_its_metrics() -> None:
    found = arm("untrained", 0, quick=True)
    assert found.keys() >= {"mae", "rank", "mae_full", "mae_few", "mae_skewed", "rank_skewed"}
    assert 0 < found["mae_full"] < 15  # what guessing the middle gives
