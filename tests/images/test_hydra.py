"""Hydra as a system: gates, partners, its loss, the probe, bad input."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from images.vectors import batch, forward, make
from nearfar.config import HeadConfig
from nearfar.method import Progress
from nearfar.objectives import hydra
from nearfar.rng import Rng
from nearfar_images.methods.hydra import FeatureGate, partners
from nearfar_images.systems.hydra import HydraConfig

SMALL: dict[str, Any] = {"head": HeadConfig(layers=2, hidden=6, dim=5), "label_dim": 4, "gate_hidden": 7}


def built(num_views: int = 2, num_classes: int = 3, **options: Any) -> Any:
    return make(HydraConfig(**SMALL, **options), num_views=num_views, num_classes=num_classes)


@pytest.mark.oracle("hydra", 3)
def test_the_gate_is_symmetric_and_learns_from_its_classes_alone() -> None:
    torch.manual_seed(0)
    gate = FeatureGate(6, 5, label_dim=64, hidden=32)
    y, p = torch.tensor([0, 1, 1]), torch.tensor([3, 0, 1])
    one = gate(y, p)
    torch.testing.assert_close(one, gate(p, y))
    assert one.shape == (3, 5)
    assert ((one > 0) & (one < 1)).all()
    (one * torch.rand(3, 5)).sum().backward()
    moved = (gate.embedding.weight.grad != 0).any(1)
    assert moved.tolist() == [True, True, False, True, False, False]


def test_partners() -> None:
    y, draw = torch.tensor([2, 0, 1, 1]), torch.tensor([0.6, 0.1, 0.99, 0.4])
    assert torch.equal(partners(y, y, draw, 0, "identical", 5), y)
    distinct = partners(y, y, draw, 0, "distinct", 5)
    assert distinct.tolist() == [3, 1, 4, 2]  # the draw's place among the other four classes
    arbitrary = partners(y, y, draw, 0, "arbitrary", 5)
    assert arbitrary.tolist() == [0, 1, 2, 1]  # the labels in the order of the draws
    assert torch.equal(partners(y[2:], y, draw, 2, "arbitrary", 5), arbitrary[2:])
    many = torch.arange(4000) % 5
    found = partners(many, many, torch.rand(4000), 0, "distinct", 5)
    assert not (found == many).any()
    assert torch.bincount(found).min() > 700


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("pairing", ["arbitrary", "identical", "distinct"])
def test_the_loss_is_the_objective(pairing: Any, symmetric: bool) -> None:
    method = built(pairing=pairing, symmetric=symmetric, temperature=0.2, probe="none")
    viewed = method.views(batch(7), Rng(0))
    z = method.encode(viewed)
    terms = method.loss(z, viewed, {}, Progress())
    y = viewed["label"]
    p = partners(y, y, viewed["draw"], 0, pairing, 3)
    g, v = method.gate(y, p), z["embedding"].transpose(0, 1)
    torch.testing.assert_close(v[0].mean(1), torch.zeros(7), atol=1e-5, rtol=0)  # layer-normalised
    each = [hydra(v[a], g, y, p, v[b], y, temperature=0.2) for a, b in ((0, 1), (1, 0))]
    torch.testing.assert_close(terms.total, (each[0] + each[1]) / 2 if symmetric else each[0])
    assert terms.counts["hydra"] == sum(int((y == one).sum()) for one in p)
    entropy = -(g * g.log() + (1 - g) * (1 - g).log()).mean()
    torch.testing.assert_close(terms.logs["gate_entropy"], entropy.detach())
    torch.testing.assert_close(terms.logs["gate_sum"], g.sum(1).mean().detach())


def test_one_view_meets_the_others() -> None:
    method = built(num_views=1, pairing="identical", probe="none")
    v, _, terms = forward(method, batch(7))
    y = batch(7)["label"]
    torch.testing.assert_close(terms.total, hydra(v[0], method.gate(y, y), y, y, v[0], y, own=torch.arange(7)))


@pytest.mark.parametrize("probe", ["detached", "joint"])
def test_the_probe(probe: Any) -> None:
    method = built(probe=probe)
    viewed = method.views(batch(7), Rng(0))
    z = method.encode(viewed)
    terms = method.loss(z, viewed, {}, Progress())
    logits = method.probe(z["feature"].flatten(0, 1))
    torch.testing.assert_close(terms.values["probe"], F.cross_entropy(logits, viewed["label"].repeat_interleave(2)))
    grads = torch.autograd.grad(terms.values["probe"], [*method.encoder.parameters()], allow_unused=True)
    assert all((grad is not None) == (probe == "joint") for grad in grads)


def test_what_users_keep_and_a_learnt_temperature() -> None:
    method = built(learnable_temperature=True).eval()
    raw = batch(5)
    feature = method.encoder(raw["image"])
    torch.testing.assert_close(method.features(raw), feature)
    torch.testing.assert_close(method.features(raw, "embedding"), method.norm(method.head(feature)))
    _, _, terms = forward(method.train(), batch(7))
    terms.total.backward()
    assert method.tau.log_value.grad is not None


def test_two_classes_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        method = built(num_classes=2)
    assert "with two classes a pair of both has no negatives" in caplog.text
    raw: dict[str, Tensor] = {**batch(6, num_classes=2)}
    _, _, terms = forward(method, raw)
    assert 0 < float(terms.logs["without_negatives"]) <= 1
    terms.total.backward()
    assert all(p.grad is not None for p in method.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "method.temperature: expected a finite number > 0"),
        ({"label_dim": 0}, "method.label_dim: expected 1 or more"),
        ({"gate_hidden": 0}, "method.gate_hidden: expected 1 or more"),
        ({"key_encoder": "ema"}, "method.key_encoder: expected 'shared'"),
        ({"predictor": HeadConfig()}, "method.predictor.kind: expected 'none'"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HydraConfig(**options)


def test_bad_batches_are_named() -> None:
    with pytest.raises(ValueError, match="data: expected 2 classes or more, received 1"):
        built(num_classes=1)
    with pytest.raises(ValueError, match="views.num_views: expected 1 or 2, received 3"):
        forward(built(num_views=3), batch(7))
    with pytest.raises(ValueError, match="batch: expected 2 samples or more, for the gate's batch norm"):
        FeatureGate(3, 5)(torch.tensor([0]), torch.tensor([1]))
