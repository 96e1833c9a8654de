"""Noise-contrastive estimation: the primer's oracles.

Legend: B anchors, P positives, K noise candidates, C labels.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, softplus

from nearfar.objectives import BinaryNCE, RankingNCE, binary_nce, ranking_nce

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.oracle("nlp_primer", 1)
def test_ranking_with_one_negative_is_a_softplus() -> None:
    p, n = draw(6), draw(6, 1, seed=1)
    torch.testing.assert_close(ranking_nce(p, n, reduction="none"), softplus(n[:, 0] - p))


@pytest.mark.oracle("nlp_primer", 2)
def test_binary_with_a_correction_of_one_is_cross_entropy() -> None:
    p, n = draw(6), draw(6, 5, seed=1)
    uniform = torch.full((6, 5), -math.log(5), dtype=F64)
    found = binary_nce(p, n, positive_noise=uniform[:, 0], negative_noise=uniform, reduction="sum")
    scores, labels = torch.cat([p[:, None], n], 1), torch.tensor([[1.0, 0, 0, 0, 0, 0]], dtype=F64).expand(6, 6)
    expected = binary_cross_entropy_with_logits(scores, labels, reduction="sum")
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(binary_nce(p, n, reduction="sum"), expected)


@pytest.mark.oracle("nlp_primer", 4)
def test_ranking_among_all_labels_is_cross_entropy() -> None:
    scores, y = draw(6, 9), torch.arange(6) % 9
    others = scores[torch.arange(9)[None] != y[:, None]].reshape(6, 8)
    torch.testing.assert_close(ranking_nce(scores[torch.arange(6), y], others), cross_entropy(scores, y))


@pytest.mark.oracle("nlp_primer", 3)
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("loss", [ranking_nce, binary_nce])
def test_the_optimum_over_free_scores(loss: Any, corrected: bool) -> None:
    """Every draw of 2 noise candidates among 4 labels, weighted by its probability: the exact expected loss."""
    p = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=F64)
    q = torch.tensor([0.4, 0.1, 0.3, 0.2], dtype=F64)
    y, k, m = (x.flatten() for x in torch.meshgrid(*[torch.arange(4)] * 3, indexing="ij"))
    weight, noise = p[y] * q[k] * q[m], torch.stack([k, m], 1)
    scores = torch.zeros(4, dtype=F64, requires_grad=True)
    optimiser = torch.optim.LBFGS([scores], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe")
    given = {"positive_noise": q.log()[y], "negative_noise": q.log()[noise]} if corrected else {}

    def closure() -> Tensor:
        optimiser.zero_grad()
        total = (weight * loss(scores[y], scores[noise], reduction="none", **given)).sum()
        total.backward()
        return total

    optimiser.step(closure)
    found = scores.detach()
    if loss is ranking_nce:
        expected = p.log() if corrected else (p / q).log()
        torch.testing.assert_close(found - found.mean(), expected - expected.mean(), rtol=0, atol=1e-4)
    else:
        expected = p.log() if corrected else (p / (2 * q)).log()
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_masks_leave_scores_out() -> None:
    p, n = draw(3, 2).requires_grad_(), draw(3, 4, seed=1)
    some = torch.tensor([[True, False], [True, True], [False, False]])
    hit = torch.ones(3, 4, dtype=torch.bool)
    hit[0, 2] = False
    found, stats = binary_nce(p, n, positive_mask=some, negative_mask=hit, reduction="none", with_stats=True)
    first = softplus(-p[0, 0]) + softplus(n[0, [0, 1, 3]]).sum()
    second = softplus(-p[1]).sum() + softplus(n[1]).sum()
    torch.testing.assert_close(found, torch.stack([first, second, torch.zeros((), dtype=F64)]))
    assert stats[:2] == (2, 1)
    mean = binary_nce(p, n, positive_mask=some, negative_mask=hit)
    torch.testing.assert_close(mean, (first + second) / 2)
    (grad,) = torch.autograd.grad(mean, p)
    assert (grad != 0).equal(some)
    rank = ranking_nce(p[:, 0], n, negative_mask=hit, reduction="none")
    torch.testing.assert_close(rank[0], torch.logsumexp(torch.cat([p[0, :1], n[0, [0, 1, 3]]]), 0) - p[0, 0])
    noise = torch.where(hit, -1.0, -math.inf).double()
    assert torch.isfinite(
        ranking_nce(p[:, 0], n, positive_noise=-(p[:, 0] ** 2), negative_noise=noise, negative_mask=hit)
    )


@pytest.mark.parametrize("loss", [ranking_nce, binary_nce])
def test_derivatives_and_extremes(loss: Any) -> None:
    assert torch.autograd.gradcheck(loss, (draw(4).requires_grad_(), draw(4, 3).requires_grad_()))
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        p, n = torch.full((4,), -3e4).to(dtype).requires_grad_(), torch.full((4, 3), 3e4).to(dtype).requires_grad_()
        value = loss(p, n)
        value.backward()
        assert value.dtype == torch.float32
        assert torch.isfinite(value)
        assert torch.isfinite(p.grad).all()


def test_modules_learn_a_scale() -> None:
    p, n = draw(4).float(), draw(4, 3, seed=1).float()
    for module, loss in ((BinaryNCE(2.0, learnable=True), binary_nce), (RankingNCE(2.0, learnable=True), ranking_nce)):
        torch.testing.assert_close(module(p, n), loss(2 * p, 2 * n))
        module(p, n).backward()
        assert module.log_scale.grad != 0
    with pytest.raises(ValueError, match="scale: expected a finite number > 0"):
        BinaryNCE(0.0)


@pytest.mark.parametrize(
    ("loss", "arguments", "match"),
    [
        (binary_nce, {"negative": draw(3, 2)}, r"negative: expected shape \[4, K\]"),
        (binary_nce, {"positive_noise": draw(4)}, "both or neither"),
        (binary_nce, {"positive_noise": draw(4), "negative_noise": draw(4, 3).fill_(-math.inf)}, "above 0"),
        (binary_nce, {"positive_noise": draw(4, 2), "negative_noise": draw(4, 3)}, "positive_noise: expected shape"),
        (binary_nce, {"positive_mask": torch.zeros(4, 1, dtype=torch.bool)}, "at least one anchor with a positive"),
        (binary_nce, {"num_noise": 0}, "num_noise: expected 1 or more"),
        (binary_nce, {"reduction": "max"}, "reduction: expected one of"),
        (ranking_nce, {"positive": draw(4, 2)}, r"positive: expected shape \[B\]"),
        (ranking_nce, {"negative_noise": draw(4, 3)}, "both or neither"),
        (ranking_nce, {"negative_mask": torch.ones(4, 2, dtype=torch.bool)}, "negative_mask: expected shape"),
    ],
)  # fmt: skip
def test_refuses(loss: Any, arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        loss(**{"positive": draw(4), "negative": draw(4, 3)} | arguments)
