"""Negatives that climb a loss: by hand, their lengths, what stays, refusals."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from nearfar.contrast import contrast
from nearfar.negatives import adversarial_negatives

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def cross_entropy(noise: Tensor) -> Tensor:
    """Of anchors' own positives among the batch's and the noise, by cosines."""
    z1, z2 = draw(6, 8, seed=1), draw(6, 8, seed=2)
    return contrast(z1, z2, targets=torch.arange(6), extra=(noise,), temperature=0.05)


@pytest.mark.oracle("dclr", 3)
def test_the_loss_rises_and_no_vector_goes_far() -> None:
    start = draw(10, 8)
    values = [float(cross_entropy(adversarial_negatives(cross_entropy, start, num_steps=n))) for n in range(6)]
    assert values == sorted(values)
    assert values[-1] > values[0]
    for num_steps in (1, 4):
        moved = adversarial_negatives(cross_entropy, start, num_steps=num_steps) - start
        assert moved.norm(dim=1).max() <= num_steps * 1e-3 + 1e-12
        assert moved.norm(dim=1).min() > 0


@pytest.mark.oracle("dclr", 4)
def test_a_step_of_cosines_is_orthogonal_to_its_vector() -> None:
    start = draw(10, 8)
    step = adversarial_negatives(cross_entropy, start, num_steps=1, step_size=0.5) - start
    assert (step * start).sum(1).abs().max() < 1e-12
    torch.testing.assert_close(step.norm(dim=1), torch.full((10,), 0.5, dtype=F64))
    lengths = [adversarial_negatives(cross_entropy, start, num_steps=n, step_size=0.5).norm(dim=1) for n in range(4)]
    assert all((after > before).all() for before, after in itertools.pairwise(lengths))


def test_one_step_by_hand() -> None:
    start, weight = draw(3, 2), draw(3, 2, seed=5)
    found = adversarial_negatives(lambda n: (n * weight).sum(), start, num_steps=2, step_size=0.1)
    torch.testing.assert_close(found, start + 0.2 * weight / weight.norm(dim=1, keepdim=True))


def test_vectors_without_a_usable_gradient_stay() -> None:
    start = torch.tensor([[1.0, 2.0], [3.0, 4.0], [0.0, 5.0]])

    def loss(n: Tensor) -> Tensor:  # the second row does not count; the third's slope is infinite
        return n[0].sum() + 0.0 * n[1].sum() + n[2, 0].clamp_min(0).sqrt()

    found = adversarial_negatives(loss, start, num_steps=1, step_size=1.0)
    torch.testing.assert_close(found[0], start[0] + 0.5**0.5)
    assert torch.equal(found[1:], start[1:])


def test_nothing_else_is_touched() -> None:
    start, weight = draw(4, 3), draw(4, 3, seed=2).requires_grad_()
    before = start.clone()
    with torch.no_grad():
        found = adversarial_negatives(lambda n: (n * weight).sum(), start)
    assert torch.equal(start, before)
    assert not start.requires_grad
    assert not found.requires_grad
    assert weight.grad is None
    none = adversarial_negatives(cross_entropy, start, num_steps=0)
    assert torch.equal(none, start)
    assert none.data_ptr() != start.data_ptr()
    assert adversarial_negatives(cross_entropy, draw(0, 8)).shape == (0, 8)


def test_bad_input() -> None:
    for call, told in (
        (lambda: adversarial_negatives(cross_entropy, draw(3)), r"start: expected floating point \[M, D\]"),
        (lambda: adversarial_negatives(cross_entropy, draw(3, 8), num_steps=-1), "num_steps: expected 0 or more"),
        (lambda: adversarial_negatives(cross_entropy, draw(3, 8), step_size=0.0), "step_size: expected a finite"),
        (lambda: adversarial_negatives(lambda n: n.sum(1), draw(3, 8)), "loss: expected a scalar"),
        (lambda: adversarial_negatives(lambda n: n.detach().sum(), draw(3, 8)), "loss: expected a scalar that depends"),
    ):
        with pytest.raises(ValueError, match=told):
            call()
