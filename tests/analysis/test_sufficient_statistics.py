"""Sufficiency: three forms on tables, Gaussians in closed form, critics on samples, all against what is known."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from nearfar.analysis.sufficient_statistics import (
    augmentation_error,
    downstream_bound,
    estimate_sufficiency,
    gaussian_sufficiency,
    info_nce_information,
    information,
    prediction_gap,
    risk,
    sufficiency,
)
from nearfar.objectives import gaussian_information, mutual_information

F64 = torch.float64
DIVERGENCES = ("kl", "chi_square", "jensen_shannon", "hellinger")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def table(n1: int = 6, n2: int = 4, seed: int = 0, zeros: bool = False) -> Tensor:
    t = torch.rand(n1, n2, generator=generator(seed), dtype=F64) ** 3
    if zeros:
        t[0, 1] = t[3, :2] = 0
        t[-1] = 0
    return t / t.sum()


def terms(t: Tensor, divergence: str) -> float:
    """f-information by loops and textbook formulas of the joint law P and the product Q."""
    p, q, total = t.sum(1), t.sum(0), 0.0
    for i, j in itertools.product(range(len(p)), range(len(q))):
        a, b = float(t[i, j]), float(p[i] * q[j])
        if divergence == "kl":
            total += a * math.log(a / b) if a > 0 else 0.0
        elif divergence == "chi_square":
            total += (a - b) ** 2 / b / 2 if b > 0 else 0.0
        elif divergence == "hellinger":
            total += (math.sqrt(a) - math.sqrt(b)) ** 2
        else:  # both Kullback-Leibler divergences from the middle
            total += sum(x * math.log(2 * x / (a + b)) for x in (a, b) if x > 0)
    return total


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("zeros", [False, True])
def test_information(divergence: str, zeros: bool) -> None:
    t = table(zeros=zeros)
    assert information(t, divergence=divergence) == pytest.approx(terms(t, divergence), abs=1e-12)
    alone = t.sum(1, keepdim=True) * t.sum(0)
    assert information(alone, divergence=divergence) == pytest.approx(0, abs=1e-12)


@pytest.mark.oracle("sufficient_statistics", 1)
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("zeros", [False, True])
def test_three_forms_and_coarser_codes(divergence: str, zeros: bool) -> None:
    for seed in range(20):
        t = table(seed=seed, zeros=zeros)
        fine = torch.randint(4, (6,), generator=generator(seed))
        coarse = torch.tensor([0, 0, 1, 1])[fine]
        gaps = []
        for ids in (torch.tensor([5, 3, 0, 1, 4, 2]), fine, coarse, torch.zeros(6, dtype=torch.long)):
            found = sufficiency(t, ids, divergence=divergence)
            assert found.bregman == pytest.approx(found.gap, abs=1e-10)
            assert found.variational == pytest.approx(found.gap, abs=1e-10)
            assert found.gap == pytest.approx(found.information - found.kept)
            gaps.append(found.gap)
        assert gaps[0] == pytest.approx(0, abs=1e-12)
        assert gaps[3] == pytest.approx(terms(t, divergence), abs=1e-12)
        assert all(a <= b + 1e-12 for a, b in itertools.pairwise(gaps))


def test_a_gap_by_hand() -> None:
    """Two rows of two that are each other's mirror; their merged row tells nothing of the column."""
    t = torch.tensor([[0.4, 0.1], [0.1, 0.4]], dtype=F64)
    found = sufficiency(t, torch.tensor([0, 0]))
    assert found.gap == pytest.approx(math.log(2) + 0.8 * math.log(0.8) + 0.2 * math.log(0.2))
    assert sufficiency(t, torch.tensor([0, 0]), divergence="chi_square").gap == pytest.approx(0.18)  # (1.6 - 1)^2 / 2


