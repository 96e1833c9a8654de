"""Alignment and uniformity as a system: views, keys of their own, the queue, and what its recipes say."""

from __future__ import annotations

import pytest
import torch

from images.vectors import batch, forward, make
from nearfar.method import Progress
from nearfar.objectives import align_uniform, alignment, uniformity
from nearfar.plugin import load, load_recipe
from nearfar.testing import check_method
from nearfar_images.systems.align_uniform import AlignUniformConfig


def test_the_loss_is_the_objective_and_both_terms_are_told() -> None:
    config = AlignUniformConfig(alpha=1.5, t=3.0, align_weight=0.5, uniform_weight=2.0)
    z, _, terms = forward(make(config), batch())
    expected = align_uniform(z, alpha=1.5, t=3.0, align_weight=0.5, uniform_weight=2.0)
    torch.testing.assert_close(terms.total, expected)
    assert terms.counts == {"alignment": 6.0, "uniformity": 6.0}
    torch.testing.assert_close(terms.values["alignment"], alignment(*z, alpha=1.5))


def test_more_views_meet_each_other_once() -> None:
    z, _, terms = forward(make(AlignUniformConfig(), num_views=3), batch())
    pairs = [(0, 1), (0, 2), (1, 2)]
    near = sum(alignment(z[q], z[k]) for q, k in pairs) / 3
    torch.testing.assert_close(terms.total, near + sum(uniformity(view) for view in z) / 3)


@pytest.mark.parametrize("in_batch", [True, False])
def test_queries_spread_away_from_the_queue(in_batch: bool) -> None:
    config = AlignUniformConfig(key_encoder="ema", momentum=0.5, queue=10, symmetric=False, in_batch=in_batch)
    method = make(config)
    z, targets, terms = forward(method, batch())
    assert len(z) == 1
    key = targets["key"][:, 0]
    torch.testing.assert_close(terms.total, alignment(z[0], key) + uniformity(z[0]))  # nothing in the queue yet
    method.after_update({}, targets, Progress())
    z, targets, terms = forward(method, batch(step=1))
    bank = torch.nn.functional.normalize(key, dim=1)
    expected = alignment(z[0], targets["key"][:, 0]) + uniformity(z[0], bank, in_batch=in_batch)
    torch.testing.assert_close(terms.total, expected)
    assert not targets["key"].requires_grad


def test_keys_of_their_own_without_a_queue() -> None:
    z, targets, terms = forward(make(AlignUniformConfig(key_encoder="ema")), batch())
    key = targets["key"].transpose(0, 1)
    near = (alignment(z[0], key[1]) + alignment(z[1], key[0])) / 2
    torch.testing.assert_close(terms.total, near + (uniformity(z[0]) + uniformity(z[1])) / 2)


@pytest.mark.parametrize(
    "config",
    [
        AlignUniformConfig(),
        AlignUniformConfig(align_weight=0.0),
        AlignUniformConfig(key_encoder="ema", queue=12, symmetric=False),
    ],
)
def test_keeps_the_contract(config: AlignUniformConfig) -> None:
    check_method(make(config), batch())


def test_one_view_is_not_enough() -> None:
    with pytest.raises(ValueError, match="views.num_views: expected 2 or more, received 1"):
        forward(make(AlignUniformConfig(), num_views=1), batch())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"alpha": 0.0}, "method.alpha: expected a finite number > 0"),
        ({"t": -1.0}, "method.t: expected a finite number > 0"),
        ({"align_weight": -1.0}, "method.align_weight: expected a finite number of 0 or more"),
        ({"uniform_weight": float("inf")}, "method.uniform_weight: expected a finite number of 0 or more"),
        ({"align_weight": 0.0, "uniform_weight": 0.0}, "method.align_weight: expected above 0"),
        ({"in_batch": False}, "method.in_batch: expected True without a queue"),
        ({"queue": 4}, "method.queue: expected 0 when key_encoder is 'shared'"),
    ],
)
def test_refuses(options: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        AlignUniformConfig(**options)


def test_the_stl10_recipe_is_the_reference_codes() -> None:
    recipe = load_recipe("images/align_uniform_stl10")
    method, views, optimiser = recipe.method, recipe.views, recipe.optimiser
    assert (method.alpha, method.t, method.align_weight, method.uniform_weight) == (2, 2, 1, 1)
    assert (method.head.kind, method.head.dim) == ("linear", 128)
    assert (recipe.data.image_size, views.crop_scale, views.jitter, views.grayscale) == (64, (0.08, 1.0), 1.0, 0.2)
    assert {views.brightness, views.contrast, views.saturation, views.hue} == {0.4}
    assert (optimiser.name, optimiser.momentum, optimiser.weight_decay) == ("sgd", 0.9, 1e-4)
    assert optimiser.lr * recipe.trainer.batch_size / 256 == pytest.approx(0.36)
    assert (recipe.trainer.batch_size, recipe.trainer.epochs, optimiser.lr_scaling) == (768, 200, "linear")


def test_arms_of_the_demonstration_are_recipes() -> None:
    images = load("images")
    demonstration = images.module("align_uniform").DEMONSTRATION
    assert set(images.module("align_uniform").CARD.claim.order) <= set(demonstration.arms)
    for arm in demonstration.arms:
        assert arm == "untrained" or f"{arm}_digits" in images.recipes()
