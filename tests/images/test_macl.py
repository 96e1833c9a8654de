"""MACL as a system: in the batch and against a queue, what it logs, and bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from images.vectors import batch, forward, make
from nearfar.config import HeadConfig
from nearfar.method import Progress
from nearfar.objectives import macl, macl_state
from nearfar.plugin import load_recipe
from nearfar_images.systems.macl import MACLConfig

QUEUED: dict[str, Any] = {"key_encoder": "ema", "queue": 16, "head": HeadConfig(kind="linear", dim=5)}


def test_the_loss_is_the_objective_and_tells_its_state() -> None:
    options: dict[str, Any] = {"temperature": 0.3, "alpha": 1.5, "alignment_origin": 0.2, "max_weight": 3.0}
    z, _, terms = forward(make(MACLConfig(**options)), batch())
    torch.testing.assert_close(terms.total, macl(z, **options))
    assert terms.counts == {"macl": 12.0}
    assert {name: float(value) for name, value in terms.logs.items()} == pytest.approx(macl_state(z, **options))


@pytest.mark.parametrize("symmetric", [False, True])
def test_queries_meet_their_keys_and_the_queue(symmetric: bool) -> None:
    method = make(MACLConfig(**QUEUED, symmetric=symmetric))
    z, targets, first = forward(method, batch(6))
    key = targets["key"].transpose(0, 1)
    pairs = [(0, 1), (1, 0)] if symmetric else [(0, 0)]
    before = [macl(torch.stack([z[q], key[k]])) for q, k in pairs]  # nothing in the queue yet
    torch.testing.assert_close(first.total, torch.stack(before).mean())
    method.after_update({"embedding": z.transpose(0, 1)}, targets, Progress())
    z, targets, terms = forward(method, batch(6, step=1))
    key, bank = targets["key"].transpose(0, 1), method.queue.view("key")
    assert len(bank) == 6 * len(key)
    after = [macl(z[q], key[k], queue=bank) for q, k in pairs]
    torch.testing.assert_close(terms.total, torch.stack(after).mean())
    assert terms.counts == {"macl": 6.0}
    assert not key.requires_grad
    states = [macl_state(z[q], key[k], queue=bank) for q, k in pairs]
    mean = sum(state["temperature"] for state in states) / len(states)
    assert float(terms.logs["temperature"]) == pytest.approx(mean)


def test_recipes_begin_where_the_authors_do() -> None:
    recipe = load_recipe("images/macl_imagenet")
    assert (recipe.method.temperature, recipe.method.alpha, recipe.method.alignment_origin) == (0.1, 0.5, 0.0)
    assert (recipe.trainer.epochs, recipe.trainer.batch_size) == (200, 256)
    moco = load_recipe("images/macl_moco_digits").method
    assert (moco.key_encoder, moco.queue) == ("ema", 1024)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "method.temperature: expected a finite number > 0, received 0.0"),
        ({"alpha": -0.5}, "method.alpha: expected a finite number of 0 or more, received -0.5"),
        ({"alignment_origin": 2.0}, r"method.alignment_origin: expected a number in \[-1, 1\], received 2.0"),
        ({"max_weight": 0.5}, "method.max_weight: expected 1 or more, received 0.5"),
        ({"queue": 8}, "method.queue: expected 0 when key_encoder is 'shared'"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MACLConfig(**options)


def test_three_views_need_keys() -> None:
    with pytest.raises(ValueError, match="views: expected 2, received 3"):
        forward(make(MACLConfig(), num_views=3), batch())
    _, _, terms = forward(make(MACLConfig(**QUEUED), num_views=3), batch())
    assert torch.isfinite(terms.total)
