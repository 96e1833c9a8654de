"""DINO's five oracles on its own method, with a small encoder, and what its config refuses.

Legend: B batch, V views, W views that the teacher sees, K prototypes.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import scipy.special
import torch
from torch import Tensor, nn

from nearfar.batch import View
from nearfar.config import DataInfo, HeadConfig
from nearfar.method import Progress
from nearfar.momentum import cosine_momentum
from nearfar.plugin import load_recipe
from nearfar.rng import Rng
from nearfar_images.methods.dino import DINO
from nearfar_images.systems.dino import DINOConfig

B, K = 6, 7


class Encoder(nn.Sequential):
    feature_dim = 10

    def __init__(self) -> None:
        super().__init__(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 10))


class Noise:
    def __init__(self, num: int) -> None:
        self.num = num

    def __call__(self, data: Tensor, index: Tensor, rng: Rng) -> list[View]:
        return [View(data + 0.3 * rng.at(view=v).normal(index, "noise", 8)) for v in range(self.num)]

    def plain(self, data: Tensor) -> Tensor:
        return data


def make(num_views: int = 2, **options: Any) -> DINO:
    torch.manual_seed(0)
    head = HeadConfig(layers=2, hidden=9, dim=5, norm="none")
    config = dataclasses.replace(load_recipe("images/dino").method, head=head, num_prototypes=K, **options)
    method = config.build(DataInfo(num_samples=100, shape=(8,)), Encoder(), Noise(num_views))
    assert isinstance(method, DINO)
    return method


def batch(step: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {"index": torch.arange(B) + B * step, "image": torch.randn(B, 8, generator=generator)}


def run_step(method: DINO, step: int, progress: Progress | None = None, rate: float = 0.5) -> tuple[Tensor, Any]:
    """One training step by hand: its loss, and the teacher's logits [W, B, K]."""
    progress = progress or Progress(step=step, epoch=5)
    views = method.views(batch(step), Rng(0, step))
    targets = method.targets(views, progress)
    logits = method.teacher_parts[1].logits(targets["key"].transpose(0, 1))
    z = method.encode(views)
    loss = method.loss(z, views, targets, progress).total
    method.zero_grad()
    loss.backward()
    method.on_gradients(progress)
    with torch.no_grad():
        for parameter in method.optimisers()["main"]:
            if parameter.grad is not None:
                parameter -= rate * parameter.grad
    method.after_update({name: value.detach() for name, value in z.items()}, targets, progress)
    return loss.detach(), logits


@pytest.mark.oracle("dino", 1)
@pytest.mark.parametrize(("num_views", "num_seen"), [(2, 2), (4, 2), (3, 1)])
def test_loss_equals_loops_from_logits(num_views: int, num_seen: int) -> None:
    method = make(num_views, teacher_views=num_seen).double()
    method.centre.copy_(torch.linspace(-0.3, 0.3, K))
    data = {name: x.double() if x.is_floating_point() else x for name, x in batch().items()}
    views = method.views(data, Rng())
    student = [method.head(method.encoder(view.data)).detach().numpy() for view in views["views"]]
    teacher = [method.teacher(view.data).numpy() for view in views["views"][:num_seen]]
    centre, losses = method.centre.numpy(), []
    for i in range(B):
        for v in range(num_views):
            for w in range(num_seen):
                if v != w:
                    target = scipy.special.softmax((teacher[w][i] - centre) / 0.04)
                    losses.append(-(target * scipy.special.log_softmax(student[v][i] / 0.1)).sum())
    progress = Progress(epoch=50)
    found = method.loss(method.encode(views), views, method.targets(views, progress), progress)
    assert found.counts["distillation"] == B
    assert float(found.values["distillation"].detach()) == pytest.approx(np.mean(losses), rel=1e-10)


@pytest.mark.oracle("dino", 2)
def test_log_k_and_the_entropy_below_which_no_loss_falls() -> None:
    method = make()
    views = method.views(batch(), Rng())
    found = method.loss(method.encode(views), views, method.targets(views, Progress()), Progress())
    assert found.values["distillation"] >= found.logs["teacher_entropy"]
    with torch.no_grad():
        for head in (method.head, method.teacher_parts[1]):
            head.prototypes.copy_(torch.ones(K, 5))
    flat = method.loss(method.encode(views), views, method.targets(views, Progress()), Progress())
    assert float(flat.values["distillation"].detach()) == pytest.approx(math.log(K), rel=1e-6)
    assert float(flat.logs["teacher_entropy"]) == pytest.approx(math.log(K), rel=1e-6)
    assert float(flat.logs["used_prototypes"]) == pytest.approx(K, rel=1e-5)


@pytest.mark.oracle("dino", 3)
def test_what_keeps_the_teacher_from_one_answer() -> None:
    method = make()
    key = torch.nn.functional.normalize(torch.randn(1, 1, 5), dim=-1).expand(2, B, 5)  # the same of every image
    logits = method.teacher_parts[1].logits(key[0, :1])[0]
    sharp = method.answers(key, torch.zeros(K), Progress())
    assert sharp.max() > 0.5
    centred = method.answers(key, logits.detach(), Progress())
    torch.testing.assert_close(centred, torch.full((2, B, K), 1 / K))
    balanced = make(centring="sinkhorn", sinkhorn_iterations=300)
    several = torch.nn.functional.normalize(torch.randn(2, 70, 5), dim=-1)
    codes = balanced.answers(several, torch.zeros(K), Progress())
    torch.testing.assert_close(codes.sum(-1), torch.ones(2, 70))
    torch.testing.assert_close(codes.mean((0, 1)), torch.full((K,), 1 / K), rtol=0, atol=1e-3)
    assert not torch.allclose(method.answers(several, torch.zeros(K), Progress()).mean((0, 1)), torch.tensor(1 / K),
                              atol=0.05)  # fmt: skip
    one = balanced.answers(key, torch.zeros(K), Progress())
    torch.testing.assert_close(one, torch.full((2, B, K), 1 / K))


