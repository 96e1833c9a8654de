"""CACR: the oracles, options, the form with a momentum encoder, shards, memory.

Legend: B batch, V views, D embedding.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from nearfar.contrast import Stats
from nearfar.objectives import CACR, CACRMomentum, alignment, cacr, cacr_momentum, cacr_parts, info_nce
from objectives.sharding import PARTS, over_parts
from objectives.storage import largest

F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def loops(
    z: Tensor, *, t_pos: float = 1.0, t_neg: float = 0.9, alpha: float = 1.0, beta: float = 1.0,
    cost: str = "euclidean", t: float = 2.0, class_prior: float = 0.0, symmetric: bool = False,
    detach_weights: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Attraction and repulsion, one softmax at a time."""
    num_views, num, _ = z.shape
    u = normalize(z, dim=2)

    def d2(x: int, i: int, y: int, j: int) -> Tensor:
        return (u[x, i] - u[y, j]).square().sum()

    def share(logits: Tensor) -> Tensor:
        return torch.softmax(logits.detach() if detach_weights else logits, 0)

    attraction = []
    for x, i in itertools.product(range(num_views), range(num)):
        costs = torch.stack([d2(x, i, y, i) for y in range(num_views) if y != x])
        attraction.append((share(t_pos * costs) * costs).sum())
    repulsion, pairs = [], list(itertools.combinations(range(num_views), 2))
    for x, y in [*pairs, *((y, x) for x, y in pairs)] if symmetric else pairs:
        rows = []
        for i in range(num):
            costs = torch.stack([d2(x, i, y, j) for j in range(num) if j != i])
            weight = share(-t_neg * costs)
            if cost == "rbf":
                rows.append((weight * torch.exp(-t * costs)).sum())
            else:
                expected = -(weight * costs).sum()
                rows.append((expected + class_prior * d2(x, i, y, i)) / (1 - class_prior))
        mean = torch.stack(rows).mean()
        repulsion.append(mean.log() if cost == "rbf" else mean)
    return alpha * torch.stack(attraction).mean(), beta * torch.stack(repulsion).mean()


CASES: list[dict[str, Any]] = [
    {}, {"t_pos": 3.0, "t_neg": 2.0, "alpha": 0.7, "beta": 1.3}, {"cost": "rbf"},
    {"cost": "rbf", "t": 0.5, "beta": 2.0},
    {"class_prior": 0.2}, {"symmetric": True}, {"detach_weights": True}, {"detach_weights": True, "cost": "rbf"},
    {"symmetric": True, "class_prior": 0.1, "t_neg": 5.0},
]  # fmt: skip


@pytest.mark.oracle("cacr", 5)
@pytest.mark.parametrize("tile", [None, 2])
@pytest.mark.parametrize("options", CASES)
def test_equals_loops(options: dict[str, Any], tile: int | None) -> None:
    z = draw(3, 3, 4).requires_grad_()
    attraction, repulsion = loops(z, **options)
    found = cacr(z, tile=tile, **options)
    torch.testing.assert_close(found, attraction + repulsion)
    torch.testing.assert_close(torch.autograd.grad(found, z), torch.autograd.grad(attraction + repulsion, z))
    parts = cacr_parts(z, tile=tile, **options)
    torch.testing.assert_close(parts.attraction, attraction.detach())
    torch.testing.assert_close(parts.repulsion, repulsion.detach())


@pytest.mark.oracle("cacr", 5)
def test_equal_views_rotation_and_collapse() -> None:
    z = draw(1, 4, 3)
    assert float(cacr_parts(z.expand(3, -1, -1)).attraction) == 0
    other = draw(3, 4, 3)
    turn = torch.linalg.qr(draw(3, 3, seed=1))[0]
    torch.testing.assert_close(cacr(other @ turn), cacr(other))
    torch.testing.assert_close(cacr(4 * other), cacr(other))
    assert float(cacr(torch.ones(3, 4, 2, dtype=F64))) == pytest.approx(0, abs=1e-12)


@pytest.mark.oracle("cacr", 1)
@pytest.mark.parametrize("t_pos", [0.0, 1.0, 7.0])
def test_one_positive_is_alignment(t_pos: float) -> None:
    z = draw(2, 5, 3)
    torch.testing.assert_close(cacr_parts(z, t_pos=t_pos, alpha=1.5).attraction, 1.5 * alignment(z[0], z[1]))


@pytest.mark.oracle("cacr", 2)
def test_without_sharpness_weights_are_even() -> None:
    z = draw(3, 5, 4)
    u = normalize(z, dim=2)
    parts = cacr_parts(z, t_pos=0.0, t_neg=0.0, beta=1.2)
    pairs = list(itertools.combinations(range(3), 2))
    torch.testing.assert_close(parts.attraction, torch.stack([alignment(u[x], u[y]) for x, y in pairs]).mean())
    away = ~torch.eye(5, dtype=torch.bool)
    costs = torch.stack([torch.cdist(u[x], u[y]).square()[away].mean() for x, y in pairs])
    torch.testing.assert_close(parts.repulsion, -1.2 * costs.mean())
    assert float(parts.positive_entropy) == pytest.approx(math.log(2))
    assert float(parts.negative_entropy) == pytest.approx(math.log(4))