def test_the_kl_gap_is_a_mean_of_divergences_between_conditional_laws() -> None:
    t, ids = table(), torch.tensor([0, 0, 1, 1, 1, 2])
    merged = torch.stack([t[ids == c].sum(0) for c in range(3)])
    own, code = t / t.sum(1, keepdim=True), merged / merged.sum(1, keepdim=True)
    expected = float((t.sum(1) * (own * (own / code[ids]).log()).sum(1)).sum())
    assert sufficiency(t, ids).gap == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_no_scores_have_a_lower_risk(divergence: str) -> None:
    t, ids = table(4, 3), torch.tensor([0, 1, 1, 0])
    found = sufficiency(t, ids, divergence=divergence)
    # Free scores, and those of the code, by descent on the risk written with the objectives' own parametrisation.
    bound = {"kl": "nwj"}.get(divergence, divergence)
    for rows, least in ((torch.arange(4), -found.information), (ids, -found.kept)):
        free = torch.zeros(int(rows.max()) + 1, 3, dtype=F64, requires_grad=True)
        optimiser = torch.optim.LBFGS([free], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

        def loss(free: Tensor = free, rows: Tensor = rows) -> Tensor:
            raw, apart = free[rows], t.sum(1, keepdim=True) * t.sum(0)
            if bound == "nwj":
                return (apart * torch.exp(raw - 1)).sum() - (t * raw).sum()
            if bound == "chi_square":
                return (apart * (raw + raw.square() / 2)).sum() - (t * raw).sum()
            if bound == "hellinger":
                return (apart * torch.expm1(raw)).sum() + (t * torch.expm1(-raw)).sum()
            plus = torch.nn.functional.softplus
            return (apart * plus(raw)).sum() + (t * plus(-raw)).sum() - math.log(4)

        def step(optimiser: torch.optim.LBFGS = optimiser, loss: Any = loss) -> Tensor:
            optimiser.zero_grad()
            value = loss()
            value.backward()
            return value

        optimiser.step(step)
        assert float(loss().detach()) == pytest.approx(least, abs=1e-8)
        # The same scores, put as S of R_phi, have that risk; others have a higher one.
        best = free.detach()[rows]
        link = {
            "hellinger": lambda s: 1 - torch.exp(-s),
            "jensen_shannon": lambda s: math.log(2) + torch.nn.functional.logsigmoid(s),
        }.get(divergence, lambda s: s)
        assert risk(t, link(best), divergence=divergence) == pytest.approx(least, abs=1e-8)
        for seed in range(5):
            other = (free.detach() + 0.3 * torch.randn(free.shape, generator=generator(seed), dtype=F64))[rows]
            assert risk(t, link(other), divergence=divergence) > least


def test_scores_outside_the_conjugates_domain_cost_without_end() -> None:
    assert risk(table(), torch.ones(6, 4, dtype=F64), divergence="jensen_shannon") == math.inf
    assert risk(table(), torch.ones(6, 4, dtype=F64), divergence="hellinger") == math.inf


@pytest.mark.parametrize("bound", ["nwj", "chi_square", "jensen_shannon", "hellinger"])
def test_the_divergences_are_those_of_the_objective(bound: str) -> None:
    """Vectors whose products are the best scores, over a batch with each pair as often as a table says."""
    t = torch.tensor([[0.5, 0.0], [0.125, 0.375]], dtype=F64)
    r = t / (t.sum(1, keepdim=True) * t.sum(0)) + 1e-6
    scores = {"nwj": 1 + r.log(), "chi_square": r, "jensen_shannon": r.log(), "hellinger": r.log() / 2}[bound]
    rows, columns = (t * 1600).long().nonzero(as_tuple=True)
    count = (t * 1600).long()[rows, columns]
    x, y = rows.repeat_interleave(count), columns.repeat_interleave(count)
    eye = torch.eye(2, dtype=F64)
    found = -float(mutual_information(scores[x], eye[y], bound=bound)) + (math.log(4) if "jensen" in bound else 0)
    divergence = {"nwj": "kl"}.get(bound, bound)
    assert found == pytest.approx(information(t, divergence=divergence), abs=3e-3)  # pairs i = j are left out


@pytest.mark.oracle("sufficient_statistics", 2)
def test_gaussians_in_closed_form() -> None:
    lam, sigma = torch.tensor([3.0, 1.0, 0.5, 0.2, 0.0], dtype=F64), 0.7
    rho = lam / (lam + sigma**2)
    logs = -0.5 * torch.log(1 - rho**2)
    for p in range(1, 6):
        found = gaussian_sufficiency(lam, sigma, torch.eye(5, dtype=F64)[:p])
        assert found.information == pytest.approx(float(logs.sum()), abs=1e-12)
        assert found.gap == pytest.approx(float(logs[p:].sum()), abs=1e-12)
        assert found.conditional == pytest.approx(found.gap, abs=1e-12)


def test_gaussians_by_determinants_of_the_joint_covariance() -> None:
    lam, sigma = torch.tensor([3.0, 1.0, 0.5, 0.2], dtype=F64), 0.7
    w = torch.randn(2, 4, generator=generator(0), dtype=F64)
    own, cross = torch.diag(lam + sigma**2), torch.diag(lam)
    joint = torch.cat([torch.cat([w @ own @ w.t(), w @ cross], 1), torch.cat([cross @ w.t(), own], 1)])
    kept = (torch.logdet(w @ own @ w.t()) + torch.logdet(own) - torch.logdet(joint)) / 2
    found = gaussian_sufficiency(lam, sigma, w)
    assert found.kept == pytest.approx(float(kept), abs=1e-12)
    assert found.conditional == pytest.approx(found.gap, abs=1e-12)
    # what a code is made of counts, not its basis, nor rows that say the same again
    again = torch.tensor([[2.0, 1.0], [0.0, 0.5], [1.0, 1.0]], dtype=F64) @ w
    assert gaussian_sufficiency(lam, sigma, again).kept == pytest.approx(found.kept, abs=1e-10)


def test_gaussians_by_samples() -> None:
    lam, sigma, w = torch.tensor([2.0, 1.0, 0.3], dtype=F64), 0.8, torch.tensor([[1.0, -1.0, 0.5]], dtype=F64)
    x = torch.randn(100_000, 3, generator=generator(0), dtype=F64) * lam.sqrt()
    z1, z2 = (x + sigma * torch.randn(100_000, 3, generator=generator(s), dtype=F64) for s in (1, 2))
    found = gaussian_sufficiency(lam, sigma, w)
    assert float(gaussian_information(z1, z2)) == pytest.approx(found.information, abs=0.01)
    assert float(gaussian_information(z1 @ w.t(), z2)) == pytest.approx(found.kept, abs=0.01)
    v = torch.tensor([1.0, 0.5, -2.0], dtype=F64)
    best = (z1 * (lam / (lam + sigma**2))) @ v
    assert float((x @ v - best).square().mean()) == pytest.approx(augmentation_error(lam, sigma, v), rel=0.02)


@pytest.mark.oracle("sufficient_statistics", 3)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_rows_of_equal_conditional_law_may_be_merged(divergence: str) -> None:
    t = table(4, 5)
    shares = torch.tensor([0.2, 0.5, 0.3], dtype=F64)
    t = torch.cat([t[:1], t[1] * shares[:, None], t[2:]])  # rows 1, 2, 3 have one law of the column
    merged = sufficiency(t, torch.tensor([0, 1, 1, 1, 2, 3]), divergence=divergence)
    for gap in (merged.gap, merged.bregman, merged.variational):
        assert gap == pytest.approx(0, abs=1e-12)
    assert sufficiency(t, torch.tensor([0, 0, 1, 1, 2, 3]), divergence=divergence).gap > 1e-3


@pytest.mark.oracle("sufficient_statistics", 4)
def test_info_nce_by_enumeration() -> None:
    t = table(3, 4, seed=2)
    whole = information(t)
    values = [info_nce_information(t, num_candidates=k) for k in range(1, 8)]
    assert values[0].value == 0
    assert all(a.value < b.value for a, b in itertools.pairwise(values))
    for k, found in enumerate(values, 1):
        assert found.exact
        assert found.ceiling == min(whole, math.log(k))
        assert found.value <= found.ceiling + 1e-12
        assert found.saturated == (whole > math.log(k))
    scores = torch.log(t / (t.sum(1, keepdim=True) * t.sum(0)))
    shift = torch.randn(3, 1, generator=generator(0), dtype=F64)
    for k in (2, 4):
        for s in (scores, scores + 10 * shift):
            assert info_nce_information(t, s, num_candidates=k).value == pytest.approx(values[k - 1].value, abs=1e-12)
        worse = scores + 0.5 * torch.randn(3, 4, generator=generator(1), dtype=F64)
        assert info_nce_information(t, worse, num_candidates=k).value < values[k - 1].value


def test_info_nce_is_that_of_loops() -> None:
    t = table(3, 3)
    s = torch.randn(3, 3, generator=generator(0), dtype=F64)
    q, expected = t.sum(0), 0.0
    for i, j, a, b in itertools.product(range(3), repeat=4):
        mean = sum(math.exp(float(s[i, c])) for c in (j, a, b)) / 3
        expected += float(t[i, j] * q[a] * q[b]) * (float(s[i, j]) - math.log(mean))
    assert info_nce_information(t, s, num_candidates=3).value == pytest.approx(expected, abs=1e-12)


def test_info_nce_by_draws() -> None:
    t = table(3, 4, seed=2, zeros=False)
    t[0, 0] = 0  # a pair that never meets has the score minus infinity
    t = t / t.sum()
    exact = info_nce_information(t, num_candidates=5)
    drawn = info_nce_information(t, num_candidates=5, limit=0, draws=20_000)
    assert not drawn.exact
    assert 0 < drawn.error < 0.01
    assert abs(drawn.value - exact.value) < 5 * drawn.error
    far = info_nce_information(t, num_candidates=512, draws=2_000)
    assert far.value == pytest.approx(information(t), abs=0.01)


def test_info_nce_saturates() -> None:
    t = torch.eye(8, dtype=F64) / 8  # log 8 nats
    found = info_nce_information(t, num_candidates=3)
    assert found.saturated
    assert found.value < math.log(3) < information(t)


@pytest.mark.oracle("sufficient_statistics", 5)
def test_pinskers_bound_on_predictions() -> None:
    tightest = 0.0
    for seed in range(1000):
        g = generator(seed)
        t = torch.rand(5, 4, generator=g, dtype=F64) ** (1 + seed % 6)
        t = t / t.sum()
        ids = torch.randint(3, (5,), generator=g)
        m = (2 * torch.rand(4, generator=g, dtype=F64) - 1) * (1 + seed % 3)
        gap, bound = prediction_gap(t, ids, m), 2 * float(m.abs().max()) ** 2 * sufficiency(t, ids).gap
        assert 0 <= gap <= bound + 1e-12
        tightest = max(tightest, gap / bound if bound > 1e-12 else 0.0)
    assert tightest > 0.3  # and is not empty


def test_a_prediction_gap_by_hand() -> None:
    t = torch.tensor([[0.4, 0.1], [0.1, 0.4]], dtype=F64)
    m = torch.tensor([1.0, -1.0], dtype=F64)
    assert prediction_gap(t, torch.tensor([0, 0]), m) == pytest.approx(0.36)  # means 0.6 and -0.6, of the code 0
    assert prediction_gap(t, torch.tensor([0, 1]), m) == 0


def test_log_loss_of_a_label_of_the_second_view_grows_by_the_gap_at_most() -> None:
    for seed in range(50):
        t = table(6, 4, seed=seed)
        ids = torch.randint(3, (6,), generator=generator(seed))
        label = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], dtype=F64)
        excess = information(t @ label) - sufficiency(t @ label, ids).kept
        assert -1e-12 <= excess <= sufficiency(t, ids).gap + 1e-12


