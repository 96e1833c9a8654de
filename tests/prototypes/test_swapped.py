"""The swapped prediction against loops over views, samples and prototypes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nearfar.prototypes import sinkhorn, swapped_prediction


def looped(scores: Tensor, num_assigned: int, temperature: float, queue: tuple[Tensor, ...] = ()) -> float:
    views, batch, width = scores.shape
    total = 0.0
    for i in range(num_assigned):
        stacked = torch.cat([queue[i], scores[i]]) if queue else scores[i]
        code = sinkhorn(stacked)[-batch:]
        for v in range(views):
            if v == i:
                continue
            for b in range(batch):
                row = [float(s) / temperature for s in scores[v, b]]
                norm = math.log(sum(math.exp(s - max(row)) for s in row)) + max(row)
                total += -sum(float(code[b, k]) * (row[k] - norm) for k in range(width)) / batch / (views - 1)
    return total / num_assigned


@pytest.mark.oracle("swav", 5)
@pytest.mark.parametrize(("views", "num_assigned"), [(2, 2), (4, 2), (3, 1), (3, 3), (2, 1)])
def test_value_and_gradient(views: int, num_assigned: int) -> None:
    scores = (2 * torch.rand(views, 5, 4, dtype=torch.float64) - 1).requires_grad_()
    loss = swapped_prediction(scores, num_assigned=num_assigned, temperature=0.2)
    assert loss.item() == pytest.approx(looped(scores.detach(), num_assigned, 0.2), abs=1e-12)
    (grad,) = torch.autograd.grad(loss, scores)
    codes = [sinkhorn(scores[i]) for i in range(num_assigned)]
    assert not any(q.requires_grad for q in codes)
    for v in range(views):
        others = [codes[i] for i in range(num_assigned) if i != v]
        expected = sum((scores[v] / 0.2).softmax(1) - q for q in others) if others else torch.zeros(5, 4)
        expected = expected / (0.2 * 5 * num_assigned * (views - 1))
        torch.testing.assert_close(grad[v], expected.to(grad), atol=1e-12, rtol=1e-9)
    if views == 2 and num_assigned == 2:
        torch.testing.assert_close(swapped_prediction(scores.flip(0), temperature=0.2), loss)


@pytest.mark.oracle("swav", 2)
def test_constant_scores_lose_log_k() -> None:
    assert float(swapped_prediction(torch.full((3, 4, 7), 0.3))) == pytest.approx(math.log(7), abs=1e-6)


def test_gradient_is_that_of_the_value_with_codes_held_fixed() -> None:
    scores = torch.rand(3, 4, 5, dtype=torch.float64, requires_grad=True)
    codes = [sinkhorn(scores[i]) for i in range(2)]
    pairs = [(i, v) for i in range(2) for v in range(3) if v != i]
    plain = -sum((codes[i] * (scores[v] / 0.1).log_softmax(1)).sum() for i, v in pairs) / (4 * 4)
    (expected,) = torch.autograd.grad(plain, scores)
    (grad,) = torch.autograd.grad(3 * swapped_prediction(scores), scores)
    torch.testing.assert_close(grad, 3 * expected)


def test_queue_shares_in_the_balance() -> None:
    scores, queue = torch.rand(3, 4, 5, dtype=torch.float64), tuple(torch.rand(2, 6, 5, dtype=torch.float64))
    with_queue = float(swapped_prediction(scores, queue=queue))
    assert with_queue == pytest.approx(looped(scores, 2, 0.1, queue), abs=1e-12)
    assert abs(with_queue - float(swapped_prediction(scores))) > 1e-4


def test_without_iterations_codes_are_a_plain_softmax() -> None:
    scores = torch.rand(2, 4, 5, dtype=torch.float64)
    codes = (scores / 0.05).softmax(2)
    expected = -(codes * (scores.flip(0) / 0.1).log_softmax(2)).sum(2).mean()
    torch.testing.assert_close(swapped_prediction(scores, num_iterations=0), expected)


def test_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.rand(3, 11, 5, dtype=torch.float64, requires_grad=True)
    whole = swapped_prediction(scores)
    (expected,) = torch.autograd.grad(whole, scores)
    monkeypatch.setattr("nearfar.prototypes.swapped.rows_of", lambda x: 4)
    loss = swapped_prediction(scores)
    torch.testing.assert_close(loss, whole)
    torch.testing.assert_close(torch.autograd.grad(loss, scores)[0], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    scores = (2 * torch.rand(3, 8, 6) - 1).to(dtype).requires_grad_()
    loss = swapped_prediction(scores, temperature=0.01)
    assert loss.dtype == torch.float32
    loss.backward()
    assert scores.grad is not None
    assert scores.grad.dtype == dtype
    assert bool(scores.grad.isfinite().all())
    torch.testing.assert_close(loss, swapped_prediction(scores.detach().float(), temperature=0.01))


def test_complaints() -> None:
    scores = torch.rand(3, 4, 5)
    with pytest.raises(ValueError, match="scores: expected 2 views or more, received 1"):
        swapped_prediction(scores[:1])
    with pytest.raises(ValueError, match=r"scores: expected shape \[V, B, K\]"):
        swapped_prediction(scores[0])
    with pytest.raises(ValueError, match="scores: expected 1 sample or more"):
        swapped_prediction(scores[:, :0])
    with pytest.raises(ValueError, match="num_assigned: expected a number from 1 to 3, received 4"):
        swapped_prediction(scores, num_assigned=4)
    with pytest.raises(ValueError, match="queue: expected none, or one for each of 2 assigned views, received 1"):
        swapped_prediction(scores, queue=(scores[0],))
    with pytest.raises(ValueError, match=r"queue: expected shape \[L, 5\]"):
        swapped_prediction(scores, queue=(scores[0, :, :3], scores[1]))
    with pytest.raises(ValueError, match="temperature: expected a finite number > 0"):
        swapped_prediction(scores, temperature=0)
    with pytest.raises(ValueError, match="num_iterations: expected 0 or more, received -1"):
        swapped_prediction(scores, num_iterations=-1)
    with pytest.raises(ValueError, match="scores: expected finite numbers"):
        swapped_prediction(scores * torch.nan)
