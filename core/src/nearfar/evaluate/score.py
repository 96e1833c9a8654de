"""A number with its interval, and three ways to such an interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

import torch
from scipy.special import stdtrit
from torch import Tensor

from nearfar.checks import expect


@dataclass(frozen=True)
class Score:
    """An estimate and its confidence interval.

    `n` counts what it was estimated from: test samples, queries, or draws. A value that estimates nothing beyond the
    sample at hand (geometry) has low = value = high, and shows without an interval.
    """

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        if self.low == self.value == self.high:
            return f"{self.value:.3f}"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def exact(value: float, n: int) -> Score:
    """A value that describes the sample itself."""
    return Score(value, value, value, n)


def wilson(hits: int, n: int, confidence: float = 0.95) -> Score:
    """A proportion hits/n with Wilson's interval, which holds for few samples and for shares near 0 and 1.

    (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), z the normal quantile. Wilson, JASA 22, 1927.

    Raises:
        ValueError: n below 1, hits outside [0, n], confidence outside (0, 1).
    """
    _expect_confidence(confidence)
    expect(n >= 1, "n", "1 or more samples", n)
    expect(0 <= hits <= n, "hits", f"a count in [0, {n}]", hits)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    p = hits / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # at the ends the bound is exactly 0 or 1, which rounding must not cross
    return Score(p, 0.0 if hits == 0 else centre - half, 1.0 if hits == n else centre + half, n)


def mean_interval(
    values: Sequence[float], confidence: float = 0.95, bounds: tuple[float, float] = (-math.inf, math.inf)
) -> Score:
    """The mean over repeated draws with Student's interval, mean +- t s / sqrt(n), cut at `bounds`.

    Raises:
        ValueError: fewer than two values, confidence outside (0, 1).
    """
    _expect_confidence(confidence)
    expect(len(values) >= 2, "values", "at least 2 draws for an interval", len(values))
    mean = fmean(values)
    half = float(stdtrit(len(values) - 1, (1 + confidence) / 2)) * stdev(values) / math.sqrt(len(values))
    return Score(mean, max(bounds[0], mean - half), min(bounds[1], mean + half), len(values))


def bootstrap(values: Tensor, confidence: float = 0.95, *, draws: int = 1000, seed: int = 0) -> Score:
    """The mean of per-sample values [N] with the percentile interval of its bootstrap.

    Args:
        values: one number a sample.
        draws: resamples of N values with replacement.
        seed: of the resamples; the same seed gives the same interval.

    Raises:
        ValueError: no values, fewer than one draw, confidence outside (0, 1).

    Notes:
        Resamples are drawn in parts of about four million, so memory does not grow with N * draws.
    """
    _expect_confidence(confidence)
    expect(values.ndim == 1 and len(values) >= 1, "values", "shape [N], N >= 1", tuple(values.shape))
    expect(draws >= 1, "draws", "1 or more", draws)
    values = values.detach().double().cpu()
    generator = torch.Generator().manual_seed(seed)
    part = max(1, 2**22 // len(values))
    means = []
    for start in range(0, draws, part):
        rows = torch.randint(len(values), (min(part, draws - start), len(values)), generator=generator)
        means.append(values[rows].mean(1))
    tail = (1 - confidence) / 2
    low, high = torch.cat(means).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Score(float(values.mean()), low, high, len(values))


def _expect_confidence(confidence: float) -> None:
    expect(0 < confidence < 1, "confidence", "a number in (0, 1)", confidence)
