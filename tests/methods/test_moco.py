"""The four oracles of MoCo, on the declarative frame with the recipe's own settings made small."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nearfar.batch import View
from nearfar.config import DataInfo, HeadConfig
from nearfar.method import Progress
from nearfar.methods import Contrast
from nearfar.plugin import load_recipe
from nearfar.rng import Rng

B, D, K = 6, 5, 16


class Encoder(nn.Sequential):
    feature_dim = 10

    def __init__(self) -> None:
        super().__init__(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 10))


class Noise:
    def __call__(self, data: Tensor, index: Tensor, rng: Rng) -> list[View]:
        return [View(data + 0.3 * rng.at(view=v).normal(index, "noise", 8)) for v in range(2)]

    def plain(self, data: Tensor) -> Tensor:
        return data


def make(**options: Any) -> Contrast:
    torch.manual_seed(0)
    head = HeadConfig(layers=2, hidden=7, dim=D, norm="none")
    config = dataclasses.replace(load_recipe("images/moco").method, head=head, queue=K, **options)
    method = config.build(DataInfo(num_samples=100, shape=(8,)), Encoder(), Noise())
    assert isinstance(method, Contrast)
    return method


def batch(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {"index": torch.arange(B) + B * step, "image": torch.randn(B, 8, generator=generator)}


def run_step(method: Contrast, step: int, rate: float = 0.5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One training step by hand: query and key embeddings, the queue as the loss saw it, and the loss."""
    progress = Progress(step=step)
    views = method.views(batch(step), Rng(0, step))
    targets = method.targets(views, progress)
    z = method.encode(views)
    loss = method.loss(z, views, targets, progress).total
    bank = method.queue.view("key").clone()
    method.zero_grad()
    loss.backward()
    with torch.no_grad():
        for parameter in method.optimisers()["main"]:
            parameter -= rate * parameter.grad
    method.after_update(z, targets, progress)
    return z["embedding"][:, 0].detach(), targets["key"][:, 0], bank, loss.detach()


@pytest.mark.oracle("moco", 1)
def test_loss_is_cross_entropy_with_the_positive_first():
    method = make()
    for step in range(5):
        query, key, bank, loss = run_step(method, step)
        if step == 0:
            continue  # the queue is empty: negatives are the batch's other keys
        query, key = F.normalize(query.double(), dim=1), F.normalize(key.double(), dim=1)
        positive = (query * key).sum(1, keepdim=True)
        logits = torch.cat([positive, query @ bank.double().T], dim=1) / 0.2
        assert logits.shape[1] == 1 + min(K, B * step)
        expected = F.cross_entropy(logits, torch.zeros(B, dtype=torch.long))
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.oracle("moco", 2)
def test_queue_holds_the_newest_keys_through_every_wrap_around():
    method = make()
    seen: list[Tensor] = []
    for step in range(9):  # 54 keys through 16 places
        _, key, _, _ = run_step(method, step)
        seen += list(F.normalize(key, dim=1))
        stored = method.queue.view("key")
        newest = torch.stack(seen[-K:])
        assert len(stored) == min(K, len(seen))
        distance = torch.cdist(newest, stored)
        assert (distance.min(dim=1).values < 1e-6).all()  # every one of the newest is there
        assert (distance.min(dim=0).values < 1e-6).all()  # and nothing else
        pointer = int(method.queue.pointer)
        oldest_first = torch.cat([stored[pointer:], stored[:pointer]]) if len(seen) >= K else stored
        torch.testing.assert_close(oldest_first, newest)


@pytest.mark.oracle("moco", 3)
def test_teacher_is_the_closed_form_of_the_moving_average():
    m, steps = 0.9, 6
    method = make(momentum=m)
    start = [p.detach().clone().double() for p in method.teacher.parameters()]
    history = []
    for step in range(steps):
        run_step(method, step)
        history.append([p.detach().clone().double() for p in (*method.encoder.parameters(), *method.head.parameters())])
    assert not torch.equal(history[0][0], history[-1][0])
    for k, teacher in enumerate(method.teacher.parameters()):
        expected = m**steps * start[k]
        for t, student in enumerate(history):
            expected = expected + (1 - m) * m ** (steps - 1 - t) * student[k]
        torch.testing.assert_close(teacher.double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.oracle("moco", 4)
def test_keys_queue_and_teacher_get_no_gradient():
    method = make()
    run_step(method, 0)
    views = method.views(batch(1), Rng(0, 1))
    targets = method.targets(views, Progress(step=1))
    assert not targets["key"].requires_grad
    assert not method.queue.view("key").requires_grad
    before = method.queue.view("key").clone()
    method.zero_grad()
    method.loss(method.encode(views), views, targets, Progress(step=1)).total.backward()
    assert all(p.grad is None and not p.requires_grad for p in method.teacher.parameters())
    assert torch.equal(method.queue.view("key"), before)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in method.encoder.parameters())
    trained = {id(p) for p in method.optimisers()["main"]}
    assert trained == {id(p) for p in (*method.encoder.parameters(), *method.head.parameters())}
