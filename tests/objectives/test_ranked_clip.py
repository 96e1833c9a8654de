"""Graded contrast: the oracles of its weights, its relation to CLIP, fields.

Legend: B batch, D embedding.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from nearfar.objectives import RankedCLIP, clip, fuse_fields, info_nce, ranked_clip, relevance_weight
from objectives.sharding import PARTS

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def pairs(a: Tensor, b: Tensor, t: float, ids: Tensor | None = None) -> Tensor:
    """Both directions' cross-entropies of every pair, halved, from stored logits."""
    logits = normalize(a, dim=1) @ normalize(b, dim=1).t() / t
    if ids is not None:
        same = (ids[:, None] == ids[None]) & ~torch.eye(len(a), dtype=torch.bool)
        logits = logits.masked_fill(same, float("-inf"))
    rows = torch.arange(len(a))
    return (cross_entropy(logits, rows, reduction="none") + cross_entropy(logits.t(), rows, reduction="none")) / 2


@pytest.mark.parametrize("tile", [0, 3])
@pytest.mark.parametrize("with_ids", [False, True])
def test_equals_weighted_cross_entropies(tile: int, with_ids: bool) -> None:
    a, b, w = draw(7, 4).requires_grad_(), draw(7, 4, seed=1).requires_grad_(), torch.linspace(0, 2, 7, dtype=F64)
    ids = torch.tensor([0, 1, 0, 2, 2, 3, 0]) if with_ids else None
    each = pairs(a, b, 0.2, ids)
    for normalise, expected in (("batch", (w * each).sum() / 7), ("sum", (w * each).sum() / w.sum())):
        found = ranked_clip(a, b, w, temperature=0.2, ids=ids, normalise=normalise, tile=tile)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(
            torch.autograd.grad(found, (a, b)), torch.autograd.grad(expected, (a, b), retain_graph=True)
        )


@pytest.mark.oracle("gcl_ranking", 1)
@pytest.mark.oracle("gcl_ranking", 2)
def test_weights_of_one_are_clip_and_linear() -> None:
    a, b = draw(6, 4), draw(6, 4, seed=1)
    w = torch.rand(6, generator=torch.Generator().manual_seed(2), dtype=F64)
    torch.testing.assert_close(ranked_clip(a, b, torch.ones(6, dtype=F64)), clip(a, b))
    torch.testing.assert_close(ranked_clip(a, b, 2 * w), 2 * ranked_clip(a, b, w))
    torch.testing.assert_close(ranked_clip(a, b, 5 * w, normalise="sum"), ranked_clip(a, b, w, normalise="sum"))


@pytest.mark.oracle("gcl_ranking", 3)
def test_one_pair_alone_still_pushes_the_others() -> None:
    a, b = draw(6, 4), draw(6, 4, seed=1).requires_grad_()
    w = torch.zeros(6, dtype=F64)
    w[2] = 1
    loss = ranked_clip(a, b, w)
    both = [
        info_nce(x, y, in_batch=True, temperature=0.07, reduction="none")[2] for x, y in ((a, b), (b, a))
    ]  # fmt: skip
    torch.testing.assert_close(loss, (both[0] + both[1]) / 12)
    (grad,) = torch.autograd.grad(loss, b)
    assert (grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize("sizes", PARTS)
def test_shards_equal_the_whole(sizes: list[int]) -> None:
    a, b, w = draw(7, 4).requires_grad_(), draw(7, 4, seed=1).requires_grad_(), torch.linspace(0, 2, 7, dtype=F64)
    ids = torch.tensor([0, 1, 0, 2, 2, 3, 0])
    whole, parts, start = ranked_clip(a, b, w, ids=ids), [], 0
    for size in sizes:
        rows = slice(start, start + size)
        parts.append(
            ranked_clip(a[rows], b[rows], w[rows], ids=(ids[rows], ids), gathered=(a, b), offset=start) * size / 7
        )
        start += size
    total = torch.stack(parts).sum()
    torch.testing.assert_close(total, whole)
    torch.testing.assert_close(torch.autograd.grad(total, (a, b)), torch.autograd.grad(whole, (a, b)))


def test_scores_become_weights() -> None:
    score = torch.tensor([100, 91, 76, 1])
    expected = {
        "constant": [1, 1, 1, 1], "linear": [1, 0.91, 0.76, 0.01], "inverse": [1, 0.1, 0.04, 0.01],
        "inverse_sqrt": [1, 10**-0.5, 0.2, 0.1], "piecewise": [1, 1, 0.1, 0.1],
    }  # fmt: skip
    for kind, values in expected.items():
        torch.testing.assert_close(relevance_weight(score, kind), torch.tensor(values, dtype=torch.float32))
    torch.testing.assert_close(relevance_weight(score, lambda s: s * 2), torch.tensor([200.0, 182, 152, 2]))


@pytest.mark.oracle("gcl_ranking", 4)
def test_fields() -> None:
    x, y = draw(5, 4).requires_grad_(), draw(5, 4, seed=1).requires_grad_()
    torch.testing.assert_close(fuse_fields([x, x], [0.9, 0.1]), normalize(x, dim=1))
    only = fuse_fields([x, y], [1.0, 0.0])
    torch.testing.assert_close(only, normalize(x, dim=1))
    assert torch.autograd.grad(only.sum(), y, allow_unused=True)[0] is None
    both = fuse_fields([x, y], [0.9, 0.1])
    torch.testing.assert_close(both, normalize(0.9 * normalize(x, dim=1) + 0.1 * normalize(y, dim=1), dim=1))
    present = torch.tensor([True, False, True, True, True])
    partly = fuse_fields([x, y], [0.9, 0.1], [present, torch.ones(5, dtype=torch.bool)])
    torch.testing.assert_close(partly[1], normalize(y[1], dim=0))
    torch.testing.assert_close(partly[0], both[0])


def test_module() -> None:
    module = RankedCLIP(learnable_temperature=True, kind="linear", normalise="sum")
    a, b, score = draw(4, 3).float(), draw(4, 3, seed=1).float(), torch.tensor([100, 50, 20, 1])
    torch.testing.assert_close(module(a, b, score), ranked_clip(a, b, score / 100, normalise="sum"))
    module(a, b, score).backward()
    assert module.tau.log_value.grad is not None


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda a: ranked_clip(a, a, torch.ones(3)), r"weight: expected shape \[5\]"),
        (lambda a: ranked_clip(a, a, -torch.ones(5)), "weight: expected numbers of 0 or more"),
        (lambda a: ranked_clip(a, a, torch.zeros(5), normalise="sum"), "a positive sum"),
        (lambda a: ranked_clip(a, a, torch.ones(5), normalise="rows"), "normalise: expected one of"),
        (lambda a: relevance_weight(torch.tensor([0.0, 5.0])), "score: expected numbers from 1 to 100"),
        (lambda a: relevance_weight(torch.tensor([float("nan")])), "score: expected finite numbers"),
        (lambda a: relevance_weight(torch.ones(2), "square"), "kind: expected one of"),
        (lambda a: relevance_weight(torch.ones(2), lambda s: -s), "weight: expected numbers of 0 or more"),
        (lambda a: fuse_fields([a], [1.0, 2.0]), "weights: expected 1 numbers"),
        (lambda a: fuse_fields([a, a], [1.0, -2.0]), "weights: expected numbers of 0 or more"),
        (lambda a: fuse_fields([a], [1.0], [torch.zeros(5)]), "a weighted field of every item"),
    ],
)
def test_refuses(call: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call(draw(5, 3))
