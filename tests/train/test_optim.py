from __future__ import annotations

import pytest
import torch
from torch import nn

from nearfar.config import OptimiserConfig
from nearfar.train import LARS, optim


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.stem = nn.Linear(4, 4)
        self.encoder.blocks = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        self.encoder.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.head = nn.Linear(4, 2)


def test_lars_equals_the_formula_written_out() -> None:
    torch.manual_seed(0)
    w = nn.Parameter(torch.randn(3, 2, dtype=torch.float64))
    lars = LARS([w], lr=0.5, momentum=0.9, weight_decay=0.01, trust=0.02)
    expected, velocity = w.detach().clone(), torch.zeros(3, 2, dtype=torch.float64)
    for _ in range(4):
        gradient = torch.randn(3, 2, dtype=torch.float64)
        w.grad = gradient.clone()
        lars.step()
        step = gradient + 0.01 * expected
        ratio = 0.02 * expected.norm() / step.norm()
        velocity = 0.9 * velocity + 0.5 * ratio * step
        expected = expected - velocity
        torch.testing.assert_close(w.detach(), expected)


@pytest.mark.parametrize("zero", ["weight", "gradient"])
def test_lars_takes_ratio_one_where_a_norm_is_zero(zero: str) -> None:
    w = nn.Parameter(torch.zeros(2) if zero == "weight" else torch.ones(2))
    w.grad = torch.zeros(2) if zero == "gradient" else torch.ones(2)
    LARS([w], lr=0.1, momentum=0.0, trust=1e-3).step()
    expected = torch.full((2,), -0.1) if zero == "weight" else torch.ones(2)
    torch.testing.assert_close(w.detach(), expected)


def test_lars_without_adaptation_is_sgd_with_the_rate_in_the_buffer() -> None:
    torch.manual_seed(0)
    a, b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    ours = LARS([{"params": [a], "adapt": False}], lr=0.1, momentum=0.9)
    sgd = torch.optim.SGD([b], lr=0.1, momentum=0.9)  # a constant rate: the two momenta agree
    for _ in range(3):
        a.grad = b.grad = torch.randn(3)
        ours.step()
        sgd.step()
    torch.testing.assert_close(a, b)


def test_vectors_and_scalars_do_not_decay() -> None:
    model = Model()
    groups = optim.groups(model, model.parameters(), OptimiserConfig(weight_decay=0.1))
    decayed = {id(p) for g in groups if g["weight_decay"] > 0 for p in g["params"]}
    assert decayed == {id(p) for p in model.parameters() if p.ndim > 1}
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))


def test_layer_decay_lowers_the_rate_towards_the_input() -> None:
    model = Model()
    config = OptimiserConfig(layer_decay=0.5)
    scales = {id(p): g["lr_scale"] for g in optim.groups(model, model.parameters(), config) for p in g["params"]}
    assert scales[id(model.head.weight)] == 1.0
    assert scales[id(model.encoder.blocks[1].weight)] == 0.5
    assert scales[id(model.encoder.blocks[0].weight)] == 0.25
    assert scales[id(model.encoder.stem.weight)] == scales[id(model.encoder.token)] == 0.125
    optimiser = optim.build(model, model.parameters(), config, lr=1.0)
    optim.set_rate(optimiser, 0.2)
    assert {g["lr"] for g in optimiser.param_groups} == {0.2, 0.1, 0.05, 0.025}


def test_frozen_parts_lose_their_gradient_and_stay_in_eval_mode() -> None:
    model = Model()
    frozen = optim.freeze(model, ("encoder.blocks",))
    assert not model.encoder.blocks[0].weight.requires_grad
    assert model.encoder.stem.weight.requires_grad
    assert set(frozen) == {model.encoder.blocks, *model.encoder.blocks}


def test_a_prefix_that_names_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"optimiser.freeze: expected .*encoder, head.*received encodr"):
        optim.freeze(Model(), ("encodr",))


def test_nothing_to_train_is_refused() -> None:
    model = Model()
    optim.freeze(model, ("encoder", "head"))
    with pytest.raises(ValueError, match="at least one trainable parameter"):
        optim.build(model, model.parameters(), OptimiserConfig(), lr=0.1)


@pytest.mark.parametrize("name", ["adamw", "sgd", "lars"])
def test_each_optimiser_steps_downhill(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimiser = optim.build(model, model.parameters(), OptimiserConfig(name=name, trust=0.1), lr=0.05)
    x = torch.randn(32, 3)
    losses = []
    for _ in range(40):
        loss = (model(x) - x.sum(1, keepdim=True)).pow(2).mean()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[-1] < 0.6 * losses[0]
