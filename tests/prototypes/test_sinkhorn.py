"""Sinkhorn codes against the matrix that is divided until it fits, and the laws they obey."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from nearfar.prototypes import sinkhorn


def divided(scores: Tensor, eps: float = 0.05, num_iterations: int = 3) -> Tensor:
    """Columns, then rows, of the whole matrix divided by their sums, in float64."""
    q = np.exp((scores.double() - scores.double().max()).numpy() / eps)
    q /= q.sum()
    for _ in range(num_iterations):
        q /= q.sum(0, keepdims=True) * q.shape[1]
        q /= q.sum(1, keepdims=True) * q.shape[0]
    return torch.from_numpy(q * q.shape[0])


def cosines(num: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    x, c = torch.randn(num, 16, dtype=torch.float64), torch.randn(width, 16, dtype=torch.float64)
    return (torch.nn.functional.normalize(x, dim=1) @ torch.nn.functional.normalize(c, dim=1).T).to(dtype)


@pytest.mark.parametrize("form", ["auto", "scaling", "log"])
@pytest.mark.parametrize("num_iterations", [1, 3, 10])
@pytest.mark.parametrize(("num", "width"), [(40, 7), (5, 30), (1, 4), (9, 1)])
def test_equals_the_divided_matrix(form: str, num_iterations: int, num: int, width: int) -> None:
    scores = cosines(num, width)
    found = sinkhorn(scores, num_iterations=num_iterations, form=form)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), divided(scores, 0.05, num_iterations), atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("form", ["scaling", "log"])
def test_blocks_of_rows_make_no_difference(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = cosines(50, 8, torch.float64)
    whole = sinkhorn(scores, form=form)
    monkeypatch.setattr("nearfar.prototypes._balance.rows_of", lambda x: 7)
    torch.testing.assert_close(sinkhorn(scores, form=form), whole)


@pytest.mark.oracle("swav", 1)
@pytest.mark.oracle("clip_baselines", 4)
def test_marginals() -> None:
    scores = torch.rand(60, 12, dtype=torch.float64)
    far = sinkhorn(scores, num_iterations=200)
    torch.testing.assert_close(far.sum(1), torch.ones(60, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(far.sum(0), torch.full((12,), 5.0, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(sinkhorn(scores).sum(1), torch.ones(60, dtype=torch.float64), atol=1e-12, rtol=0)
    row, column = torch.randperm(60), torch.randperm(12)
    torch.testing.assert_close(sinkhorn(scores[row][:, column]), sinkhorn(scores)[row][:, column])


@pytest.mark.oracle("swav", 2)
@pytest.mark.parametrize("value", [0.0, 0.7, -1e4, 1e30])
def test_constant_scores_give_constant_codes(value: float) -> None:
    torch.testing.assert_close(sinkhorn(torch.full((6, 5), value)), torch.full((6, 5), 0.2))


@pytest.mark.oracle("swav", 3)
def test_log_and_scaling_agree_and_constants_leave_the_limit_alone() -> None:
    scores = torch.rand(30, 9, dtype=torch.float64)
    for num_iterations in (1, 3, 50):
        log, scaling = (sinkhorn(scores, num_iterations=num_iterations, form=form) for form in ("log", "scaling"))
        torch.testing.assert_close(log, scaling, atol=1e-6, rtol=0)
    limit = sinkhorn(scores, eps=0.2, num_iterations=2000)
    for constant in (torch.rand(30, 1, dtype=torch.float64), torch.rand(1, 9, dtype=torch.float64)):
        torch.testing.assert_close(sinkhorn(scores + constant, eps=0.2, num_iterations=2000), limit, atol=1e-8, rtol=0)


@pytest.mark.oracle("swav", 4)
@pytest.mark.parametrize("eps", [0.05, 1e-3])
def test_a_scaled_permutation_comes_back(eps: float) -> None:
    permutation = torch.eye(8)[torch.randperm(8)]
    torch.testing.assert_close(sinkhorn(5 * permutation, eps=eps), permutation)


@pytest.mark.parametrize("offset", [0.0, 40.0])
def test_scaling_is_exact_up_to_its_spread(offset: float) -> None:
    scores = torch.rand(200, 17) * torch.rand(200, 1) * 58 * 0.05
    scores[0], scores[:, 3] = 0.0, 0.0
    scores[1, 5] = 58 * 0.05
    wide = (scores + offset).double()
    for num_iterations in (1, 3, 30):
        found = sinkhorn(scores + offset, num_iterations=num_iterations, form="scaling")
        expected = sinkhorn(wide, num_iterations=num_iterations, form="log")
        torch.testing.assert_close(found.double(), expected, atol=2e-5, rtol=1e-3)
        torch.testing.assert_close(found.sum(1), torch.ones(200))


@pytest.mark.parametrize("form", ["scaling", "log"])
def test_strides_make_no_difference(form: str) -> None:
    scores = cosines(40, 12)
    torch.testing.assert_close(sinkhorn(scores.T.contiguous().T, form=form), sinkhorn(scores, form=form))
    torch.testing.assert_close(sinkhorn(scores.expand(2, 40, 12)[1][::2], form=form), sinkhorn(scores[::2], form=form))


def test_auto_takes_the_log_form_where_scaling_cannot_go() -> None:
    scores = 8 * cosines(30, 6, torch.float64) + 100
    found = sinkhorn(scores.float(), eps=0.02, num_iterations=20)  # spreads over some 500 eps
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found.double(), sinkhorn(scores, eps=0.02, num_iterations=20), atol=5e-3, rtol=0)
    torch.testing.assert_close(found.sum(1), torch.ones(30))
    with pytest.raises(ValueError, match="form: expected 'log' for scores that spread"):
        sinkhorn(scores.float(), eps=0.02, form="scaling")


@pytest.mark.parametrize("form", ["scaling", "log"])
def test_shares_and_weights(form: str) -> None:
    scores, share = torch.rand(40, 5, dtype=torch.float64), torch.tensor([4.0, 1, 1, 1, 3], dtype=torch.float64)
    weight = torch.randint(0, 3, (40,)).double()
    found = sinkhorn(scores, num_iterations=300, prototype_share=share, sample_weight=weight, form=form)
    torch.testing.assert_close((weight[:, None] * found).sum(0), share / 10 * weight.sum(), atol=1e-6, rtol=0)
    # a weight is a number of equal rows; rows of weight 0 get a code
    times = weight.long()
    repeated = sinkhorn(scores.repeat_interleave(times, 0), prototype_share=share, form=form)
    weighed = sinkhorn(scores, prototype_share=share, sample_weight=weight, form=form)
    torch.testing.assert_close(weighed.repeat_interleave(times, 0), repeated)
    torch.testing.assert_close(weighed.sum(1), torch.ones(40, dtype=torch.float64))


def test_hard_codes_are_one_hot_at_the_largest() -> None:
    scores = cosines(20, 4)
    hard = sinkhorn(scores, hard=True)
    assert bool(((hard == 0) | (hard == 1)).all())
    assert torch.equal(hard.argmax(1), sinkhorn(scores).argmax(1))
    assert torch.equal(hard.sum(1), torch.ones(20))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("eps", [0.05, 1e-3])
def test_half_precision_is_computed_in_single(dtype: torch.dtype, eps: float) -> None:
    scores = cosines(30, 6).to(dtype)
    found = sinkhorn(scores, eps=eps)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, sinkhorn(scores.float(), eps=eps))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(sinkhorn(scores, eps=eps), found)


def test_no_gradient_and_input_untouched() -> None:
    scores = torch.rand(6, 3, requires_grad=True)
    before = scores.detach().clone()
    assert not sinkhorn(scores).requires_grad
    assert torch.equal(scores.detach(), before)


def test_complaints() -> None:
    scores = torch.rand(4, 3)
    with pytest.raises(ValueError, match="eps: expected a finite number > 0, received 0"):
        sinkhorn(scores, eps=0.0)
    with pytest.raises(ValueError, match="num_iterations: expected 1 or more, received 0"):
        sinkhorn(scores, num_iterations=0)
    with pytest.raises(ValueError, match=r"scores: expected shape \[N, K\]"):
        sinkhorn(scores[0])
    with pytest.raises(ValueError, match="form: expected one of 'auto', 'scaling', 'log'"):
        sinkhorn(scores, form="exp")
    for bad in (torch.nan, torch.inf, -torch.inf):
        wrong = scores.clone()
        wrong[1, 2] = bad
        with pytest.raises(ValueError, match="scores: expected finite numbers"):
            sinkhorn(wrong)
    with pytest.raises(ValueError, match="scores: expected one row or more"):
        sinkhorn(scores[:0])
    with pytest.raises(ValueError, match=r"prototype_share: expected shape \(3,\)"):
        sinkhorn(scores, prototype_share=torch.ones(4))
    with pytest.raises(ValueError, match="prototype_share: expected finite numbers > 0"):
        sinkhorn(scores, prototype_share=torch.tensor([1.0, 0, 1]))
    with pytest.raises(ValueError, match=r"sample_weight: expected shape \(4,\)"):
        sinkhorn(scores, sample_weight=torch.ones(3))
    for weight in (torch.zeros(4), torch.tensor([1.0, -1, 1, 1])):
        with pytest.raises(ValueError, match="sample_weight: expected finite numbers >= 0, not all 0"):
            sinkhorn(scores, sample_weight=weight)
