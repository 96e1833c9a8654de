"""InfoNCE from both sides against each side's hardest negatives: its oracles, loops, bad input.

Legend: B batch, K queue, D embedding.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from nearfar.objectives import dual_view, info_nce

F64 = torch.float64
B, K, D, T = 5, 12, 4, 0.3


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    return draw(B, D), draw(B, D, seed=1), draw(K, D, seed=2)


def one_side(a: Tensor, p: Tensor, queue: Tensor, kept: list[list[int]]) -> Tensor:
    losses = []
    for i in range(len(a)):
        near, far = (normalize(a[i], dim=0) @ normalize(p[i], dim=0)), normalize(queue, dim=1) @ normalize(a[i], dim=0)
        losses.append(torch.logsumexp(torch.cat([near[None], far[kept[i]]]) / T, 0) - near / T)
    return torch.stack(losses)


def order(a: Tensor, queue: Tensor) -> list[list[int]]:
    """Rows of the queue by their cosine with each anchor, the most similar first."""
    return (normalize(a, dim=1) @ normalize(queue, dim=1).t()).argsort(1, descending=True).tolist()


@pytest.mark.oracle("moco_dual_view", 1)
def test_all_negatives_and_no_key_side_are_info_nce() -> None:
    q, k, queue = inputs()
    expected = info_nce(q, k, queue, temperature=T)
    for num in (0, K):
        found = dual_view(q, k, queue, num_hard=num, query_weight=1.0, key_weight=0.0, temperature=T)
        torch.testing.assert_close(found, expected)


@pytest.mark.oracle("moco_dual_view", 2)
def test_equal_query_and_key_have_equal_losses() -> None:
    q, _, queue = inputs()
    _, stats = dual_view(q, q, queue, num_hard=3, drop_top=1, temperature=T, with_stats=True)
    torch.testing.assert_close(stats.query_loss, stats.key_loss)


@pytest.mark.oracle("moco_dual_view", 3)
def test_the_loss_grows_with_the_kept_and_is_near_the_full_one() -> None:
    q, k, queue = inputs()
    options: dict[str, Any] = {"query_weight": 1.0, "key_weight": 0.0, "temperature": T, "reduction": "none"}
    full = dual_view(q, k, queue, **options)
    cosine = normalize(q, dim=1) @ normalize(queue, dim=1).t()
    positive = (normalize(q, dim=1) * normalize(k, dim=1)).sum(1)
    each = [dual_view(q, k, queue, num_hard=n, **options) for n in range(1, K + 1)]
    for fewer, more in itertools.pairwise(each):
        assert (fewer < more).all()
    for n, loss in enumerate(each, 1):
        least = cosine.topk(n, dim=1).values[:, -1]
        most = torch.maximum(positive, cosine.amax(1))
        assert (full - loss <= torch.log1p((K - n) * torch.exp((least - most) / T)) + 1e-12).all()
        assert (loss <= full + 1e-12).all()


@pytest.mark.oracle("moco_dual_view", 4)
def test_the_key_sides_gradient_is_an_attraction() -> None:
    q, k = (normalize(x, dim=1) for x in inputs()[:2])
    q, queue = q.requires_grad_(), inputs()[2].requires_grad_()
    loss = dual_view(q, k, queue.detach(), num_hard=4, query_weight=0.0, key_weight=1.0, temperature=T)
    (grad,) = torch.autograd.grad(loss, q)
    rows = order(k, queue.detach())
    p = torch.exp(-one_side(k, q.detach(), queue.detach(), [row[:4] for row in rows]))
    free = -(1 - p)[:, None] * k / T / B  # of products; the unit length of q takes out what lies along it
    expected = free - (free * q).sum(1, keepdim=True) * q
    torch.testing.assert_close(grad, expected.detach())
    keys = k.detach().requires_grad_()
    loss = dual_view(q, keys.detach(), queue.detach(), num_hard=4, temperature=T)
    assert torch.autograd.grad(loss, [keys, queue], allow_unused=True) == (None, None)


@pytest.mark.oracle("moco_dual_view", 5)
def test_the_dropped_are_absent() -> None:
    q, k, queue = inputs()
    for p in (1, 3):
        left = [row[p:] for row in order(q, queue)], [row[p:] for row in order(k, queue)]
        expected = (one_side(q, k, queue, left[0]) + one_side(k, q, queue, left[1])) / 2
        for num in (0, K - p):
            found = dual_view(q, k, queue, num_hard=num, drop_top=p, temperature=T, reduction="none")
            torch.testing.assert_close(found, expected)


def test_equals_loops_and_tells_what_was_kept() -> None:
    q, k, queue = inputs()
    q.requires_grad_()
    rows = [[row[2:5] for row in order(x.detach(), queue)] for x in (q, k)]
    found, stats = dual_view(q, k, queue, num_hard=3, drop_top=2, query_weight=0.7, key_weight=0.2, temperature=T,
                             with_stats=True)  # fmt: skip
    expected = (0.7 * one_side(q, k, queue, rows[0]) + 0.2 * one_side(k, q, queue, rows[1])).mean()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, q), torch.autograd.grad(expected, q))
    assert stats.kept.tolist() == rows[0]
    cosine = normalize(q, dim=1) @ normalize(queue, dim=1).t()
    torch.testing.assert_close(stats.kept_cosine, cosine.gather(1, stats.kept).mean().detach())


def test_cosines_and_rows_may_be_left_out() -> None:
    q, k, queue = inputs()
    rows = []
    for x in (q, k):
        cosine = normalize(x, dim=1) @ normalize(queue, dim=1).t()
        rows.append([[j for j in row[:6] if -0.2 <= cosine[i, j] <= 0.6] for i, row in enumerate(order(x, queue))])
    expected = (one_side(q, k, queue, rows[0]) + one_side(k, q, queue, rows[1])) / 2
    found = dual_view(q, k, queue, num_hard=6, cosine_range=(-0.2, 0.6), temperature=T, reduction="none")
    torch.testing.assert_close(found, expected)
    allowed = torch.rand(B, K, generator=torch.Generator().manual_seed(0)) > 0.4
    rows = [[[j for j in row if allowed[i, j]][1:] for i, row in enumerate(order(x, queue))] for x in (q, k)]
    expected = (one_side(q, k, queue, rows[0]) + one_side(k, q, queue, rows[1])) / 2
    found = dual_view(q, k, queue, drop_top=1, allowed=allowed, temperature=T, reduction="none")
    torch.testing.assert_close(found, expected)
    none, stats = dual_view(q, k, queue, allowed=torch.zeros(B, K, dtype=torch.bool), with_stats=True)
    assert (none.item(), stats.kept_cosine.item()) == (0.0, 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_cold_rows_are_finite(dtype: torch.dtype) -> None:
    for rows in (torch.ones(B, D), draw(B, D), torch.zeros(B, D)):
        q = rows.to(dtype).requires_grad_()
        loss = dual_view(q, draw(B, D).to(dtype), draw(K, D, seed=2).to(dtype), num_hard=3, temperature=0.01)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(q.grad).all()
        assert math.isfinite(loss.item())


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"key": draw(4, D)}, r"key: expected the shape of query, \(5, 4\)"),
        ({"num_hard": K + 1}, "num . skip: expected at most the 12"),
        ({"num_hard": -1}, "num_hard, drop_top: expected 0 or more"),
        ({"cosine_range": (0.5, 0.2)}, "cosine_range: expected two numbers"),
        ({"query_weight": -1.0}, "query_weight: expected 0 or more"),
        ({"key_weight": -1.0}, "key_weight: expected 0 or more"),
        ({"temperature": 0.0}, "temperature: expected"),
        ({"allowed": torch.ones(2, K, dtype=torch.bool)}, r"allowed: expected shape \(5, 12\)"),
        ({"reduction": "max"}, "reduction: expected one of"),
    ],
)
def test_refuses(arguments: dict[str, Any], match: str) -> None:
    q, k, queue = inputs()
    with pytest.raises(ValueError, match=match):
        dual_view(**{"query": q, "key": k, "queue": queue} | arguments)
