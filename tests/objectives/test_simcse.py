"""SimCSE's objective against closed forms, loops and its peer's formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from nearfar.objectives import info_nce, simcse

ROWS, DIM = 5, 7


def vectors(num: int = 3, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randn(ROWS, DIM, generator=rng, dtype=dtype).requires_grad_() for _ in range(num)]


def loops(a: Tensor, p: Tensor, n: Tensor | None, tau: float, w: float, drop_own: bool = False) -> Tensor:
    total = []
    for i in range(len(a)):
        terms, own = [], torch.cosine_similarity(a[i], p[i], 0) / tau
        for j in range(len(p)):
            terms.append(torch.cosine_similarity(a[i], p[j], 0) / tau)
            if n is not None and not (drop_own and i == j):
                terms.append(torch.cosine_similarity(a[i], n[j], 0) / tau + (w if i == j else 0))
        total.append(torch.stack(terms).logsumexp(0) - own)
    return torch.stack(total).mean()


@pytest.mark.oracle("simcse", 1)
def test_two_orthonormal_embeddings() -> None:
    z = torch.eye(2)
    assert float(simcse(z, z, temperature=1.0)) == pytest.approx(math.log(1 + math.exp(-1)), abs=1e-6)


@pytest.mark.oracle("simcse", 2)
@pytest.mark.parametrize("weight", [0.0, 1.5, -2.0])
def test_equal_embeddings(weight: float) -> None:
    z = torch.ones(ROWS, DIM)
    assert float(simcse(z, z)) == pytest.approx(math.log(ROWS), abs=1e-6)
    found = float(simcse(z, z, z, hard_negative_weight=weight))
    assert found == pytest.approx(math.log(2 * ROWS - 1 + math.exp(weight)), abs=1e-6)


@pytest.mark.oracle("simcse", 3)
def test_a_weight_of_nothing_removes_the_own_hard_negative_alone() -> None:
    a, p, n = vectors()
    found = simcse(a, p, n, temperature=0.3, hard_negative_weight=-1e9)
    torch.testing.assert_close(found, loops(a, p, n, 0.3, 0.0, drop_own=True))


@pytest.mark.oracle("simcse", 4)
def test_the_formula_of_multiple_negatives_ranking() -> None:
    """Cross-entropy of 20 times the cosines; tests/parity holds it against the library itself."""
    a, p = vectors(2)
    scores = 20 * torch.nn.functional.normalize(a, dim=1) @ torch.nn.functional.normalize(p, dim=1).T
    expected = torch.nn.functional.cross_entropy(scores, torch.arange(ROWS))
    torch.testing.assert_close(simcse(a, p, temperature=0.05), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.oracle("simcse", 5)
def test_length_is_free() -> None:
    a, p, n = vectors()
    loss = simcse(a, p, n)
    scale = torch.rand(ROWS, 1, dtype=torch.float64) + 0.5
    torch.testing.assert_close(simcse(a * scale, p * scale.flip(0), n), loss)
    for z, grad in zip((a, p, n), torch.autograd.grad(loss, (a, p, n)), strict=True):
        torch.testing.assert_close((z * grad).sum(1), torch.zeros(ROWS, dtype=torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize("weight", [0.0, 0.7])
@pytest.mark.parametrize("tile", [0, 2, None])
def test_value_and_gradient_are_those_of_loops(weight: float, tile: int | None) -> None:
    a, p, n = vectors()
    found = simcse(a, p, n, temperature=0.2, hard_negative_weight=weight, tile=tile)
    expected = loops(a, p, n, 0.2, weight)
    torch.testing.assert_close(found, expected)
    for one, other in zip(*(torch.autograd.grad(x, (a, p, n)) for x in (found, expected)), strict=True):
        torch.testing.assert_close(one, other)


def test_without_negatives_it_is_info_nce() -> None:
    a, p = vectors(2)
    torch.testing.assert_close(simcse(a, p), info_nce(a, p, temperature=0.05, in_batch=True))


def test_equal_sentences_are_no_negatives_of_each_other() -> None:
    a, p, n = vectors()
    ids = torch.tensor([0, 1, 0, 2, 3])
    kept = torch.tensor([[j == i or ids[j] != ids[i] for j in range(ROWS)] for i in range(ROWS)])
    scores = torch.cat([
        (torch.cosine_similarity(a[:, None], p[None], 2) / 0.05).masked_fill(~kept, -math.inf),
        torch.cosine_similarity(a[:, None], n[None], 2) / 0.05,
    ], 1)  # fmt: skip
    expected = torch.nn.functional.cross_entropy(scores, torch.arange(ROWS))
    torch.testing.assert_close(simcse(a, p, n, ids=ids), expected)


def test_a_part_of_the_rows_meets_all_candidates() -> None:
    a, p, n = vectors()
    each = simcse(a, p, n, hard_negative_weight=0.4, reduction="none")
    some = simcse(a[2:4], p[2:4], n[2:4], hard_negative_weight=0.4, reduction="none", gathered=(p, n), offset=2)
    torch.testing.assert_close(some, each[2:4])


def test_bad_input() -> None:
    a, p, n = vectors()
    with pytest.raises(ValueError, match="positive: expected the shape of anchor"):
        simcse(a, p[:3])
    with pytest.raises(ValueError, match="hard_negative_weight: expected 0 without negatives, received 1"):
        simcse(a, p, hard_negative_weight=1.0)
    with pytest.raises(ValueError, match="two candidates or more"):
        simcse(a[:1], p[:1])
    with pytest.raises(ValueError, match="gathered: expected positives, and negatives"):
        simcse(a, p, n, gathered=(p,))
    with pytest.raises(ValueError, match="offset: expected 0 without gathered"):
        simcse(a, p, offset=2)