def test_the_downstream_bound() -> None:
    """A hidden x, two views of it by one kernel, and a target of x."""
    for seed in range(50):
        g = generator(seed)
        prior = torch.rand(5, generator=g, dtype=F64)
        prior = prior / prior.sum()
        kernel = torch.rand(5, 6, generator=g, dtype=F64) ** 4
        kernel = kernel / kernel.sum(1, keepdim=True)
        h = 2 * torch.rand(5, generator=g, dtype=F64) - 1
        t = kernel.t() @ (prior[:, None] * kernel)
        ids = torch.randint(3, (6,), generator=g)
        view = (prior[:, None] * kernel).sum(0)
        m = (prior * h) @ kernel / view  # E[h | z]
        augmentation = float((prior[:, None] * kernel * (h[:, None] - m).square()).sum())
        merged = torch.zeros(3, 6, dtype=F64).index_add_(0, ids, t)
        predicted = (merged @ m / merged.sum(1).clamp_min(1e-300))[ids]
        error = float((prior[:, None] * kernel * (h[:, None] - predicted).square()).sum())
        size = float(m.abs().max())
        assert error <= downstream_bound(max(0.0, sufficiency(t, ids).gap), augmentation, size) + 1e-12
    assert downstream_bound(0.5, 0.1, 2.0) == pytest.approx(0.3 + 8.0)


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: information(table() * 2), "table: expected numbers that sum to 1"),
        (lambda: information(-table()), "table: expected finite numbers of 0 or more"),
        (lambda: information(table(), divergence="renyi"), "divergence: expected one of"),
        (lambda: sufficiency(table(), torch.zeros(5, dtype=torch.long)), r"ids: expected shape \(6,\)"),
        (lambda: risk(table(), table().t()), r"scores: expected the shape of table, \(6, 4\)"),
        (lambda: info_nce_information(table(), num_candidates=0), "num_candidates: expected 1 or more"),
        (lambda: info_nce_information(table(), num_candidates=2, draws=1), "draws: expected 2 or more"),
        (lambda: info_nce_information(table(), table().t(), num_candidates=2), "scores: expected the shape of table"),
        (lambda: prediction_gap(table(), torch.arange(6), torch.ones(6)), r"target: expected shape \(4,\)"),
        (lambda: downstream_bound(-1.0), "sufficiency_kl: expected 0 or more"),
        (lambda: downstream_bound(1.0, size=0.0), "size: expected a finite number > 0"),
        (lambda: gaussian_sufficiency(torch.ones(2, 2), 1.0, torch.eye(2)), r"variance: expected shape \[d\]"),
        (lambda: gaussian_sufficiency(-torch.ones(2), 1.0, torch.eye(2)), "variance: expected finite numbers"),
        (lambda: gaussian_sufficiency(torch.ones(2), 0.0, torch.eye(2)), "noise: expected a finite number > 0"),
        (lambda: gaussian_sufficiency(torch.ones(2), 1.0, torch.eye(3)), r"encoder: expected shape \[p, 2\]"),
        (lambda: gaussian_sufficiency(torch.ones(2), 1.0, 0 * torch.eye(2)), "encoder: expected a row that is not"),
        (lambda: augmentation_error(torch.ones(2), 1.0, torch.ones(3)), r"target: expected shape \(2,\)"),
        (lambda: estimate_sufficiency(*[torch.ones(9, 1)] * 3), "first: expected 50 or more samples"),
        (lambda: estimate_sufficiency(torch.ones(60, 1), torch.ones(50, 1), torch.ones(60, 1)), "second: expected 60"),
        (lambda: estimate_sufficiency(*[torch.ones(60, 1)] * 3, critic="mine"), "critic: expected one of"),
        (lambda: estimate_sufficiency(*[torch.ones(60, 1)] * 3, steps=0), "steps: expected 1 or more"),
    ],
)  # fmt: skip
def test_refuses(call: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()


def test_refuses_codes_that_are_no_integers() -> None:
    with pytest.raises(TypeError, match="ids: expected integer codes"):
        sufficiency(table(), torch.zeros(6))
