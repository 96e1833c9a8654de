"""Poly-view contrast as a system: each form is its objective; what it logs; bad input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from images.vectors import batch, forward, make
from nearfar.objectives import nt_xent, poly_view
from nearfar.plugin import load_recipe
from nearfar_images.systems.poly_view import PolyViewConfig


@pytest.mark.parametrize("form", ["geometric", "arithmetic", "sufficient"])
def test_the_loss_is_the_objective_and_tells_a_bound(form: Any) -> None:
    z, _, terms = forward(make(PolyViewConfig(form=form, temperature=0.4), num_views=3), batch())
    torch.testing.assert_close(terms.total, poly_view(z, form=form, temperature=0.4))
    assert terms.counts == {form: 18.0}
    bound = math.log(1 + 3 * 5) - float(terms.total.detach())
    assert float(terms.logs["information"]) == pytest.approx(bound, rel=1e-5)


def test_two_views_are_nt_xent() -> None:
    z, _, terms = forward(make(PolyViewConfig(form="sufficient")), batch())
    torch.testing.assert_close(terms.total, nt_xent(z))


def test_the_average_may_be_brought_to_unit_length() -> None:
    config = PolyViewConfig(form="sufficient", normalize_average=True)
    z, _, terms = forward(make(config, num_views=3), batch())
    torch.testing.assert_close(terms.total, poly_view(z, form="sufficient", normalize_average=True))
    assert not torch.allclose(terms.total, poly_view(z, form="sufficient"))


def test_the_imagenet_recipe_is_the_papers() -> None:
    recipe = load_recipe("images/poly_view_imagenet")
    assert (recipe.trainer.batch_size, recipe.trainer.epochs, recipe.views.num_views) == (256, 128, 8)
    assert (recipe.method.temperature, recipe.optimiser.name) == (0.1, "lars")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "method.temperature: expected a finite number > 0, received 0.0"),
        ({"normalize_average": True}, "method.normalize_average: expected False with form 'geometric', received True"),
        ({"key_encoder": "ema"}, "method.key_encoder: expected 'shared', received 'ema'"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PolyViewConfig(**options)


def test_one_view_or_one_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="2 or more views"):
        forward(make(PolyViewConfig(), num_views=1), batch())
    with pytest.raises(ValueError, match="one has no negatives"):
        forward(make(PolyViewConfig()), batch(1))
