"""CACR as a system: both forms are their objectives, what it logs, and bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from images.vectors import batch, forward, make
from nearfar.config import HeadConfig
from nearfar.objectives import cacr, cacr_momentum, cacr_parts
from nearfar.plugin import load_recipe
from nearfar_images.systems.cacr import CACRConfig

MOMENTUM: dict[str, Any] = {
    "key_encoder": "ema", "head": HeadConfig(kind="linear", dim=5), "predictor": HeadConfig(kind="linear", dim=5),
}  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"t_pos": 0.5, "t_neg": 2.0, "alpha": 0.7, "beta": 1.3, "class_prior": 0.2, "detach_weights": True},
        {"cost": "rbf", "t": 1.5},
    ],
)
def test_the_loss_is_the_objective_and_tells_its_parts(options: dict[str, Any]) -> None:
    z, _, terms = forward(make(CACRConfig(**options), num_views=3), batch())
    torch.testing.assert_close(terms.total, cacr(z, **options))
    assert terms.counts == {"cacr": 6.0}
    expected = cacr_parts(z, **options)._asdict()
    assert set(terms.logs) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(terms.logs[name], value.detach())


def test_both_directions_of_a_pair_may_repel() -> None:
    z, _, terms = forward(make(CACRConfig(both_directions=True)), batch())
    torch.testing.assert_close(terms.total, cacr(z, symmetric=True))
    assert not torch.allclose(terms.total, cacr(z))


@pytest.mark.parametrize("cost", ["rbf", "euclidean"])
@pytest.mark.parametrize("detach", [False, True])
def test_queries_meet_the_keys_of_the_momentum_encoder(cost: Any, detach: bool) -> None:
    method = make(CACRConfig(**MOMENTUM, cost=cost, detach_weights=detach, temperature=0.5), num_views=3)
    z, targets, terms = forward(method, batch())
    key = targets["key"].transpose(0, 1)
    assert key.shape == (3, 6, 5)
    assert not key.requires_grad
    expected = cacr_momentum(z, key, temperature=0.5, cost=cost, detach_weights=detach)
    torch.testing.assert_close(terms.total, expected)
    terms.total.backward()
    assert all(parameter.grad is None for parameter in method.teacher.parameters())
    assert method.predictor.layers[0].weight.grad is not None


def test_recipes_have_the_authors_settings() -> None:
    small, large = load_recipe("images/cacr_cifar"), load_recipe("images/cacr_imagenet")
    config: Any = small.method
    assert (config.alpha, config.beta, config.t_pos, config.t_neg) == (1.0, 1.0, 1.0, 0.9)
    assert (small.views.num_views, small.trainer.batch_size, small.trainer.epochs) == (5, 128, 200)
    assert (small.optimiser.lr, small.optimiser.lr_scaling) == (0.12, "linear")
    config = large.method
    assert (config.head.dim, config.head.hidden, config.temperature, config.cost) == (256, 4096, 1.0, "rbf")
    assert config.detach_weights


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"t_neg": -1.0}, "method.t_neg: expected a finite number of 0 or more, received -1.0"),
        ({"class_prior": 0.1, "cost": "rbf"}, "method.class_prior: expected 0 with cost 'rbf', received 0.1"),
        ({"temperature": 0.5}, "method.temperature: expected 1.0 with key_encoder 'shared', received 0.5"),
        ({**MOMENTUM, "t_pos": 3.0}, "method.t_pos: expected 1.0 with key_encoder 'ema', received 3.0"),
        ({**MOMENTUM, "queue": 8}, "method.queue: expected 0, received 8"),
        ({**MOMENTUM, "symmetric": False}, "method.symmetric: expected True with a key encoder of its own"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CACRConfig(**options)


def test_one_view_or_one_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="2 or more views"):
        forward(make(CACRConfig(), num_views=1), batch())
    with pytest.raises(ValueError, match="one has no negatives"):
        forward(make(CACRConfig()), batch(1))
