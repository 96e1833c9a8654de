from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from nearfar.evaluate import Score, bootstrap, mean_interval, wilson
from nearfar.evaluate.score import exact


def test_text() -> None:
    assert str(Score(0.963, 0.9411, 0.9777, 450)) == "0.963 [0.941, 0.978]"
    assert str(exact(1.25, 3)) == "1.250"


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (1, 1), (3, 10), (433, 450), (10, 10), (0, 7)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_wilson_equals_scipy(hits: int, n: int, confidence: float) -> None:
    score = wilson(hits, n, confidence)
    expected = stats.binomtest(hits, n).proportion_ci(confidence, method="wilson")
    assert score.value == hits / n
    assert score.n == n
    assert (score.low, score.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= score.low <= score.value <= score.high <= 1


def test_wilson_covers_the_truth_as_often_as_it_says() -> None:
    hits = np.random.default_rng(0).binomial(60, 0.9, 4000)
    inside = [score.low <= 0.9 <= score.high for score in (wilson(int(h), 60) for h in hits)]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.025)


def test_mean_interval_equals_scipy() -> None:
    values = [0.91, 0.95, 0.9, 0.97]
    score = mean_interval(values, 0.9)
    expected = stats.t.interval(0.9, 3, np.mean(values), stats.sem(values))
    assert (score.value, score.low, score.high) == pytest.approx((np.mean(values), *expected))
    assert score.n == 4
    assert mean_interval([0.9, 1.0], bounds=(0.0, 1.0)).high == 1.0


def test_bootstrap_is_seeded_and_near_the_normal_interval() -> None:
    values = torch.rand(400, generator=torch.Generator().manual_seed(1))
    score = bootstrap(values)
    assert score == bootstrap(values)
    assert score != bootstrap(values, seed=1)
    assert score.value == pytest.approx(float(values.double().mean()))
    half = 1.96 * float(values.std()) / math.sqrt(400)
    assert (score.low, score.high) == pytest.approx((score.value - half, score.value + half), abs=0.006)
    assert bootstrap(torch.ones(3)) == Score(1.0, 1.0, 1.0, 3)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"hits: expected a count in \[0, 3\], received 4"):
        wilson(4, 3)
    with pytest.raises(ValueError, match="n: expected 1 or more samples"):
        wilson(0, 0)
    with pytest.raises(ValueError, match="confidence"):
        wilson(1, 2, 1.0)
    with pytest.raises(ValueError, match="values: expected at least 2 draws"):
        mean_interval([1.0])
    with pytest.raises(ValueError, match="values: expected shape"):
        bootstrap(torch.ones(0))
    with pytest.raises(ValueError, match="draws"):
        bootstrap(torch.ones(2), draws=0)
