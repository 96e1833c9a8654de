"""Decoupled uniformity as a system: where the prior comes from, what it logs, and bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from images.vectors import batch, forward, make
from nearfar.objectives import centroid_alignment, decoupled_uniformity
from nearfar.objectives.decoupled_uniformity import standardise
from nearfar.plugin import load_recipe
from nearfar_images.systems.decoupled_uniformity import DecoupledUniformityConfig


def test_without_a_prior_the_loss_is_the_objective() -> None:
    z, _, terms = forward(make(DecoupledUniformityConfig(t=1.5), num_views=3), batch())
    torch.testing.assert_close(terms.total, decoupled_uniformity(z, t=1.5))
    assert terms.counts == {"decoupled_uniformity": 6.0}
    torch.testing.assert_close(terms.logs["centroid_alignment"], centroid_alignment(z).detach())


def test_classes_are_a_prior_whose_numbers_mean_nothing() -> None:
    raw = batch(7)
    config = DecoupledUniformityConfig(prior="label", kernel="cosine", ridge=0.1)
    assert config.needs_labels
    z, _, terms = forward(make(config, num_classes=3), raw)
    expected = decoupled_uniformity(z, prior=torch.eye(3)[raw["label"]], kernel="cosine", ridge=0.1)
    torch.testing.assert_close(terms.total, expected)


@pytest.mark.parametrize("scaled", [False, True])
def test_a_field_of_the_data_is_a_prior(scaled: bool) -> None:
    raw = batch() | {"target": torch.tensor([0.1, 2.0, 0.3, 1.4, 1.5, 7.0], dtype=torch.float64)}
    config = DecoupledUniformityConfig(prior="target", sigma=0.5, ridge=0.0, standardise=scaled)
    z, _, terms = forward(make(config), raw)
    prior = standardise(raw["target"]) if scaled else raw["target"]
    torch.testing.assert_close(terms.total, decoupled_uniformity(z, prior=prior, sigma=0.5, ridge=None))


@pytest.mark.parametrize("scaled", [False, True])
def test_a_file_is_a_prior_by_the_samples_number(scaled: bool, tmp_path: Path) -> None:
    table = np.random.default_rng(0).normal(2.0, 3.0, (20, 4)).astype(np.float32)
    np.save(tmp_path / "prior.npy", table)
    config = DecoupledUniformityConfig(prior=str(tmp_path / "prior.npy"), standardise=scaled)
    raw = batch(step=1)
    z, _, terms = forward(make(config), raw)
    known = torch.from_numpy(table).double()
    prior = (standardise(known) if scaled else known)[raw["index"]]
    torch.testing.assert_close(terms.total, decoupled_uniformity(z, prior=prior, sigma="median"))


def test_a_trained_run_is_read_without_its_priors_file() -> None:
    method = make(DecoupledUniformityConfig(prior="gone.npy"))
    assert method.eval().features(batch()).shape == (6, 10)
    with pytest.raises(FileNotFoundError, match="gone.npy"):
        forward(method, batch())


def test_the_cifar_recipe_is_the_reference_codes() -> None:
    recipe = load_recipe("images/decoupled_uniformity_cifar")
    config: Any = recipe.method
    assert (config.t, config.ridge, config.head.hidden, config.head.dim) == (2.0, 0.01, 2048, 256)
    assert (recipe.optimiser.momentum, recipe.trainer.epochs, recipe.trainer.batch_size) == (0.0, 400, 256)
    assert recipe.optimiser.lr * recipe.optimiser.final_lr == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"t": 0.0}, "method.t: expected a finite number > 0, received 0.0"),
        ({"ridge": -1.0}, "method.ridge: expected a finite number of 0 or more, received -1.0"),
        ({"standardise": True}, "method.standardise: expected False without method.prior"),
        ({"kernel": "cosine", "sigma": 1.0}, "method.sigma: expected 0 with kernel 'cosine', received 1.0"),
        ({"key_encoder": "ema"}, "method.key_encoder: expected 'shared', received 'ema'"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecoupledUniformityConfig(**options)


def test_bad_priors_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"method.prior: expected a file .npy, or a field .* \['index', 'label'\]"):
        forward(make(DecoupledUniformityConfig(prior="colour")), batch())
    np.save(tmp_path / "short.npy", np.zeros((3, 2)))
    with pytest.raises(ValueError, match="a row for every sample, of which one is number 5, received 3 rows"):
        forward(make(DecoupledUniformityConfig(prior=str(tmp_path / "short.npy"))), batch())
    np.save(tmp_path / "deep.npy", np.zeros((9, 2, 2)))
    with pytest.raises(ValueError, match=r"expected shape \[N\] or \[N, Q\], received \(9, 2, 2\)"):
        forward(make(DecoupledUniformityConfig(prior=str(tmp_path / "deep.npy"))), batch())


def test_one_sample_is_refused_and_one_view_warned_of() -> None:
    with pytest.raises(ValueError, match="2 or more samples"):
        forward(make(DecoupledUniformityConfig()), batch(1))
    with pytest.warns(UserWarning, match="one view has nothing to align with"):
        forward(make(DecoupledUniformityConfig(), num_views=1), batch())
