"""MV-InfoNCE, MV-DHEL and what they are compared with: the oracles, shards, memory.

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
from nearfar.objectives import MVDHEL, MultiViewBaseline, MVInfoNCE, multi_view_baseline, mv_dhel, mv_infonce, nt_xent
from objectives.sharding import PARTS, over_parts
from objectives.storage import largest

F64 = torch.float64
BOTH = pytest.mark.parametrize("loss", [mv_infonce, mv_dhel])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def loops(z: Tensor, t: float, *, dhel: bool, option: bool) -> Tensor:
    """The loss of every sample, one exponential at a time."""
    num_views, num, _ = z.shape
    u = normalize(z, dim=2)

    def e(i: int, a: int, j: int, b: int) -> Tensor:
        return torch.exp(u[a, i] @ u[b, j] / t)

    views, losses = range(num_views), []
    for i in range(num):
        if dhel:
            loss = -torch.stack([e(i, a, i, b) for a, b in itertools.combinations(views, 2)]).sum().log()
            for a in views:
                loss = loss + torch.stack([e(i, a, j, a) for j in range(num) if option or j != i]).sum().log()
        else:
            positive = torch.stack([e(i, a, i, b) for a in views for b in views if a != b]).sum()
            kept = [
                e(i, a, j, b) for a in views for j in range(num) for b in views
                if (j, b) != (i, a) and (option or a != b)
            ]  # fmt: skip
            loss = -torch.log(positive / torch.stack(kept).sum())
        losses.append(loss)
    return torch.stack(losses)


@pytest.mark.oracle("mv_infonce_mv_dhel", 4)
@pytest.mark.parametrize("tile", [None, 2])
@pytest.mark.parametrize("option", [True, False])
@pytest.mark.parametrize("dhel", [True, False])
def test_equals_loops(dhel: bool, option: bool, tile: int | None) -> None:
    z = draw(3, 3, 4).requires_grad_()
    t = torch.tensor(0.4, dtype=F64, requires_grad=True)
    if dhel:
        found = mv_dhel(z, temperature=t, include_self=option, reduction="none", tile=tile)
    else:
        found = mv_infonce(z, temperature=t, same_view_negatives=option, reduction="none", tile=tile)
    expected = loops(z, t, dhel=dhel, option=option)
    torch.testing.assert_close(found, expected)
    weight = torch.tensor([1.0, 3.0, 2.0], dtype=F64)
    torch.testing.assert_close(
        torch.autograd.grad((found * weight).sum(), (z, t)), torch.autograd.grad((expected * weight).sum(), (z, t))
    )


@pytest.mark.oracle("mv_infonce_mv_dhel", 1)
@pytest.mark.parametrize(("num_views", "num"), [(2, 3), (3, 2), (5, 7)])
def test_identical_embeddings(num_views: int, num: int) -> None:
    z, t = torch.ones(num_views, num, 4, dtype=F64), 0.3
    expected = math.log((num * num_views - 1) / (num_views - 1))
    assert float(mv_infonce(z, temperature=t)) == pytest.approx(expected, rel=1e-12)
    expected = -math.log(num_views * (num_views - 1) / 2) + num_views * math.log(num - 1) + (num_views - 1) / t
    assert float(mv_dhel(z, temperature=t)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.oracle("mv_infonce_mv_dhel", 2)
def test_two_views() -> None:
    for seed in range(5):
        z = draw(2, 6, 3, seed=seed)
        assert float(mv_infonce(z, temperature=0.2)) >= float(nt_xent(z, temperature=0.2))
    same = draw(1, 6, 3).expand(2, -1, -1)  # both views' denominators agree
    torch.testing.assert_close(mv_infonce(same, temperature=0.2), nt_xent(same, temperature=0.2))
    u, t = normalize(draw(2, 6, 3), dim=2), 0.2
    away = ~torch.eye(6, dtype=torch.bool)
    spread = sum(torch.log((torch.exp(v @ v.t() / t) * away).sum(1)) for v in u)
    torch.testing.assert_close(mv_dhel(u, temperature=t), (spread - (u[0] * u[1]).sum(1) / t).mean())


@pytest.mark.oracle("mv_infonce_mv_dhel", 3)
@BOTH
def test_order_and_rotation_do_not_matter(loss: Any) -> None:
    z = draw(3, 5, 4)
    turn = torch.linalg.qr(draw(4, 4, seed=1))[0]
    for other in (z[[2, 0, 1]], z[:, [3, 1, 4, 0, 2]], z @ turn, 3 * z):
        torch.testing.assert_close(loss(other), loss(z))


@pytest.mark.oracle("mv_infonce_mv_dhel", 3)
def test_a_rotation_a_view_leaves_the_spread_of_dhel() -> None:
    z, t = draw(3, 5, 4), 0.5
    turned = torch.stack([view @ torch.linalg.qr(draw(4, 4, seed=k + 1))[0] for k, view in enumerate(z)])

    def spread(z: Tensor) -> Tensor:
        u = normalize(z, dim=2)
        pairs = torch.stack([(u[a] * u[b]).sum(1) / t for a, b in itertools.combinations(range(3), 2)])
        return mv_dhel(z, temperature=t, reduction="none") + torch.logsumexp(pairs, 0)

    torch.testing.assert_close(spread(turned), spread(z))


@pytest.mark.oracle("mv_infonce_mv_dhel", 5)
def test_dhel_decouples_views() -> None:
    """The gradient of sample 0 in view 0 does not see another sample in another view."""
    z = draw(3, 5, 4)
    moved = z.clone()
    moved[1:, 1:] = draw(2, 4, 4, seed=1)

    def slope(loss: Any, z: Tensor) -> Tensor:
        leaf = z.clone().requires_grad_()
        return torch.autograd.grad(loss(leaf), leaf)[0][0, 0]

    torch.testing.assert_close(slope(mv_dhel, moved), slope(mv_dhel, z))
    assert (slope(mv_infonce, moved) - slope(mv_infonce, z)).abs().max() > 1e-4


@pytest.mark.parametrize("combine", ["pairs", "average"])
def test_baselines(combine: str) -> None:
    z, t = draw(4, 5, 3), 0.4
    u = normalize(z, dim=2)
    away = ~torch.eye(5, dtype=torch.bool)

    def nt_xent_of(a: Tensor, b: Tensor) -> Tensor:
        both = torch.cat([a, b])
        logits = (both @ both.t() / t).masked_fill(torch.eye(10, dtype=torch.bool), -math.inf)
        return torch.nn.functional.cross_entropy(logits, torch.arange(10).roll(5))

    def dhel_of(a: Tensor, b: Tensor) -> Tensor:
        spread = sum(torch.log((torch.exp(x @ x.t() / t) * away).sum(1)) for x in (a, b))
        return (spread - (a * b).sum(1) / t).mean()

    if combine == "pairs":
        pairs = list(itertools.combinations(u, 2))
    else:
        pairs = [(u[v], u[[w for w in range(4) if w != v]].mean(0)) for v in range(4)]
    for base, two in (("nt_xent", nt_xent_of), ("dhel", dhel_of)):
        expected = torch.stack([two(*pair) for pair in pairs]).mean()
        torch.testing.assert_close(multi_view_baseline(z, combine=combine, base=base, temperature=t), expected)


@pytest.mark.parametrize("sizes", PARTS)
@pytest.mark.parametrize(
    ("loss", "options"),
    [
        (mv_infonce, {}), (mv_infonce, {"same_view_negatives": False}), (mv_dhel, {}),
        (mv_dhel, {"include_self": True}),
        *((multi_view_baseline, {"combine": c, "base": b}) for c in ("pairs", "average") for b in ("nt_xent", "dhel")),
    ],
)  # fmt: skip
def test_shards_equal_the_whole(loss: Any, options: dict[str, Any], sizes: list[int]) -> None:
    z = draw(3, 7, 4).requires_grad_()
    whole = loss(z, **options)

    def part(rows: slice, offset: int) -> tuple[Tensor, Stats]:
        return loss(z[:, rows], gathered=z, offset=offset, with_stats=True, **options)

    parts = over_parts(sizes, part)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts, z), torch.autograd.grad(whole, z))


@BOTH
def test_gradcheck_and_reductions(loss: Any) -> None:
    z = draw(3, 4, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, temperature=0.4, tile=3), z)
    each = loss(z, reduction="none")
    assert each.shape == (4,)
    torch.testing.assert_close(loss(z), each.mean())
    torch.testing.assert_close(loss(*z, reduction="sum"), each.sum())


def test_large_batches_equal_stored_logits() -> None:
    z, t = draw(3, 600, 8).requires_grad_(), 0.3
    u = normalize(z, dim=2)
    logits = (u.flatten(0, 1) @ u.flatten(0, 1).t() / t).masked_fill(torch.eye(1800, dtype=torch.bool), -math.inf)
    pairs = torch.stack([(u[a] * u[b]).sum(1) / t for a, b in itertools.combinations(range(3), 2)])
    positive = torch.logsumexp(pairs, 0)
    every = torch.logsumexp(logits.view(3, 600, 1800).transpose(0, 1).flatten(1), 1)
    blocks = [logits[v * 600 : (v + 1) * 600, v * 600 : (v + 1) * 600] for v in range(3)]
    spread = torch.stack([torch.logsumexp(block, 1) for block in blocks]).sum(0)
    cases = ((mv_infonce, (every - positive).mean() - math.log(2)), (mv_dhel, (spread - positive).mean()))
    for loss, expected in cases:
        found = loss(z, temperature=t)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(
            torch.autograd.grad(found, z), torch.autograd.grad(expected, z, retain_graph=True)
        )  # fmt: skip


@BOTH
def test_no_matrix_is_stored(loss: Any) -> None:
    z = draw(3, 300, 8).float().requires_grad_()
    assert 64 * 64 <= largest(lambda: loss(z, tile=64).backward()) <= 900 * 900 / 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@BOTH
def test_extremes_are_finite(loss: Any, dtype: torch.dtype) -> None:
    for rows in (torch.ones(6, 4), torch.zeros(6, 4), torch.cat([torch.ones(3, 4), -torch.ones(3, 4)])):
        z = torch.stack([rows] * 6).to(dtype).requires_grad_()
        value = loss(z, temperature=0.01)
        value.backward()
        assert value.dtype == torch.float32
        assert torch.isfinite(value)
        assert torch.isfinite(z.grad).all()


def test_modules() -> None:
    z = draw(3, 5, 4)
    first = MVInfoNCE(0.3, same_view_negatives=False)
    torch.testing.assert_close(first(z), mv_infonce(z, temperature=0.3, same_view_negatives=False))
    second = MVDHEL(0.3, include_self=True)
    torch.testing.assert_close(second(*z), mv_dhel(z, temperature=0.3, include_self=True))
    third = MultiViewBaseline("average", "dhel", 0.3)
    torch.testing.assert_close(third(z), multi_view_baseline(z, combine="average", base="dhel", temperature=0.3))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: mv_dhel(draw(2, 1, 3)), "views: expected 2 or more samples"),
        (lambda: mv_infonce(draw(1, 4, 3)), "views: expected 2 or more views, received 1"),
        (lambda: mv_infonce(draw(4, 3), draw(5, 3)), "views: expected views of one shape"),
        (lambda: mv_dhel(draw(2, 4, 3), temperature=0.0), "temperature: expected a finite number > 0"),
        (lambda: mv_dhel(draw(2, 4, 3), temperature=torch.ones(4)), r"temperature: expected a number or a tensor \[\]"),
        (lambda: mv_infonce(draw(2, 4, 3), reduction="max"), "reduction: expected one of"),
        (lambda: mv_infonce(draw(2, 4, 3), gathered=draw(3, 4, 3)), "gathered: expected 2 views"),
        (lambda: mv_dhel(draw(2, 4, 3), gathered=draw(2, 5, 3), offset=2), "offset: expected 0 to 1"),
        (lambda: multi_view_baseline(draw(2, 4, 3), combine="all"), "combine: expected one of"),
        (lambda: multi_view_baseline(draw(2, 4, 3), base="dcl"), "base: expected one of"),
        (lambda: multi_view_baseline(draw(2, 1, 3), base="dhel"), "views: expected 2 or more samples"),
    ],
)
def test_refuses(call: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()


def test_integers_are_refused() -> None:
    with pytest.raises(TypeError, match="views: expected floating point"):
        mv_infonce(torch.ones(2, 3, 2, dtype=torch.long))
