from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from nearfar.catalog import Claim
from nearfar.demonstrate.verdict import judge

CLAIM = Claim(metric="m", order=("a", "b", "c"), margin=0.1)


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ({"a": [0.9, 0.91, 0.92], "b": [0.8, 0.8, 0.8], "c": [0.7, 0.72, 0.71]}, "shown"),
        ({"a": [0.9, 0.91, 0.92], "b": [0.6, 0.6, 0.6], "c": [0.7, 0.72, 0.71]}, "not shown"),  # b below c
        ({"a": [0.75, 0.76, 0.77], "b": [0.73, 0.73, 0.73], "c": [0.7, 0.72, 0.71]}, "not shown"),  # below the margin
        ({"a": [0.9, 0.2, 0.92], "b": [0.5, 0.5, 0.5], "c": [0.4, 0.4, 0.4]}, "not shown"),  # seeds disagree
        ({"a": [0.5, 0.51, 0.52], "b": [0.6, 0.6, 0.6], "c": [0.7, 0.72, 0.71]}, "reversed"),
        ({"a": [0.5, 0.5, 0.5], "b": [0.5, 0.5, 0.5], "c": [0.5, 0.5, 0.5]}, "not shown"),
    ],
)
def test_verdicts(values, verdict):
    assert judge(CLAIM, values).verdict == verdict


def test_lower_is_better_mirrors_higher():
    values = {"a": [0.1, 0.12, 0.11], "b": [0.4, 0.41, 0.42]}
    lower = judge(Claim(metric="m", order=("a", "b"), direction="lower"), values)
    higher = judge(Claim(metric="m", order=("a", "b")), {arm: [-v for v in found] for arm, found in values.items()})
    assert lower == higher
    assert lower.verdict == "shown"


def test_the_interval_is_that_of_a_paired_t_test():
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 0.2, 5), rng.normal(0.8, 0.2, 5)
    found = judge(Claim(metric="m", order=("a", "b")), {"a": a.tolist(), "b": b.tolist()})
    expected = stats.ttest_rel(a, b).confidence_interval(0.9)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.leads == pytest.approx(tuple(a - b))


def test_complaints():
    with pytest.raises(ValueError, match="values: expected the arms of the claim, a, b, c, received none of c"):
        judge(CLAIM, {"a": [1, 2], "b": [1, 2]})
    with pytest.raises(ValueError, match="as many seeds in every arm, 2 or more"):
        judge(CLAIM, {"a": [1, 2], "b": [1, 2], "c": [1]})
