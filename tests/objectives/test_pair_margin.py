"""Pair loss by loops, with keys, shards; keys of the triplet loss.

Legend: V views, B batch, D embedding.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from nearfar.objectives import PairMargin, mutual_information, pair_margin, triplet
from objectives.sharding import PARTS, over_parts

F64 = torch.float64
LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 3])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def by_loops(x: Tensor, y: Tensor, c: Tensor, ids: Tensor, m: float, itself: bool) -> list[Tensor]:
    losses = []
    for i in range(len(x)):
        near = [(x[i] - c[j]).square().sum() for j in range(len(c)) if ids[j] == y[i] and not (itself and i == j)]
        far = [torch.relu(m - (x[i] - c[j]).norm()).square() for j in range(len(c)) if ids[j] != y[i]]
        if near and far:
            losses.append(torch.stack(near).mean() + torch.stack(far).mean())
    return losses


@pytest.mark.parametrize("tile", [0, 3])
@pytest.mark.parametrize("num_views", [1, 2])
@pytest.mark.parametrize("unit", [True, False])
def test_equals_loops(unit: bool, num_views: int, tile: int) -> None:
    z = draw(num_views, 7, 4).requires_grad_()
    x = normalize(z.flatten(0, 1), dim=1) if unit else z.flatten(0, 1)
    y = LABELS.repeat(num_views)
    expected = torch.stack(by_loops(x, y, x, y, 1.2, True))
    found, stats = pair_margin(z, LABELS, margin=1.2, normalize=unit, tile=tile, with_stats=True)
    torch.testing.assert_close(found, expected.mean())
    assert stats.num_anchors == len(expected)
    assert stats.num_empty == 7 * num_views - len(expected)
    torch.testing.assert_close(torch.autograd.grad(found, z), torch.autograd.grad(expected.mean(), z))
    torch.testing.assert_close(pair_margin(z, LABELS, margin=1.2, normalize=unit, reduction="sum"), expected.sum())


@pytest.mark.parametrize("tile", [0, 3])
def test_keys_in_place_of_one_another(tile: int) -> None:
    z, key, ids = draw(7, 4), draw(9, 4, seed=1), torch.tensor([0, 1, 2, 3, 0, 1, 5, 5, -1])
    x, c = normalize(z, dim=1), normalize(key, dim=1)
    expected = torch.stack(by_loops(x, LABELS, c, ids, 1.0, False)).mean()
    torch.testing.assert_close(pair_margin(z, LABELS, keys=(key, ids), tile=tile), expected)
    hinges = torch.stack([
        torch.relu((x[i] - c[p]).norm() - (x[i] - c[n]).norm() + 0.2)
        for i in range(7) for p in range(9) for n in range(9) if ids[p] == LABELS[i] and ids[n] != LABELS[i]
    ])  # fmt: skip
    found = triplet(z, LABELS, keys=(key, ids), average="all", tile=tile)
    torch.testing.assert_close(found, hinges.mean())


@pytest.mark.parametrize("sizes", PARTS)
def test_shards_equal_the_whole(sizes: list[int]) -> None:
    z = draw(7, 4).requires_grad_()
    whole = pair_margin(z, LABELS)

    def part(rows: slice, offset: int) -> tuple:
        return pair_margin(z[rows], LABELS[rows], gathered=(z[None], LABELS), offset=offset, with_stats=True)

    parts = over_parts(sizes, part)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts, z), torch.autograd.grad(whole, z))


def test_equal_points_have_a_finite_gradient() -> None:
    z = torch.ones(4, 3, requires_grad=True)
    loss = PairMargin()(z, torch.tensor([0, 0, 1, 1]))
    torch.testing.assert_close(loss.detach(), torch.tensor(1.0), rtol=0, atol=3e-3)
    (grad,) = torch.autograd.grad(loss, z)
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("bound", ["jensen_shannon", "donsker_varadhan", "nwj", "info_nce", "chi_square", "hellinger"])
def test_information_with_a_queue_is_that_of_the_rows_together(bound: str) -> None:
    a, b, queue = draw(5, 4), draw(5, 4, seed=1), draw(6, 4, seed=2)
    found = mutual_information(a, b, queue, bound=bound, temperature=2.0)
    rows = torch.cat([b, queue])
    if bound == "donsker_varadhan":
        scores = a @ rows.t() / 2
        own = torch.eye(5, 11, dtype=torch.bool)
        torch.testing.assert_close(found, scores[~own].exp().mean().log() - scores[own].mean())
    else:
        torch.testing.assert_close(found, mutual_information(a, b, bound=bound, temperature=2.0, gathered=rows))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"margin": -1.0}, "margin: expected a finite number of 0 or more"),
        ({"reduction": "max"}, "reduction: expected one of"),
        ({"keys": (torch.ones(3, 5), torch.arange(3))}, r"keys: expected \(\[K, 4\], \[K\]\)"),
        ({"keys": (torch.ones(3, 4), torch.full((3,), 9))}, "keys: expected two classes, and one that an anchor has"),
        ({"keys": (torch.ones(3, 4), torch.arange(3)), "offset": 1}, "gathered, offset: expected none beside keys"),
    ],
)
def test_wrong_input_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pair_margin(draw(7, 4).float(), LABELS, **options)