@pytest.mark.oracle("dino", 4)
def test_moving_averages_are_their_closed_forms() -> None:
    steps, method = 6, make(momentum=0.8, momentum_end=1.0, centre_momentum=0.7, freeze_epochs=0)
    teacher = [p.detach().clone().double() for p in method.teacher.parameters()]
    centre = torch.zeros(K, dtype=torch.float64)
    for step in range(steps):
        progress = Progress(step=step, epoch=step, fraction=step / steps)
        _, logits = run_step(method, step, progress)
        centre = 0.7 * centre + 0.3 * logits.double().mean((0, 1))
        torch.testing.assert_close(method.centre.double(), centre, rtol=1e-5, atol=1e-7)
        m = cosine_momentum(step / steps, start=0.8, end=1.0)
        assert m == pytest.approx(1 - 0.1 * (1 + math.cos(math.pi * step / steps)))
        student = [p.detach().double() for p in (*method.encoder.parameters(), *method.head.parameters())]
        teacher = [m * old + (1 - m) * new for old, new in zip(teacher, student, strict=True)]
    for found, expected in zip(method.teacher.parameters(), teacher, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.oracle("dino", 5)
def test_what_gets_a_gradient_and_when() -> None:
    method = make(freeze_epochs=2)
    views = method.views(batch(), Rng())
    targets = method.targets(views, Progress())
    assert not any(x.requires_grad for x in targets.values())
    method.loss(method.encode(views), views, targets, Progress()).total.backward()
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    assert not method.centre.requires_grad
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.optimisers()["main"])
    for epoch, moves in ((0, False), (1, False), (2, True)):
        before = method.head.prototypes.detach().clone()
        first = method.encoder[0].weight.detach().clone()
        run_step(method, epoch, Progress(step=epoch, epoch=epoch))
        assert torch.equal(method.head.prototypes, before) != moves
        assert not torch.equal(method.encoder[0].weight, first)


def test_the_teachers_temperature_rises_over_its_warm_up() -> None:
    method = make(teacher_temperature=0.04, teacher_temperature_end=0.07, teacher_warmup_epochs=30)
    found = [method.teacher_temperature(Progress(epoch=epoch)) for epoch in (0, 10, 30, 99)]
    assert found == pytest.approx([0.04, 0.05, 0.07, 0.07])
    assert make(teacher_temperature_end=0.05).teacher_temperature(Progress()) == 0.05


def test_features() -> None:
    method = make()
    data = batch()
    torch.testing.assert_close(method.features(data), method.encoder(data["image"]))
    embedding = method.features(data, "embedding")
    assert embedding.shape == (B, 5)
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(B))


def test_without_its_centre_it_collapses_and_with_it_not() -> None:
    used = {}
    for name, options in {"mean": {}, "none": {"centre_momentum": 1.0}, "sinkhorn": {"centring": "sinkhorn"}}.items():
        method = make(momentum=0.9, freeze_epochs=0, **options)
        for step in range(50):
            run_step(method, step % 10, Progress(step=step, epoch=step, fraction=step / 50))
        views = method.views(batch(), Rng())
        logs = method.loss(method.encode(views), views, method.targets(views, Progress()), Progress()).logs
        used[name] = float(logs["used_prototypes"])
    assert used["none"] < 1.1  # one answer for everything
    assert used["mean"] > 2
    assert used["sinkhorn"] > K - 0.5


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"key_encoder": "shared"}, "method.key_encoder: expected 'ema'"),
        ({"queue": 4}, "method.queue: expected 0"),
        ({"symmetric": False}, "method.symmetric: expected True"),
        ({"predictor": HeadConfig()}, "method.predictor.kind: expected 'none'"),
        ({"head": HeadConfig(kind="none")}, "method.head.kind: expected"),
        ({"num_prototypes": 1}, "method.num_prototypes: expected 2 or more"),
        ({"teacher_temperature": 0.0}, "method.teacher_temperature: expected a finite number > 0"),
        ({"centre_momentum": 1.5}, "method.centre_momentum: expected a number in"),
        ({"freeze_epochs": -1}, "method.freeze_epochs: expected 0 or more"),
        ({"sinkhorn_iterations": 0}, "method.sinkhorn_iterations: expected 1 or more"),
        ({"teacher_views": 0}, "method.teacher_views: expected 1 or more"),
    ],
)
def test_config_refuses(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        DINOConfig(**options)


def test_refuses_views_that_do_not_suffice() -> None:
    for method, match in (
        (make(1, teacher_views=1), "views.num_views: expected 2 or more"),
        (make(2, teacher_views=3), "method.teacher_views: expected at most the 2 views"),
    ):
        views = method.views(batch(), Rng())
        with pytest.raises(ValueError, match=match):
            method.targets(views, Progress())


def test_imagenet_recipe_is_the_papers() -> None:
    recipe = load_recipe("images/dino_imagenet")
    method = recipe.method
    assert (method.num_prototypes, method.temperature, method.momentum, method.momentum_end) == (65536, 0.1, 0.996, 1.0)
    assert (method.head.layers, method.head.hidden, method.head.dim, method.head.norm) == (3, 2048, 256, "none")
    assert recipe.optimiser.lr * recipe.trainer.batch_size / 256 == pytest.approx(2e-3)
    assert recipe.optimiser.lr_scaling == "linear"