@pytest.mark.oracle("cacr", 3)
def test_sharpness_moves_weight_to_hard_pairs() -> None:
    z = draw(4, 6, 3)
    parts = [cacr_parts(z, t_pos=t, t_neg=t) for t in (0.0, 0.3, 1.0, 4.0, 20.0)]
    for before, after in itertools.pairwise(parts):
        assert float(after.attraction) > float(before.attraction)
        assert float(after.repulsion) > float(before.repulsion)
        assert float(after.positive_entropy) < float(before.positive_entropy)
        assert float(after.negative_entropy) < float(before.negative_entropy)


@pytest.mark.oracle("cacr", 4)
def test_in_the_limit_the_hardest_pair_is_all() -> None:
    z = draw(4, 6, 3)
    u = normalize(z, dim=2)
    parts = cacr_parts(z, t_pos=1e5, t_neg=1e5)
    squared = torch.cdist(u.transpose(0, 1), u.transpose(0, 1)).square()
    torch.testing.assert_close(parts.attraction, squared.amax(2).mean(), rtol=1e-6, atol=1e-6)
    nearest = []
    for x, y in itertools.combinations(range(4), 2):
        costs = torch.cdist(u[x], u[y]).square().fill_diagonal_(math.inf)
        nearest.append(costs.amin(1).mean())
    torch.testing.assert_close(parts.repulsion, -torch.stack(nearest).mean(), rtol=1e-6, atol=1e-6)


def test_the_class_prior_takes_false_negatives_out() -> None:
    """Two classes at two places: with their true share the estimate is the cost between the classes."""
    places = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=F64)  # at a squared distance of 2
    z = places[torch.arange(10) % 2].expand(2, -1, -1)
    options: dict[str, Any] = {"t_neg": 0.0, "beta": 1.5}
    assert float(cacr_parts(z, class_prior=4 / 9, **options).repulsion) == pytest.approx(-1.5 * 2, rel=1e-12)
    assert float(cacr_parts(z, **options).repulsion) == pytest.approx(-1.5 * 2 * 5 / 9, rel=1e-12)


def momentum(q: Tensor, k: Tensor, t: float, cost: str, detach: bool) -> Tensor:
    """The large form from stored costs."""
    u, v = normalize(q, dim=2), normalize(k, dim=2)
    num = q.shape[1]
    away = ~torch.eye(num, dtype=torch.bool)
    losses = []
    for w in range(len(v)):
        others = [x for x in range(len(u)) if x != w]
        squared = torch.stack([(u[x] - v[w]).square().sum(1) for x in others])
        p = torch.softmax((squared.detach() if detach else squared) / t, 0)
        loss = 0.0
        for x, share in zip(others, p, strict=True):
            logits = u[x] @ v[w].t() / t
            if cost == "rbf":
                each = 2 * t * torch.nn.functional.cross_entropy(logits, torch.arange(num), reduction="none")
            else:
                c = 1 - u[x] @ v[w].t()
                negative = c[away].view(num, num - 1)
                weight = torch.softmax(-(negative.detach() if detach else negative) / t, 1)
                each = c.diagonal() - (weight * negative).sum(1)
            loss = loss + (share * each).mean()
        losses.append(loss)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("cost", ["rbf", "euclidean"])
@pytest.mark.parametrize("num_keys", [1, 2, 3])
def test_momentum_form(num_keys: int, cost: str, detach: bool) -> None:
    q, k = draw(3, 5, 4).requires_grad_(), draw(num_keys, 5, 4, seed=1)
    for tile in (None, 2):
        found = cacr_momentum(q, k, temperature=0.6, cost=cost, detach_weights=detach, tile=tile)
        expected = momentum(q, k, 0.6, cost, detach)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(torch.autograd.grad(found, q), torch.autograd.grad(expected, q))


def test_momentum_form_of_two_views_is_info_nce() -> None:
    q, k = draw(2, 5, 4), draw(2, 5, 4, seed=1)
    expected = (
        info_nce(q[1], k[0], temperature=0.7, in_batch=True) + info_nce(q[0], k[1], temperature=0.7, in_batch=True)
    ) / 2
    torch.testing.assert_close(cacr_momentum(q, k, temperature=0.7), 1.4 * expected)


@pytest.mark.parametrize("sizes", PARTS)
@pytest.mark.parametrize("options", [{}, {"cost": "rbf"}, {"symmetric": True, "class_prior": 0.1}])
def test_shards_equal_the_whole(options: dict[str, Any], sizes: list[int]) -> None:
    z = draw(3, 7, 4).requires_grad_()
    whole = cacr(z, **options)

    def part(rows: slice, offset: int) -> tuple[Tensor, Stats]:
        return cacr(z[:, rows], gathered=z, offset=offset, with_stats=True, **options)

    parts = over_parts(sizes, part)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts, z), torch.autograd.grad(whole, z))


