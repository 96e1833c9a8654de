"""Core-tuning as a system: its oracles on the loss, its points, bad input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from images.vectors import batch, make
from nearfar.method import Progress
from nearfar.negatives import hard_pairs
from nearfar.objectives import focal_supcon, supcon
from nearfar.plugin import load_recipe
from nearfar.rng import Rng
from nearfar_images.methods.core_tuning import CoreTuning, Points, blend, ring, soft_cross_entropy
from nearfar_images.systems.core_tuning import CoreTuningConfig


def forward(raw: dict[str, Tensor], **options: Any) -> tuple[CoreTuning, dict[str, Any], Tensor, Any]:
    method = make(CoreTuningConfig(**options), num_views=1, num_classes=3)
    viewed = method.views(raw, Rng(0))
    z = method.encode(viewed)
    return method, viewed, z["embedding"], method.loss(z, viewed, {}, Progress())


@pytest.mark.oracle("core_tuning", 1)
def test_without_contrast_and_mixtures_it_is_cross_entropy() -> None:
    method, viewed, f, terms = forward(batch(7), contrast_weight=0.0, mixtures=False)
    torch.testing.assert_close(terms.total, F.cross_entropy(method.classifier(f), viewed["label"]))
    assert not any(p.requires_grad for p in method.head.parameters())


@pytest.mark.oracle("core_tuning", 1)
def test_without_the_focal_factor_and_mixtures_the_contrast_is_supcon() -> None:
    method, viewed, f, terms = forward(batch(7), gamma=0.0, mixtures=False)
    torch.testing.assert_close(terms.values["focal"], supcon(method.head(f), viewed["label"], temperature=0.07))
    assert terms.weights["focal"] == 0.1


@pytest.mark.parametrize("mixture_positive", [True, False])
def test_the_loss_by_hand(mixture_positive: bool) -> None:
    method, viewed, f, terms = forward(batch(7), mixture_positive=mixture_positive, partner_share=0.9)
    y, hard = viewed["label"], hard_pairs(f, viewed["label"])
    partner = ring(viewed["order"])
    share, towards = viewed["share"][:, 0], viewed["share"][:, 1].clamp_min(0.9)
    minus = (1 - towards[:, None]) * f + towards[:, None] * f[partner]
    plus = share[:, None] * f[hard.positive] + (1 - share[:, None]) * f[hard.negative]
    points = torch.cat([f, minus, plus])
    soft = torch.cat([
        F.one_hot(y, 3).float(),
        (1 - towards[:, None]) * F.one_hot(y, 3) + towards[:, None] * F.one_hot(y[partner], 3),
        share[:, None] * F.one_hot(y, 3) + (1 - share[:, None]) * F.one_hot(y[hard.negative], 3),
    ])  # fmt: skip
    entropy = -(soft * method.classifier(points).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(terms.values["cross_entropy"], entropy)
    minus_ids = torch.where(y == y[partner], y, torch.arange(10, 17))
    ids = torch.cat([y, minus_ids, y if mixture_positive else torch.arange(20, 27)])
    torch.testing.assert_close(terms.values["focal"], focal_supcon(method.head(points), ids))
    assert (y == y[partner]).any()
    assert not (y == y[partner]).all()
    assert terms.counts["cross_entropy"] == 21


@pytest.mark.oracle("core_tuning", 3)
def test_a_share_of_one_is_the_first() -> None:
    f, y = torch.randn(6, 4), torch.arange(6) % 2
    hard, rows, one = hard_pairs(f, y), torch.arange(6), torch.ones(6)
    plus = blend(f, y, hard.positive, hard.negative, one)
    assert torch.equal(plus.feature, f[hard.positive])
    minus = blend(f, y, ring(torch.rand(6)), rows, one)
    assert not torch.equal(minus.feature, f)
    logits = torch.randn(6, 2)
    for points in (plus, minus):
        hard_labelled = F.cross_entropy(logits, points.label, reduction="none")
        torch.testing.assert_close(soft_cross_entropy(logits, points), hard_labelled)
    torch.testing.assert_close(plus.label, y)


@pytest.mark.oracle("core_tuning", 5)
def test_soft_labels_share_two_cross_entropies() -> None:
    logits, share = torch.randn(5, 3), torch.rand(5)
    y, other = torch.tensor([0, 1, 2, 0, 1]), torch.tensor([1, 1, 0, 2, 0])
    soft = share[:, None] * F.one_hot(y, 3) + (1 - share[:, None]) * F.one_hot(other, 3)
    found = soft_cross_entropy(logits, Points(torch.zeros(5, 2), y, other, share))
    torch.testing.assert_close(found, F.cross_entropy(logits, soft, reduction="none"))


@pytest.mark.oracle("core_tuning", 6)
def test_the_codes_flag_keeps_gradients_of_originals_back() -> None:
    """Without mixtures every point is an original; with them what is left comes through the mixtures."""
    method, _, _, terms = forward(batch(7), detach_originals=True, mixtures=False)
    terms.total.backward()
    assert all(p.grad is None for p in method.encoder.parameters())
    assert method.classifier.weight.grad is not None
    grads = []
    for flag in (True, False):
        method, _, f, terms = forward(batch(7), detach_originals=flag)
        grads.append(torch.autograd.grad(terms.total, f)[0])
    assert (grads[0] != 0).any()
    assert not torch.allclose(*grads)


def test_no_positives_give_a_zero_with_a_graph() -> None:
    raw = {**batch(3), "label": torch.arange(3)}
    method, _, _, terms = forward(raw, mixtures=False)
    assert (terms.values["focal"].item(), terms.counts["focal"]) == (0.0, 0.0)
    terms.total.backward()
    assert all(p.grad is not None for p in method.head.parameters())


def test_partners_go_round() -> None:
    assert ring(torch.tensor([0.3, 0.1, 0.7])).tolist() == [2, 0, 1]
    assert ring(torch.tensor([0.3])).tolist() == [0]


def test_it_classifies_and_the_cifar_recipe_is_the_authors() -> None:
    method = make(CoreTuningConfig(), num_views=1, num_classes=3).eval()
    raw = batch(4)
    torch.testing.assert_close(method.classify(raw), method.classifier(method.encoder(raw["image"])))
    recipe = load_recipe("images/core_tuning_cifar")
    assert (recipe.optimiser.lr, recipe.optimiser.nesterov, recipe.trainer.batch_size) == (0.01, True, 256)
    assert (recipe.method.temperature, recipe.method.contrast_weight, recipe.method.head.dim) == (0.07, 0.1, 256)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "method.temperature: expected a finite number > 0"),
        ({"alpha": 0.0}, "method.alpha: expected a finite number > 0"),
        ({"contrast_weight": -1.0}, "method.contrast_weight: expected 0 or more"),
        ({"gamma": -1.0}, "method.gamma: expected 0 or more"),
        ({"partner_share": 1.5}, r"method.partner_share: expected a number in \[0, 1\]"),
        ({"key_encoder": "ema"}, "method.key_encoder: expected 'shared'"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CoreTuningConfig(**options)


def test_bad_batches_are_named() -> None:
    with pytest.raises(ValueError, match="batch: expected 2 samples or more"):
        forward(batch(1))
    with pytest.raises(ValueError, match="labels: expected classes from 0 to 2"):
        forward({**batch(3), "label": torch.tensor([0, 1, 3])})
    two = make(CoreTuningConfig(), num_views=2, num_classes=3)
    with pytest.raises(ValueError, match="views.num_views: expected 1, received 2"):
        two.encode(two.views(batch(3), Rng(0)))
