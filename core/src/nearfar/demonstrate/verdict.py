"""Whether a demonstration showed what its card claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Literal

from nearfar.catalog import Claim
from nearfar.checks import expect
from nearfar.evaluate.score import mean_interval

CONFIDENCE = 0.9  # two-sided, so that one side errs in one of twenty


@dataclass(frozen=True)
class Verdict:
    """What paired seeds say of a claim.

    Args:
        verdict: shown, not shown, or reversed.
        leads: of the claim's first arm over its last, by seed, positive in the claimed direction.
        mean, low, high: of the leads, with their 90 % interval by Student's t.
        ordered: whether the means of all the claim's arms stand in its order.
    """

    verdict: Literal["shown", "not shown", "reversed"]
    leads: tuple[float, ...]
    mean: float
    low: float
    high: float
    ordered: bool


def judge(claim: Claim, values: Mapping[str, Sequence[float]]) -> Verdict:
    """The verdict on a claim.

    Shown: the mean lead reaches the margin, its interval lies above zero, and the means stand in the claimed order.
    Reversed: the interval lies below zero. Everything else is not shown.

    Args:
        claim: as the card has it.
        values: of the claim's metric by arm, one a seed, the same seeds in the same order.

    Raises:
        ValueError: an arm is missing, or fewer than two seeds.
    """
    missing = [arm for arm in claim.order if arm not in values]
    expect(not missing, "values", f"the arms of the claim, {', '.join(claim.order)}", f"none of {', '.join(missing)}")
    counts = {len(values[arm]) for arm in claim.order}
    expect(len(counts) == 1 and min(counts) >= 2, "values", "as many seeds in every arm, 2 or more", sorted(counts))
    sign = 1.0 if claim.direction == "higher" else -1.0
    first, last = values[claim.order[0]], values[claim.order[-1]]
    leads = tuple(sign * (a - b) for a, b in zip(first, last, strict=True))
    score = mean_interval(leads, confidence=CONFIDENCE)
    means = [sign * fmean(values[arm]) for arm in claim.order]
    ordered = all(a >= b for a, b in pairwise(means))
    if score.high < 0:
        verdict: Literal["shown", "not shown", "reversed"] = "reversed"
    elif ordered and score.low > 0 and score.value >= claim.margin:
        verdict = "shown"
    else:
        verdict = "not shown"
    return Verdict(verdict, leads, score.value, score.low, score.high, ordered)
