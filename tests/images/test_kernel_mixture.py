"""Kernel InfoNCE as a system: every mode, queries against a queue, learnt temperatures, and what its recipes say."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from images.vectors import batch, forward, make
from nearfar.config import HeadConfig
from nearfar.method import Progress
from nearfar.objectives import kernel_info_nce, kernel_mixture, nt_xent
from nearfar.plugin import load, load_recipe
from nearfar.testing import check_method
from nearfar_images.demonstrations.kernel_mixture import RECIPES, arm
from nearfar_images.systems.kernel_mixture import KernelMixtureConfig


@pytest.mark.parametrize("mode", ["loss_sum", "kernel_sum", "concat"])
def test_the_loss_is_the_objective(mode: Any) -> None:
    options = {"gamma": 0.5, "mixing": 0.3, "temperature": 0.4, "gaussian_temperature": 0.7, "norm": 1.5}
    z, _, terms = forward(make(KernelMixtureConfig(mode=mode, **options)), batch())
    torch.testing.assert_close(terms.total, kernel_mixture(z, mode=mode, **options))
    assert terms.counts == {"contrast": 12.0}


@pytest.mark.oracle("kernel_mixture", 1)
def test_one_kernel_and_simclr() -> None:
    z, _, terms = forward(make(KernelMixtureConfig(mode="single", gamma=0.7, temperature=0.3)), batch())
    torch.testing.assert_close(terms.total, kernel_info_nce(z, gamma=0.7, temperature=0.3))
    z, _, terms = forward(make(KernelMixtureConfig(mode="single", gamma=2.0, temperature=0.4)), batch())
    torch.testing.assert_close(terms.total, nt_xent(z, temperature=0.2))


def test_both_temperatures_are_the_same_unless_told() -> None:
    z, _, terms = forward(make(KernelMixtureConfig(temperature=0.4)), batch())
    torch.testing.assert_close(terms.total, kernel_mixture(z, temperature=0.4, gaussian_temperature=0.4))


@pytest.mark.parametrize("mode", ["single", "loss_sum", "kernel_sum"])
def test_the_queue_alone_is_the_denominator(mode: Any) -> None:
    config = KernelMixtureConfig(mode=mode, key_encoder="ema", momentum=0.5, queue=10, symmetric=False, temperature=0.3)
    method = make(config)

    def expected(query: torch.Tensor, key: torch.Tensor, queue: torch.Tensor) -> torch.Tensor:
        if mode == "single":
            return kernel_info_nce(query, key, queue=queue, gamma=1.0, temperature=0.3)
        return kernel_mixture(query, key, queue=queue, mode=mode, temperature=0.3)

    z, targets, terms = forward(method, batch())
    first = targets["key"][:, 0]
    torch.testing.assert_close(terms.total, expected(z[0], first, first))  # the batch's keys, the queue being empty
    method.after_update({}, targets, Progress())
    z, targets, terms = forward(method, batch(step=1))
    torch.testing.assert_close(terms.total, expected(z[0], targets["key"][:, 0], normalize(first, dim=1)))
    assert terms.counts == {"contrast": 6.0}


def test_each_view_takes_its_turn_as_the_query() -> None:
    z, targets, terms = forward(make(KernelMixtureConfig(key_encoder="ema")), batch())
    key = targets["key"].transpose(0, 1)
    parts = [kernel_mixture(z[q], key[k], queue=key[k]) for q, k in ((0, 1), (1, 0))]
    torch.testing.assert_close(terms.total, torch.stack(parts).mean())


@pytest.mark.parametrize(
    "config",
    [
        KernelMixtureConfig(),
        KernelMixtureConfig(mode="kernel_sum", learnable_temperature=True),
        KernelMixtureConfig(mode="single", key_encoder="ema", queue=12, symmetric=False),
    ],
)
def test_keeps_the_contract(config: KernelMixtureConfig) -> None:
    check_method(make(config), batch())


@pytest.mark.parametrize("key_encoder", ["shared", "ema"])
def test_two_views_exactly(key_encoder: Any) -> None:
    with pytest.raises(ValueError, match="views.num_views: expected 2, received 3"):
        forward(make(KernelMixtureConfig(key_encoder=key_encoder), num_views=3), batch())


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"gamma": 2.5}, r"method.gamma: expected a number in \(0, 2\]"),
        ({"mixing": -0.1}, r"method.mixing: expected a number in \[0, 1\]"),
        ({"temperature": 0.0}, "method.temperature: expected a finite number > 0"),
        ({"gaussian_temperature": -1.0}, "method.gaussian_temperature: expected 0 or more"),
        ({"norm": 0.5}, "method.norm: expected 1 or more"),
        ({"mode": "concat", "head": HeadConfig(dim=7)}, "method.head.dim: expected an even number with mode 'concat'"),
        ({"queue": 4}, "method.queue: expected 0 when key_encoder is 'shared'"),
    ],
)
def test_refuses(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        KernelMixtureConfig(**options)


def test_the_cifar_recipe_is_the_reference_codes() -> None:
    recipe = load_recipe("images/kernel_mixture_cifar")
    method, head = recipe.method, recipe.method.head
    assert (method.mode, method.gamma, method.temperature, method.gaussian_temperature) == ("loss_sum", 1, 0.1, 0)
    assert (head.hidden, head.dim, head.norm, head.last_bias) == (2048, 128, "batch", False)
    assert (recipe.views.blur, recipe.views.brightness, recipe.trainer.batch_size) == (0, 0.4, 128)
    assert (recipe.optimiser.lr, recipe.optimiser.weight_decay, recipe.optimiser.warmup_epochs) == (1e-3, 1e-6, 10)


def test_arms_of_the_demonstration() -> None:
    images = load("images")
    module = images.module("kernel_mixture")
    assert set(module.CARD.claim.order) <= set(module.DEMONSTRATION.arms)
    assert set(RECIPES.values()) <= set(images.recipes())
    contrast, spectral = (arm(name, 0, True) for name in ("blocks", "blocks_spectral"))
    assert contrast["ari"] == spectral["ari"] == 1
    assert contrast["degrees"] < 30
