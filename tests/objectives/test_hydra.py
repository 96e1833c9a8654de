"""Contrast of any two classes in gated features: its oracles, the loss by loops, bad input.

Legend: B anchors, N candidates, D embedding.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from nearfar.objectives import class_pairs, gated_cosine, hydra

F64 = torch.float64
Y, PARTNER = torch.tensor([0, 0, 1, 2]), torch.tensor([1, 2, 0, 2])
KEY_Y = torch.tensor([2, 0, 1, 1, 0, 2, 3])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def gates(*shape: int, seed: int = 5) -> Tensor:
    return draw(*shape, seed=seed).sigmoid()


def by_loops(a: Tensor, g: Tensor, y: Tensor, p: Tensor, c: Tensor, cy: Tensor, t: float, own: Any = None) -> Tensor:
    """Sums over the positives of every anchor."""
    losses = []
    for i in range(len(a)):
        s = cosine_similarity((g[i] * a[i])[None], g[i] * c, dim=1) / t
        out = [] if own is None else [int(own[i])]
        negative = [n for n in range(len(c)) if cy[n] not in (y[i], p[i]) and n not in out]
        total = 0.0 * a[i].sum()
        for j in range(len(c)):
            if cy[j] == p[i] and j not in out:
                total = total + torch.logsumexp(s[[j, *negative]], 0) - s[j]
        losses.append(total)
    return torch.stack(losses)


@pytest.mark.oracle("hydra", 1)
def test_the_efficient_cosine_equals_the_explicit_one() -> None:
    a, g, c = draw(5, 6), gates(5, 6), draw(7, 6, seed=1)
    explicit = cosine_similarity((g * a)[:, None], g[:, None] * c[None], dim=2)
    torch.testing.assert_close(gated_cosine(a, g, c), explicit, rtol=0, atol=1e-10)


@pytest.mark.oracle("hydra", 1)
@pytest.mark.parametrize("tile", [0, 3, None])
@pytest.mark.parametrize("with_own", [False, True])
def test_equals_loops(with_own: bool, tile: int | None) -> None:
    a, g, c = (x.requires_grad_() for x in (draw(4, 6), gates(4, 6), draw(7, 6, seed=1)))
    own = torch.tensor([2, -1, 4, 5]) if with_own else None
    expected = by_loops(a, g, Y, PARTNER, c, KEY_Y, 0.2, own)
    options: dict[str, Any] = {"temperature": 0.2, "own": own, "tile": tile}
    found = hydra(a, g, Y, PARTNER, c, KEY_Y, reduction="none", **options)
    torch.testing.assert_close(found, expected)
    count = sum(int((p == KEY_Y).sum()) for p in PARTNER) - (3 if with_own else 0)
    mean, stats = hydra(a, g, Y, PARTNER, c, KEY_Y, with_stats=True, **options)
    assert stats.num_positives == count
    torch.testing.assert_close(mean, expected.sum() / count)
    torch.testing.assert_close(
        torch.autograd.grad(mean, (a, g, c)), torch.autograd.grad(expected.sum() / count, (a, g, c))
    )


@pytest.mark.oracle("hydra", 2)
def test_open_gates_and_identical_classes_are_info_nce_of_each_positive() -> None:
    z, y = normalize(draw(8, 4), dim=1), torch.tensor([0, 1, 2, 0, 1, 0, 2, 1])
    s, losses = z @ z.t() / 0.1, []
    for i in range(8):
        for j in range(8):
            if i != j and y[i] == y[j]:
                losses.append(torch.logsumexp(torch.cat([s[i, [j]], s[i, y != y[i]]]), 0) - s[i, j])
    found = hydra(z, torch.ones_like(z), y, y, z, y, own=torch.arange(8))
    torch.testing.assert_close(found, torch.stack(losses).mean())


@pytest.mark.oracle("hydra", 4)
def test_scales_of_embeddings_and_constant_gates_change_nothing() -> None:
    a, g, c = draw(4, 6), gates(4, 6), draw(7, 6, seed=1)
    expected = hydra(a, g, Y, PARTNER, c, KEY_Y)
    torch.testing.assert_close(hydra(3 * a, g, Y, PARTNER, 0.1 * c, KEY_Y), expected)
    torch.testing.assert_close(hydra(a, 7 * g, Y, PARTNER, c, KEY_Y), expected)
    half = torch.full_like(g, 0.5)
    torch.testing.assert_close(gated_cosine(a, half, c), gated_cosine(a, torch.ones_like(g), c))


@pytest.mark.oracle("hydra", 5)
def test_who_is_positive_and_negative() -> None:
    """Labels [0, 0, 1, 2] with partners [1, 2, 0, 2]: the gradient of a cosine is negative for positives, positive for
    negatives, and 0 for the rest."""
    positive, negative = ([2], [3], [0, 1], [3]), ([3], [2], [3], [0, 1, 2])
    z, candidate = draw(4, 6), draw(4, 6, seed=1).requires_grad_()
    for i in range(4):
        rows = slice(i, i + 1)
        one = z[rows]
        loss = hydra(one, torch.ones_like(one), Y[rows], PARTNER[rows], candidate, Y)
        (grad,) = torch.autograd.grad(loss, candidate)
        towards = (grad * normalize(one, dim=1)).sum(1)  # tangential part alone moves the cosine
        moved = [j for j in range(4) if bool((grad[j] != 0).any())]
        assert moved == sorted(positive[i] + negative[i])
        assert all(towards[j] < 0 for j in positive[i])
        assert all(towards[j] > 0 for j in negative[i])


@pytest.mark.oracle("hydra", 6)
def test_pairs_of_classes() -> None:
    assert len(class_pairs(1000)) == 500_500
    assert class_pairs(3).tolist() == [[0, 0], [0, 1], [0, 2], [1, 1], [1, 2], [2, 2]]
    with pytest.raises(ValueError, match="num_classes: expected 1 or more"):
        class_pairs(0)


def test_two_classes_have_no_negatives_and_lone_classes_no_positives() -> None:
    z, y = draw(4, 6).requires_grad_(), torch.tensor([0, 0, 1, 1])
    loss, stats = hydra(z, torch.ones_like(z), y, 1 - y, z, y, with_stats=True)
    assert (loss.item(), stats) == (0.0, (8, 4))
    loss, stats = hydra(z, torch.ones_like(z), y, torch.full((4,), 5), z, y, with_stats=True)
    assert (loss.item(), stats) == (0.0, (0, 0))
    loss.backward()
    assert torch.equal(z.grad, torch.zeros_like(z))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_closed_gates_and_cold_rows_are_finite(dtype: torch.dtype) -> None:
    least = 1e-6 if dtype == torch.float32 else 1e-2  # the gradient grows as a gate closes
    for gate in (torch.zeros(4, 6), torch.full((4, 6), least), torch.ones(4, 6)):
        for rows in (torch.zeros(4, 6), torch.ones(4, 6), draw(4, 6)):
            z, g = rows.to(dtype).requires_grad_(), gate.to(dtype).requires_grad_()
            loss = hydra(z, g, Y, PARTNER, draw(7, 6).to(dtype), KEY_Y, temperature=0.01)
            loss.backward()
            assert torch.isfinite(loss)
            assert torch.isfinite(z.grad).all()
            assert torch.isfinite(g.grad).all()


def test_derivatives() -> None:
    a, g, c = (x.requires_grad_() for x in (draw(4, 3), gates(4, 3), draw(7, 3, seed=1)))
    t = torch.tensor(0.3, dtype=F64, requires_grad=True)
    for tile in (0, 2):
        assert torch.autograd.gradcheck(
            lambda a, g, c, t, tile=tile: hydra(a, g, Y, PARTNER, c, KEY_Y, temperature=t, tile=tile), (a, g, c, t)
        )
    assert math.isfinite(hydra(a, g, Y, PARTNER, c, KEY_Y).item())


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"gate": torch.ones(4, 5)}, r"gate: expected shape \(4, 6\)"),
        ({"candidate": torch.ones(7, 5)}, r"candidate: expected shape \[N, 6\]"),
        ({"labels": Y[:3]}, r"labels: expected shape \[4\]"),
        ({"partners": Y[:3]}, r"partners: expected shape \[4\]"),
        ({"candidate_labels": Y}, r"candidate_labels: expected shape \[7\]"),
        ({"own": torch.arange(3)}, r"own: expected shape \[4\]"),
        ({"reduction": "max"}, "reduction: expected one of"),
    ],
)
def test_refuses(arguments: dict[str, Any], match: str) -> None:
    given: dict[str, Any] = {
        "anchor": draw(4, 6), "gate": gates(4, 6), "labels": Y, "partners": PARTNER, "candidate": draw(7, 6),
        "candidate_labels": KEY_Y,
    }  # fmt: skip
    with pytest.raises(ValueError, match=match):
        hydra(**given | arguments)
