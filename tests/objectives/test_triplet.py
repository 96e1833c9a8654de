"""Triplet losses by listing triplets, shards, cost.

Legend: V views, B batch, D embedding.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize as unit
from torch.nn.functional import softplus

from nearfar.objectives import Triplet, triplet, triplet_count
from objectives.sharding import PARTS, over_parts

F64 = torch.float64
LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 3])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def listed(z: Tensor, labels: Tensor, margin: float | None, mining: str, distance: str, normalize: bool) -> Tensor:
    """The losses of the chosen triplets."""
    x, y = z.flatten(0, 1), labels.repeat(len(z))
    x = unit(x, dim=1) if normalize else x

    def d(i: int, j: int) -> Tensor:
        if distance == "cosine":
            return 1 - x[i] @ x[j]
        square = (x[i] - x[j]).square().sum()
        return square if distance == "squared" else square.sqrt()

    losses = []
    for i in range(len(x)):
        ps = [d(i, j) for j in range(len(x)) if j != i and y[j] == y[i]]
        ns = [d(i, j) for j in range(len(x)) if y[j] != y[i]]
        if not ps or not ns:
            continue
        if mining == "all":
            chosen = [(p, n) for p in ps for n in ns]
        elif mining == "hard":
            chosen = [(max(ps, key=Tensor.item), min(ns, key=Tensor.item))]
        else:
            chosen = [(p, min((n for n in ns if n > p), key=Tensor.item)) for p in ps if any(n > p for n in ns)]
        losses += [softplus(p - n) if margin is None else (p - n + margin).clamp_min(0) for p, n in chosen]
    return torch.stack(losses)


@pytest.mark.parametrize("tile", [0, 4])
@pytest.mark.parametrize("num_views", [1, 2])
@pytest.mark.parametrize(("distance", "normalize"), [("euclidean", True), ("squared", False), ("cosine", True)])
@pytest.mark.parametrize(
    ("mining", "margin"),
    [("all", 0.2), ("all", 0.0), ("semi_hard", 0.2), ("hard", 0.2), ("semi_hard", None), ("hard", None)],
)  # fmt: skip
def test_equals_a_list_of_triplets(
    mining: str, margin: float | None, distance: str, normalize: bool, num_views: int, tile: int
) -> None:
    z = draw(num_views, 7, 4).requires_grad_()
    expected = listed(z, LABELS, margin, mining, distance, normalize)
    options: dict[str, Any] = {"margin": margin, "mining": mining, "distance": distance, "normalize": normalize}
    for average, want in (("active", expected.sum() / (expected > 0).sum().clamp_min(1)), ("all", expected.mean())):
        found = triplet(z, LABELS, average=average, tile=tile, **options)
        torch.testing.assert_close(found, want)
        torch.testing.assert_close(
            torch.autograd.grad(found, z), torch.autograd.grad(want, z, retain_graph=True)
        )  # fmt: skip
    assert triplet_count(z, LABELS, **options) == (int((expected > 0).sum()), len(expected))


@pytest.mark.oracle("crl_framework", 3)
def test_squared_distances_are_a_margin_of_cosines() -> None:
    z = draw(7, 4)
    u = unit(z, dim=1)
    s = u @ u.t()
    same, self_ = LABELS[:, None] == LABELS[None], torch.eye(7, dtype=torch.bool)
    total = [
        (2 * (s[i, n] - s[i, p]) + 0.3).clamp_min(0)
        for i in range(7) for p in range(7) for n in range(7) if same[i, p] and not self_[i, p] and not same[i, n]
    ]  # fmt: skip
    found = triplet(z, LABELS, margin=0.3, distance="squared", average="all")
    torch.testing.assert_close(found, torch.stack(total).mean())


def test_separated_classes_cost_nothing() -> None:
    z = torch.tensor([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.0], [-1.0, 0.1]], dtype=F64, requires_grad=True)
    for mining in ("all", "semi_hard", "hard"):
        loss, stats = triplet(z, torch.tensor([0, 0, 1, 1]), mining=mining, with_stats=True)
        assert float(loss.detach()) == 0
        assert stats.num_anchors == 0
        assert (torch.autograd.grad(loss, z)[0] == 0).all()


@pytest.mark.parametrize("average", ["active", "all"])
@pytest.mark.parametrize("mining", ["all", "semi_hard", "hard"])
@pytest.mark.parametrize("sizes", PARTS)
def test_shards_equal_the_whole(sizes: list[int], mining: str, average: str) -> None:
    z = draw(7, 4).requires_grad_()
    options: dict[str, Any] = {"mining": mining, "average": average}
    whole = triplet(z, LABELS, **options)
    parts = over_parts(
        sizes,
        lambda rows, offset: triplet(
            z[rows], LABELS[rows], gathered=(z, LABELS), offset=offset, with_stats=True, **options
        ),
    )  # fmt: skip
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts, z), torch.autograd.grad(whole, z))


@pytest.mark.parametrize("mining", ["all", "semi_hard", "hard"])
def test_derivatives(mining: str) -> None:
    z = draw(7, 3).requires_grad_()
    for tile in (0, 3):
        assert torch.autograd.gradcheck(lambda z, t=tile: triplet(z, LABELS, mining=mining, tile=t), (z,))


def test_a_large_batch_never_lists_its_triplets() -> None:
    """800 rows of 4 classes have 95 million triplets."""
    z, labels = draw(800, 8).float().requires_grad_(), torch.arange(800) % 4
    loss, stats = triplet(z, labels, average="all", with_stats=True)
    assert stats.num_anchors == 800 * 199 * 600
    loss.backward()
    few = torch.arange(800)[::20]
    part = triplet(z[few], labels[few] * 0 + torch.arange(len(few)) % 4, average="all")
    assert float(loss.detach()) == pytest.approx(float(part.detach()), rel=0.2)
    assert torch.isfinite(z.grad).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mining", ["all", "semi_hard", "hard"])
def test_extreme_rows_are_finite(mining: str, dtype: torch.dtype) -> None:
    opposite = torch.cat([torch.ones(4, 4), -torch.ones(3, 4)])
    for rows in (torch.ones(7, 4), draw(7, 4), torch.zeros(7, 4), opposite):
        for distance in ("euclidean", "squared", "cosine"):
            z = rows.to(dtype).requires_grad_()
            loss = triplet(z, LABELS, mining=mining, distance=distance)
            loss.backward()
            assert torch.isfinite(loss)
            assert torch.isfinite(z.grad).all()


def test_module() -> None:
    z = draw(7, 4).float()
    torch.testing.assert_close(Triplet(None, mining="hard")(z, LABELS), triplet(z, LABELS, margin=None, mining="hard"))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"mining": "easy"}, "mining: expected one of"),
        ({"distance": "manhattan"}, "distance: expected one of"),
        ({"average": "some"}, "average: expected one of"),
        ({"margin": None}, "margin: expected a number with mining='all'"),
        ({"margin": -0.1}, "margin: expected a finite number of 0 or more"),
        ({"labels": LABELS[:4]}, r"labels: expected labels of shape \[7\]"),
        ({"labels": torch.arange(7)}, "labels: expected two classes, and two embeddings of one"),
        ({"labels": torch.zeros(7).long()}, "labels: expected two classes"),
        ({"gathered": (draw(7, 4), LABELS), "offset": 2}, "offset: expected 0 to 0"),
    ],
)
def test_refuses(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        triplet(**{"z": draw(7, 4), "labels": LABELS} | arguments)
