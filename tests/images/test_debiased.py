"""Debiased contrast as a system: what its options make of the loss, and bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity

from images.vectors import batch, forward, make
from nearfar.objectives import debiased, nt_xent
from nearfar.plugin import load_recipe
from nearfar_images.systems.debiased import DebiasedConfig


def test_the_loss_is_the_objective_and_tells_the_floor() -> None:
    z, _, terms = forward(make(DebiasedConfig(class_prior=0.2, hardness=0.3, temperature=0.4)), batch())
    expected, stats = debiased(z, class_prior=0.2, hardness=0.3, temperature=0.4, with_stats=True)
    torch.testing.assert_close(terms.total, expected)
    assert terms.counts == {"debiased": 12.0}
    assert terms.logs["at_floor"] == stats.at_floor
    _, _, learnt = forward(make(DebiasedConfig(class_prior=0.0)), batch())
    assert learnt.logs["at_floor"] == 0


def test_views_after_the_second_estimate_the_share_of_false_negatives() -> None:
    z, _, terms = forward(make(DebiasedConfig(), num_views=4), batch())
    expected = debiased(z[:2], more_positives=z[2:].transpose(0, 1))
    torch.testing.assert_close(terms.total, expected)
    assert not torch.allclose(terms.total, debiased(z[:2]))


def test_without_a_prior_it_is_nt_xent() -> None:
    z, _, terms = forward(make(DebiasedConfig(class_prior=0.0, temperature=0.3)), batch())
    torch.testing.assert_close(terms.total, nt_xent(z, temperature=0.3))


def test_labels_drop_false_negatives() -> None:
    raw = batch(7)
    z, _, terms = forward(make(DebiasedConfig(class_prior=0.0, drop_false_negatives=True)), raw)
    losses = []
    for view in (0, 1):
        for i in range(7):
            s = torch.stack([cosine_similarity(z[view, i], z[other], dim=1) for other in (0, 1)]) / 0.5
            true = raw["label"] != raw["label"][i]
            positive = s[1 - view, i]
            losses.append(torch.logsumexp(torch.cat([positive[None], s[:, true].flatten()]), 0) - positive)
    torch.testing.assert_close(terms.total, torch.stack(losses).mean())
    assert terms.logs["false_negatives"] == pytest.approx((3 * 2 + 2 * 1 + 2 * 1) / 7 / 6)


def test_only_the_bound_needs_labels() -> None:
    assert not load_recipe("images/debiased").method.needs_labels
    assert load_recipe("images/debiased_labels_digits").method.needs_labels


def test_the_small_recipe_is_the_reference_codes() -> None:
    recipe = load_recipe("images/debiased_small")
    method, views = recipe.method, recipe.views
    assert (method.class_prior, method.temperature, method.head.hidden, method.head.dim) == (0.1, 0.5, 512, 128)
    assert (views.brightness, views.hue, views.jitter, views.grayscale, views.blur) == (0.4, 0.1, 0.8, 0.2, 0.5)
    assert (recipe.trainer.epochs, recipe.trainer.batch_size, recipe.optimiser.weight_decay) == (500, 256, 1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_prior": 1.0}, r"method.class_prior: expected a number in \[0, 1\), received 1.0"),
        ({"hardness": -1.0}, "method.hardness: expected a finite number of 0 or more, received -1.0"),
        ({"temperature": 0.0}, "method.temperature: expected a finite number > 0, received 0.0"),
        ({"drop_false_negatives": True}, "expected 0 with drop_false_negatives"),
        ({"key_encoder": "ema"}, "method.key_encoder: expected 'shared', received 'ema'"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DebiasedConfig(**options)


def test_one_view_or_one_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="2 or more views"):
        forward(make(DebiasedConfig(), num_views=1), batch())
    with pytest.raises(ValueError, match="one has no negatives"):
        forward(make(DebiasedConfig()), batch(1))
