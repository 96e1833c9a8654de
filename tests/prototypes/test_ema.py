"""Prototypes that follow class means."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from nearfar.momentum import cosine_momentum
from nearfar.prototypes import Prototypes


@pytest.mark.oracle("space_engage", 2)
def test_constant_means_give_the_closed_form() -> None:
    found = Prototypes(2, 3, momentum=0.9, normalize=False)
    start, mean = torch.tensor([4.0, 0.0, -2.0]), torch.tensor([1.0, 1.0, 1.0])
    found.update(start[None], torch.tensor([0]))
    assert torch.equal(found.vector[0], start)
    for _ in range(7):
        found.update(torch.stack([mean + 1, mean - 1]), torch.tensor([0, 0]))
    torch.testing.assert_close(found.vector[0], 0.9**7 * start + (1 - 0.9**7) * mean)
    assert found.seen.tolist() == [True, False]
    assert not found.vector[1].any()
    assert int(found.num_updates) == 8


@pytest.mark.oracle("space_engage", 4)
def test_softmax_of_similarities_to_orthogonal_prototypes() -> None:
    found = Prototypes(3, 3, normalize=False)
    found.update(5 * torch.eye(3), torch.arange(3))
    share = (found.similarity(0.1 * torch.eye(3)) / 0.5).softmax(1).diagonal()
    torch.testing.assert_close(share, torch.full((3,), math.exp(2) / (math.exp(2) + 2)))


@pytest.mark.oracle("capro", 4)
def test_a_step_a_sample_hardly_depends_on_their_order() -> None:
    z = F.normalize(torch.randn(40, 8, dtype=torch.float64), dim=1)
    label, first = torch.arange(40) % 3, F.normalize(torch.randn(9, 8, dtype=torch.float64), dim=1)
    errors = []
    for momentum in (0.999, 0.9999):
        found = Prototypes(3, 8, momentum=momentum, step="sample").double()
        found.update(first, torch.arange(9) % 3)
        start = torch.stack([F.normalize(first[c::3].mean(0), dim=0) for c in range(3)])
        torch.testing.assert_close(found.vector, start)
        found.update(z, label)
        torch.testing.assert_close(found.vector.norm(dim=1), torch.ones(3, dtype=torch.float64))
        for order in (range(40), reversed(range(40))):
            one = start.clone()
            for i in order:
                one[label[i]] = F.normalize(momentum * one[label[i]] + (1 - momentum) * z[i], dim=0)
            errors.append(float((one - found.vector).abs().max()))
    # of second order in 1 - momentum: a tenth of the step leaves a hundredth of the difference
    assert max(errors[:2]) < 1e-3
    assert max(errors[2:]) < 0.02 * max(errors[:2])


def test_unseen_classes_take_no_part() -> None:
    found = Prototypes(4, 3)
    found.update(torch.eye(3)[:2], torch.tensor([3, 1]))
    similarity = found.similarity(torch.eye(3))
    assert similarity[:, [0, 2]].eq(-torch.inf).all()
    torch.testing.assert_close(similarity[:, [3, 1]], torch.eye(3)[:, :2])
    x = torch.randn(5, 3, requires_grad=True)
    (found.similarity(x) / 0.1).softmax(1)[:, 3].sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())


def test_an_update_leaves_a_pending_backward_alone() -> None:
    found, x = Prototypes(2, 3), torch.randn(4, 3, requires_grad=True)
    label = torch.tensor([0, 1, 0, 1])
    found.update(x, label)
    loss = F.cross_entropy(found.similarity(x), label)
    found.update(torch.randn(4, 3), label)
    loss.backward()
    assert not found.vector.requires_grad


def test_ignored_and_empty_batches_change_nothing() -> None:
    found = Prototypes(2, 3)
    found.update(torch.randn(4, 3), torch.tensor([0, 255, 0, 1]))
    before = found.vector
    found.update(torch.full((2, 3), torch.nan), torch.tensor([255, 255]))
    found.update(torch.empty(0, 3), torch.empty(0, dtype=torch.long))
    assert torch.equal(found.vector, before)


def test_momentum_may_be_a_schedule() -> None:
    found = Prototypes(1, 1, momentum=lambda step: cosine_momentum(step / 4, 0.5), normalize=False)
    label, value = torch.zeros(1, dtype=torch.long), None
    for step in range(5):
        new = float(step**2)
        found.update(torch.tensor([[new]]), label)
        m = 1 - 0.25 * (1 + math.cos(math.pi * step / 4))
        value = new if value is None else m * value + (1 - m) * new
        assert found.vector.item() == pytest.approx(value, abs=1e-5)
    assert value == pytest.approx(found.vector.item())
    found.update(torch.tensor([[7.0]]), label, momentum=0.0)
    assert found.vector.item() == 7


def test_state_comes_back() -> None:
    found, again = Prototypes(3, 4), Prototypes(3, 4)
    found.update(torch.randn(5, 4), torch.tensor([0, 2, 2, 0, 255]))
    again.load_state_dict(found.state_dict())
    x, label = torch.randn(6, 4), torch.arange(6) % 3
    for one in (found, again):
        one.update(x, label)
    assert all(torch.equal(a, b) for a, b in zip(found.buffers(), again.buffers(), strict=True))
    found.clear()
    assert not found.seen.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    found, wide = Prototypes(2, 3), Prototypes(2, 3)
    x, label = torch.randn(6, 3).to(dtype), torch.arange(6) % 2
    with torch.autocast("cpu", torch.bfloat16):
        found.update(x, label)
        assert found.similarity(x).dtype == torch.float32
    wide.update(x.float(), label)
    assert torch.equal(found.vector, wide.vector)


def test_complaints() -> None:
    for options in ({"num_classes": 0, "dim": 2}, {"num_classes": 2, "dim": 0}):
        with pytest.raises(ValueError, match="expected 1 or more, received 0"):
            Prototypes(**options)
    with pytest.raises(ValueError, match=r"momentum: expected a number in \[0, 1\], received 1.1"):
        Prototypes(2, 3, momentum=1.1)
    with pytest.raises(ValueError, match="step: expected one of 'batch', 'sample'"):
        Prototypes(2, 3, step="row")
    found, x = Prototypes(2, 3), torch.randn(4, 3)
    with pytest.raises(ValueError, match="momentum: expected a number in"):
        found.update(x, torch.zeros(4).long(), momentum=-0.1)
    with pytest.raises(ValueError, match="label: expected classes from 0 to 1, or 255, received 2 others"):
        found.update(x, torch.tensor([0, 2, -1, 255]))
    with pytest.raises(ValueError, match="x: expected finite rows, received 4"):
        found.update(x / 0, torch.zeros(4).long())
    with pytest.raises(ValueError, match=r"x: expected shape \[N, 3\]"):
        found.similarity(x[:, :2])
    with pytest.raises(ValueError, match=r"label: expected shape \(4,\)"):
        found.update(x, torch.zeros(2).long())
    assert not found.seen.any()
