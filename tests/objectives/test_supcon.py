"""SupCon: the oracles of its sheet, shards, options, Module.

Legend: B batch, V views, D embedding.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import log_softmax, normalize

from nearfar.objectives import SupCon, nt_xent, supcon
from objectives.sharding import PARTS, over_parts

F64 = torch.float64
LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 2])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def brute(z: Tensor, positive: Tensor, temperature: float, positives: str) -> list[float | None]:
    """Loss of every row of [n, D] by loops over Python numbers; None without a positive."""
    u = normalize(z, dim=1).tolist()
    losses: list[float | None] = []
    for i, x in enumerate(u):
        s = [sum(a * b for a, b in zip(x, y, strict=True)) / temperature for y in u]
        total = math.log(sum(math.exp(s[j]) for j in range(len(u)) if j != i))
        mates = [s[j] for j in range(len(u)) if j != i and positive[i, j]]
        if not mates:
            losses.append(None)
        elif positives == "mean":
            losses.append(total - sum(mates) / len(mates))
        else:
            losses.append(total - math.log(sum(math.exp(m) for m in mates) / len(mates)))
    return losses


def mean(losses: list[float | None]) -> float:
    known = [x for x in losses if x is not None]
    return sum(known) / len(known)


@pytest.mark.oracle("supcon", 1)
@pytest.mark.parametrize("tile", [0, 3])
@pytest.mark.parametrize("positives", ["mean", "sum"])
def test_distinct_labels_are_nt_xent(positives: str, tile: int) -> None:
    z = draw(2, 5, 4).requires_grad_()
    found, expected = supcon(z, torch.tensor([3, 1, 4, 0, 9]), positives=positives, tile=tile), nt_xent(z)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, z), torch.autograd.grad(expected, z))
    torch.testing.assert_close(supcon(z, positives=positives, tile=tile), expected)


@pytest.mark.oracle("supcon", 2)
@pytest.mark.parametrize("tile", [0, 3])
def test_sum_inside_is_at_most_mean_outside(tile: int) -> None:
    for seed in range(5):
        z = draw(2, 7, 4, seed=seed)
        inside, outside = (supcon(z, LABELS, positives=p, reduction="none", tile=tile) for p in ("sum", "mean"))
        assert (inside < outside).all()
    z = draw(6, 4)
    pairs = torch.arange(6) // 2
    one = [supcon(z, pairs, positives=p, tile=tile) for p in ("sum", "mean")]
    torch.testing.assert_close(*one)
    orthogonal = torch.eye(7, dtype=F64)
    torch.testing.assert_close(*(supcon(orthogonal, LABELS, positives=p, tile=tile) for p in ("sum", "mean")))


@pytest.mark.oracle("supcon", 3)
@pytest.mark.parametrize("tile", [0, 3])
@pytest.mark.parametrize("positives", ["mean", "sum"])
def test_identical_embeddings(positives: str, tile: int) -> None:
    found = supcon(torch.ones(2, 7, 3, dtype=F64), LABELS, positives=positives, tile=tile)
    assert float(found) == pytest.approx(math.log(13), rel=1e-10)


@pytest.mark.oracle("supcon", 4)
@pytest.mark.parametrize("tile", [0, 3])
def test_is_cross_entropy_with_uniform_targets(tile: int) -> None:
    z = draw(7, 4)
    u = normalize(z, dim=1)
    logits = (u @ u.t() / 0.1).fill_diagonal_(float("-inf"))
    positive = (LABELS[:, None] == LABELS[None, :]).double().fill_diagonal_(0)
    uniform = positive / positive.sum(1, keepdim=True)
    log_p = log_softmax(logits, 1).fill_diagonal_(0.0)
    torch.testing.assert_close(supcon(z, LABELS, tile=tile), -(uniform * log_p).sum(1).mean())


@pytest.mark.oracle("supcon", 5)
@pytest.mark.parametrize("positives", ["mean", "sum"])
def test_equals_double_loops(positives: str) -> None:
    z = draw(6, 4)
    mask = torch.rand(6, 6, generator=torch.Generator().manual_seed(1)) < 0.4
    assert not torch.equal(mask, mask.t())
    losses = brute(z, mask, 0.1, positives)
    each = supcon(z, positive=mask, positives=positives, reduction="none")
    assert each.tolist() == pytest.approx([x or 0.0 for x in losses], rel=1e-10, abs=1e-12)
    assert float(supcon(z, positive=mask, positives=positives)) == pytest.approx(mean(losses), rel=1e-10)
    views = draw(2, 3, 4, seed=2)
    losses = brute(views.flatten(0, 1), mask[:3, :3].repeat(2, 2), 0.1, positives)
    found = supcon(views, positive=mask[:3, :3], positives=positives)
    assert float(found) == pytest.approx(mean(losses), rel=1e-10)
    for tile in (0, 4):
        labels = LABELS[:6]
        losses = brute(z, labels[:, None] == labels[None, :], 0.1, positives)
        found = supcon(z, labels, positives=positives, tile=tile)
        assert float(found) == pytest.approx(mean(losses), rel=1e-10)
        renamed = torch.tensor([40, -3, 7])[labels]
        torch.testing.assert_close(supcon(z, renamed, positives=positives, tile=tile), found)
        order = torch.tensor([5, 2, 0, 1, 4, 3])
        torch.testing.assert_close(supcon(z[order], labels[order], positives=positives, tile=tile), found)
        one_class = supcon(z, torch.zeros(6, dtype=torch.long), tile=tile)
        assert math.log(5) <= float(one_class) < math.inf


@pytest.mark.oracle("supcon", 6)
@pytest.mark.parametrize("tile", [0, 3])
def test_gradient_of_an_anchor(tile: int) -> None:
    """(softmax mean of candidates - mean of positives) / t, projected on the sphere, with the others constant."""
    z = draw(7, 4)
    u = normalize(z, dim=1)
    for i in range(7):
        anchor = z[i].clone().requires_grad_()
        moved = z.clone()
        moved[i] = anchor
        (grad,) = torch.autograd.grad(supcon(moved, LABELS, reduction="none", tile=tile)[i], anchor)
        others = torch.arange(7) != i
        weight = torch.softmax(u[others] @ u[i] / 0.1, 0)
        free = (weight @ u[others] - u[others & (LABELS[i] == LABELS)].mean(0)) / 0.1
        torch.testing.assert_close(grad, (free - (free @ u[i]) * u[i]) / z[i].norm())


@pytest.mark.parametrize("tile", [None, 3])
@pytest.mark.parametrize("options", [{}, {"positives": "sum"}, {"anchors": "one"}, {"empty": "zero"}])
@pytest.mark.parametrize("num_views", [1, 2])
@pytest.mark.parametrize("sizes", PARTS)
def test_shards_equal_the_whole(sizes: list[int], num_views: int, options: dict, tile: int | None) -> None:
    z = draw(num_views, 7, 4).requires_grad_()
    labels = torch.tensor([0, 1, 0, 0, 1, 0, 2])  # the last is alone in its class when there is one view
    views = z if num_views > 1 else z[0]
    whole = supcon(views, labels, **options, tile=tile)

    def part(rows: slice, offset: int) -> tuple:
        local = z[:, rows] if num_views > 1 else z[0, rows]
        return supcon(
            local, labels[rows], gathered=(views, labels), offset=offset, tile=tile, with_stats=True, **options
        )  # fmt: skip

    parts = over_parts(sizes, part)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts, z), torch.autograd.grad(whole, z))


@pytest.mark.parametrize("tile", [0, 3])
@pytest.mark.parametrize("positives", ["mean", "sum"])
def test_anchors_without_positives(positives: str, tile: int) -> None:
    z, labels = draw(5, 4), torch.tensor([0, 0, 1, 2, 0])
    losses = brute(z, labels[:, None] == labels[None, :], 0.1, positives)
    options = {"positives": positives, "tile": tile}
    assert float(supcon(z, labels, **options)) == pytest.approx(mean(losses), rel=1e-10)
    assert float(supcon(z, labels, **options, empty="zero")) == pytest.approx(mean(losses) * 3 / 5, rel=1e-10)
    with pytest.raises(ValueError, match="2 anchors without"):
        supcon(z, labels, **options, empty="raise")
    with pytest.raises(ValueError, match="at least one anchor with a positive"):
        supcon(z, torch.arange(5), **options)
    z.requires_grad_()
    loss = supcon(z, torch.arange(5), **options, empty="zero")
    assert float(loss.detach()) == 0
    assert loss.requires_grad


def test_options() -> None:
    z = draw(2, 7, 4)
    loss = supcon(z, LABELS, temperature=0.2)
    torch.testing.assert_close(supcon(z, LABELS, temperature=0.2, base_temperature=0.07), loss * 0.2 / 0.07)
    torch.testing.assert_close(supcon(list(z), LABELS, temperature=0.2), loss)
    each = supcon(z, LABELS, temperature=0.2, reduction="none")
    for tile in (0, 3):
        one, stats = supcon(z, LABELS, temperature=0.2, anchors="one", tile=tile, with_stats=True)
        torch.testing.assert_close(one, each[:7].mean())
        assert stats.num_anchors == 7


@pytest.mark.parametrize("tile", [0, 3])
@pytest.mark.parametrize("positives", ["mean", "sum"])
def test_derivatives(positives: str, tile: int) -> None:
    temperature = torch.tensor(0.3, dtype=F64, requires_grad=True)
    z = draw(7, 3).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z, t: supcon(z, LABELS, temperature=t, positives=positives, base_temperature=0.1, tile=tile),
        (z, temperature),
    )


def test_complaints() -> None:
    z = draw(7, 4)
    with pytest.raises(ValueError, match="labels, positive: expected one of them at most"):
        supcon(z, LABELS, positive=torch.ones(7, 7, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"labels: expected labels of shape \[7\]"):
        supcon(z, LABELS[:5])
    with pytest.raises(ValueError, match="positive: expected shape"):
        supcon(z, positive=torch.ones(6, 7, dtype=torch.bool))
    with pytest.raises(ValueError, match="positives: expected one of 'mean', 'sum'"):
        supcon(z, LABELS, positives="each")
    with pytest.raises(ValueError, match="anchors: expected one of"):
        supcon(z, LABELS, anchors="two")
    with pytest.raises(ValueError, match="labels: expected a tensor"):
        supcon(z, gathered=(z, LABELS))
    with pytest.raises(ValueError, match="none in the whole batch"):
        supcon(z[:3], torch.arange(3), gathered=(z, torch.arange(7)))
    with pytest.raises(ValueError, match="temperature: expected a finite number > 0"):
        supcon(z, LABELS, temperature=-1.0)
    with pytest.raises(ValueError, match="did you mean 'sum'"):
        SupCon(positives="sums")


def test_module_is_the_function() -> None:
    z = draw(2, 7, 4)
    torch.testing.assert_close(SupCon()(z, LABELS), supcon(z, LABELS))
    module = SupCon(0.2, positives="sum", anchors="one", base_temperature=0.07, tile=3)
    expected = supcon(z, LABELS, temperature=0.2, positives="sum", anchors="one", base_temperature=0.07)
    torch.testing.assert_close(module(z, LABELS), expected)
    mask = LABELS[:, None] == LABELS[None, :]
    torch.testing.assert_close(SupCon()(z, positive=mask), supcon(z, LABELS))
    learnt, other = SupCon(0.5, learnable_temperature=True), SupCon(0.1, learnable_temperature=True)
    other.load_state_dict(learnt.state_dict())
    torch.testing.assert_close(other(z, LABELS), learnt(z, LABELS))
    assert (module.needs_negatives, module.distributed, module.symmetric) == (True, "gather_candidates", True)