@pytest.mark.parametrize("sizes", PARTS)
@pytest.mark.parametrize("cost", ["rbf", "euclidean"])
def test_shards_of_the_momentum_form(cost: str, sizes: list[int]) -> None:
    q, k = draw(3, 7, 4).requires_grad_(), draw(2, 7, 4, seed=1)
    whole = cacr_momentum(q, k, cost=cost)

    def part(rows: slice, offset: int) -> tuple[Tensor, Stats]:
        return cacr_momentum(q[:, rows], k[:, rows], cost=cost, gathered=k, offset=offset, with_stats=True)

    parts = over_parts(sizes, part)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts, q), torch.autograd.grad(whole, q))


@pytest.mark.parametrize("options", [{}, {"cost": "rbf"}])
def test_gradcheck(options: dict[str, Any]) -> None:
    z = draw(3, 3, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: cacr(x, tile=2, **options), z)


@pytest.mark.parametrize("cost", ["rbf", "euclidean"])
def test_large_batches_equal_stored_costs_and_store_none(cost: str) -> None:
    z = draw(2, 800, 6).requires_grad_()
    u = normalize(z, dim=2)
    costs = 2 - 2 * u[0] @ u[1].t()
    weight = torch.softmax((-0.9 * costs).masked_fill(torch.eye(800, dtype=torch.bool), -math.inf), 1)
    attraction = costs.diagonal().mean()
    repulsion = (
        (weight * torch.exp(-2 * costs)).sum(1).mean().log() if cost == "rbf" else -(weight * costs).sum(1).mean()
    )
    found = cacr(z, cost=cost)
    torch.testing.assert_close(found, attraction + repulsion)
    torch.testing.assert_close(torch.autograd.grad(found, z), torch.autograd.grad(attraction + repulsion, z))
    assert 64 * 800 <= largest(lambda: cacr(z, cost=cost, tile=64).backward()) <= 800 * 800 / 4
    assert largest(lambda: cacr_momentum(z, z.detach(), cost=cost, tile=64).backward()) <= 800 * 800 / 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("cost", ["rbf", "euclidean"])
def test_extremes_are_finite(cost: str, dtype: torch.dtype) -> None:
    for rows in (torch.ones(6, 4), torch.zeros(6, 4), torch.cat([torch.ones(3, 4), -torch.ones(3, 4)])):
        z = torch.stack([rows, rows, -rows]).to(dtype).requires_grad_()
        loss = cacr(z, cost=cost, t=200.0, t_neg=200.0, t_pos=200.0)
        loss = loss + cacr_momentum(z, z.detach(), cost=cost, temperature=0.01)
        loss.backward()
        assert loss.dtype == torch.float32
        assert torch.isfinite(loss)
        assert torch.isfinite(z.grad).all()


def test_modules() -> None:
    z = draw(3, 5, 4)
    module = CACR(2.0, 3.0, 0.5, 0.7, class_prior=0.1, symmetric=True)
    expected = cacr(z, t_pos=2.0, t_neg=3.0, alpha=0.5, beta=0.7, class_prior=0.1, symmetric=True)
    torch.testing.assert_close(module(z), expected)
    large = CACRMomentum(0.5, cost="euclidean", detach_weights=False)
    expected = cacr_momentum(z, z[:2], temperature=0.5, cost="euclidean", detach_weights=False)
    torch.testing.assert_close(large(z, z[:2]), expected)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: cacr(draw(1, 4, 3)), "views: expected 2 or more views"),
        (lambda: cacr(draw(2, 1, 3)), "views: expected 2 or more samples"),
        (lambda: cacr(draw(4, 3), draw(5, 3)), "views: expected views of one shape"),
        (lambda: cacr(draw(2, 4, 3), t_neg=-1.0), "t_neg: expected a finite number of 0 or more"),
        (lambda: cacr(draw(2, 4, 3), t=0.0), "t: expected a finite number > 0"),
        (lambda: cacr(draw(2, 4, 3), class_prior=1.0), r"class_prior: expected a number in \[0, 1\)"),
        (lambda: cacr(draw(2, 4, 3), class_prior=0.1, cost="rbf"), "class_prior: expected 0 with cost='rbf'"),
        (lambda: cacr(draw(2, 4, 3), cost="dot"), "cost: expected one of"),
        (lambda: cacr_momentum(draw(2, 4, 3), draw(3, 4, 3)), "keys: expected 2 views or fewer"),
        (lambda: cacr_momentum(draw(2, 4, 3), draw(2, 5, 3)), "keys: expected views of shape"),
        (lambda: cacr_momentum(draw(2, 4, 3), draw(2, 4, 3), temperature=0.0), "temperature: expected a finite number"),
        (lambda: CACR(cost="dot"), "cost: expected one of"),
    ],
)
def test_refuses(call: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()
