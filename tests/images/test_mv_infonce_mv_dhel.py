"""Losses of many views as a system: each is its objective; bad input."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from images.vectors import batch, forward, make
from nearfar.objectives import multi_view_baseline, mv_dhel, mv_infonce, nt_xent
from nearfar.plugin import load_recipe
from nearfar_images.systems.mv_infonce_mv_dhel import MultiViewConfig


@pytest.mark.parametrize("num_views", [2, 4])
def test_the_loss_is_the_objective(num_views: int) -> None:
    for option in (False, True):
        z, _, terms = forward(make(MultiViewConfig(include_self=option), num_views=num_views), batch())
        torch.testing.assert_close(terms.total, mv_dhel(z, include_self=option))
        assert terms.counts == {"mv_dhel": 6.0}
        config = MultiViewConfig(loss="mv_infonce", same_view_negatives=option, temperature=0.3)
        z, _, terms = forward(make(config, num_views=num_views), batch())
        torch.testing.assert_close(terms.total, mv_infonce(z, same_view_negatives=option, temperature=0.3))
    for combine, base in itertools.product(("pairs", "average"), ("nt_xent", "dhel")):
        config = MultiViewConfig(loss=combine, base=base)  # type: ignore[arg-type]
        z, _, terms = forward(make(config, num_views=num_views), batch())
        torch.testing.assert_close(terms.total, multi_view_baseline(z, combine=combine, base=base))


def test_pairs_of_two_views_are_nt_xent() -> None:
    z, _, terms = forward(make(MultiViewConfig(loss="pairs", temperature=0.2)), batch())
    torch.testing.assert_close(terms.total, nt_xent(z, temperature=0.2))


def test_the_cifar_recipe_is_the_papers() -> None:
    recipe = load_recipe("images/mv_dhel_cifar")
    assert (recipe.method.loss, recipe.method.temperature, recipe.views.num_views) == ("mv_dhel", 0.5, 4)
    assert (recipe.optimiser.name, recipe.optimiser.lr, recipe.optimiser.weight_decay) == ("sgd", 1.0, 1e-6)
    assert recipe.optimiser.warmup_epochs == 0.01 * recipe.trainer.epochs
    assert (recipe.views.crop_scale[0], recipe.views.brightness) == (0.08, 0.4)  # half of SimCLR's 0.8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "method.temperature: expected a finite number > 0, received -1.0"),
        ({"base": "dhel"}, "method.base: expected 'nt_xent' with loss 'mv_dhel', received 'dhel'"),
        ({"same_view_negatives": False}, "method.same_view_negatives: expected True with loss 'mv_dhel'"),
        ({"loss": "pairs", "include_self": True}, "method.include_self: expected False with loss 'pairs'"),
        ({"key_encoder": "frozen"}, "method.key_encoder: expected 'shared', received 'frozen'"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MultiViewConfig(**options)


def test_one_view_or_one_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="2 or more views"):
        forward(make(MultiViewConfig(), num_views=1), batch())
    with pytest.raises(ValueError, match="one has no negatives"):
        forward(make(MultiViewConfig()), batch(1))
