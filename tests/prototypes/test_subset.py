"""Lazy greedy selection against the exhaustive one."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nearfar.prototypes import class_subset, lazy_greedy

SUBMODULAR = ("facility_location", "graph_cut")


def value(similarity: Tensor, chosen: list[int], objective: str) -> float:
    """F(S) by its double sum."""
    rows = range(len(similarity))
    s = similarity.tolist()
    if objective == "facility_location":
        return sum(max(s[i][j] for j in chosen) for i in rows) if chosen else 0.0
    if objective == "graph_cut":
        return sum(s[i][j] for i in rows if i not in chosen for j in chosen)
    return sum(s[i][j] for i in rows for j in chosen)


def exhaustive(similarity: Tensor, num: int, objective: str) -> list[int]:
    chosen: list[int] = []
    for _ in range(num):
        rest = [j for j in range(len(similarity)) if j not in chosen]
        before = value(similarity, chosen, objective)
        gains = [value(similarity, [*chosen, j], objective) - before for j in rest]
        chosen.append(rest[max(range(len(rest)), key=lambda k: (round(gains[k], 9), -k))])
    return chosen


def symmetric(num: int) -> Tensor:
    s = torch.rand(num, num, dtype=torch.float64)
    return (s + s.T) / 2


@pytest.mark.oracle("sas_subset", 1)
@pytest.mark.parametrize("objective", ["facility_location", "graph_cut", "row_sum"])
@pytest.mark.parametrize("seed", range(5))
def test_lazy_equals_exhaustive(objective: str, seed: int) -> None:
    torch.manual_seed(seed)
    similarity = symmetric(12)
    found = lazy_greedy(None, 12, similarity=similarity, objective=objective)
    assert found.index.tolist() == exhaustive(similarity, 12, objective)


@pytest.mark.parametrize("objective", SUBMODULAR)
def test_lazy_equals_exhaustive_among_ties(objective: str) -> None:
    similarity = torch.randint(0, 3, (14, 14)).double()
    similarity = torch.maximum(similarity, similarity.T)
    found = lazy_greedy(None, 14, similarity=similarity, objective=objective)
    assert found.index.tolist() == exhaustive(similarity, 14, objective)


@pytest.mark.oracle("sas_subset", 2)
@pytest.mark.parametrize("objective", ["facility_location", "graph_cut", "row_sum"])
def test_gains_add_up(objective: str) -> None:
    similarity = symmetric(15)
    found = lazy_greedy(None, 15, similarity=similarity, objective=objective)
    for n in range(1, 16):
        total = value(similarity, found.index[:n].tolist(), objective)
        assert float(found.gain[:n].sum()) == pytest.approx(total, abs=1e-9)
    if objective != "row_sum":
        assert bool((found.gain[1:] <= found.gain[:-1] + 1e-9).all())


@pytest.mark.oracle("sas_subset", 3)
def test_row_sum_is_a_sort() -> None:
    similarity = torch.randint(0, 3, (20, 20)).double()
    similarity = similarity + similarity.T
    found = lazy_greedy(None, 20, similarity=similarity, objective="row_sum")
    assert torch.equal(found.index, similarity.sum(1).argsort(descending=True, stable=True))


@pytest.mark.oracle("sas_subset", 4)
@pytest.mark.parametrize("objective", ["graph_cut", "row_sum", "facility_location"])
def test_shares_of_classes(objective: str) -> None:
    x, label = torch.randn(60, 5, dtype=torch.float64), torch.randint(0, 4, (60,))
    everything = class_subset(x, label, share=1.0, objective=objective)
    assert torch.equal(everything.index.sort().values, torch.arange(60))
    found = class_subset(x, label, share=0.3, objective=objective)
    counts = label.bincount()
    assert label[found.index].bincount(minlength=4).tolist() == [int(0.3 * int(n)) for n in counts]
    assert bool((label[found.index].diff() >= 0).all())
    order = torch.randperm(60)
    permuted = class_subset(x[order], label[order], share=0.3, objective=objective)
    assert torch.equal(order[permuted.index], found.index)


@pytest.mark.oracle("sas_subset", 5)
def test_two_tight_groups() -> None:
    large, small = 9, 5
    x = torch.cat([torch.tensor([[1.0, 0.0]]).expand(large, 2), torch.tensor([[0.0, 1.0]]).expand(small, 2)])
    groups = (lazy_greedy(x, 14, objective="graph_cut").index >= large).long().tolist()
    first_small = groups.index(1)
    # row t of the larger group gains large - 1 - 2 t, the first of the smaller one small - 1; equal gains: earlier row
    assert first_small == 3
    assert all(large - 2 * t >= small for t in range(first_small))
    assert large - 2 * first_small < small
    assert groups[first_small : first_small + 8] == [1, 0, 1, 0, 1, 0, 1, 0]
    assert lazy_greedy(x, 14, objective="row_sum").index.tolist() == list(range(14))


def test_facility_location_is_near_the_best() -> None:
    similarity = symmetric(10)
    found = lazy_greedy(None, 3, similarity=similarity)
    best = max(value(similarity, list(s), "facility_location") for s in combinations(range(10), 3))
    assert (1 - 1 / math.e) * best <= float(found.gain.sum()) <= best + 1e-9


@pytest.mark.parametrize("objective", ["facility_location", "graph_cut", "row_sum"])
@pytest.mark.parametrize("threshold", [0.0, 0.3])
def test_rows_stored_or_not_equal_their_matrix(
    objective: str, threshold: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(40, 6, dtype=torch.float64)
    cosine = F.normalize(x, dim=1) @ F.normalize(x, dim=1).T
    cosine = (cosine + cosine.T) / 2
    expected = lazy_greedy(None, 40, similarity=cosine, objective=objective, threshold=threshold)
    stored = lazy_greedy(x, 40, objective=objective, threshold=threshold)
    monkeypatch.setattr("nearfar.prototypes._gains.STORED", 0)
    made = lazy_greedy(x, 40, objective=objective, threshold=threshold)
    for found in (stored, made):
        torch.testing.assert_close(found.gain, expected.gain)
        assert torch.equal(found.index[:20], expected.index[:20])


def test_views_average_their_cosines() -> None:
    views = torch.randn(12, 3, 4, dtype=torch.float64)
    unit = F.normalize(views, dim=-1)
    mean = torch.einsum("ipd,jqd->ij", unit, unit) / 9
    assert torch.equal(
        lazy_greedy(views, 12, objective="graph_cut").index,
        lazy_greedy(None, 12, similarity=(mean + mean.T) / 2, objective="graph_cut").index,
    )


def test_it_is_lazy(monkeypatch: pytest.MonkeyPatch) -> None:
    from nearfar.prototypes._gains import Similarities

    asked = 0
    plain = Similarities.to

    def counting(self: Similarities, index: Tensor) -> Tensor:
        nonlocal asked
        asked += len(index)
        return plain(self, index)

    monkeypatch.setattr(Similarities, "to", counting)
    x = torch.randn(20, 8)[torch.randint(0, 20, (400,))] + 0.1 * torch.randn(400, 8)
    lazy_greedy(x, 40)
    assert asked - 400 < 0.2 * 40 * 400  # the first gains need all


def test_budgets_and_least_numbers() -> None:
    x, label = torch.randn(30, 4), torch.tensor([7] * 20 + [2] * 9 + [5])
    found = class_subset(x, label, budget={7: 3, 2: 9})
    assert label[found.index].tolist() == [2] * 9 + [7] * 3
    found = class_subset(x, label, share=0.1, min_per_class=2)
    assert label[found.index].tolist() == [2, 2, 5, 7, 7]
    assert len(class_subset(torch.randn(100, 2), torch.zeros(100).long(), share=0.29).index) == 29


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    x = torch.randn(20, 4).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        found = lazy_greedy(x, 8)
    assert torch.equal(found.index, lazy_greedy(x.float(), 8).index)


def test_complaints() -> None:
    x, s = torch.randn(6, 3), torch.rand(6, 6)
    with pytest.raises(ValueError, match="similarity: expected either rows x or similarity"):
        lazy_greedy(x, 2, similarity=s)
    with pytest.raises(ValueError, match="num: expected a number from 1 to 6, the rows there are, received 7"):
        lazy_greedy(x, 7)
    with pytest.raises(ValueError, match="objective: expected one of 'facility_location'"):
        lazy_greedy(x, 2, objective="cut")
    with pytest.raises(ValueError, match="threshold: expected 0 or more"):
        lazy_greedy(x, 2, threshold=-0.5)
    with pytest.raises(ValueError, match="similarity: expected a symmetric matrix"):
        lazy_greedy(None, 2, similarity=s, objective="graph_cut")
    with pytest.raises(ValueError, match=r"similarity: expected shape \[N, N\]"):
        lazy_greedy(None, 2, similarity=s[:3])
    with pytest.raises(ValueError, match="similarity: expected finite numbers"):
        lazy_greedy(None, 2, similarity=s * torch.nan)
    with pytest.raises(ValueError, match="x: expected rows that are not zero"):
        lazy_greedy(x * 0, 2)
    with pytest.raises(ValueError, match="x: expected finite features"):
        lazy_greedy(x / 0, 2)
    label = torch.tensor([0, 0, 0, 1, 1, 1])
    with pytest.raises(ValueError, match="share: expected either share or budget"):
        class_subset(x, label)
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match=r"share: expected a number in \(0, 1\]"):
            class_subset(x, label, share=share)
    with pytest.raises(ValueError, match="budget: expected classes that occur, received"):
        class_subset(x, label, budget={4: 1})
    with pytest.raises(ValueError, match="budget of class 1: expected a number from 0 to 3, received 4"):
        class_subset(x, label, budget={1: 4})
    with pytest.raises(ValueError, match="share: expected at least one row of some class"):
        class_subset(x, label, share=0.1)
    with pytest.raises(ValueError, match=r"label: expected shape \(6,\)"):
        class_subset(x, label[:5], share=0.5)
    with pytest.raises(ValueError, match="min_per_class: expected 0 beside budget"):
        class_subset(x, label, budget={1: 1}, min_per_class=1)
