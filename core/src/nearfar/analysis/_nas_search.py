"""Search among architectures by their embeddings: a Gaussian process, expected improvement, and a forest's guesses.

Legend: A architectures, M embeddings of each, E width. Loads no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nearfar.checks import expect, expect_positive

Array = NDArray[np.float64]


def expected_improvement(mean: Array, deviation: Array, best: float) -> Array:
    """E[max(f - best, 0)] of f ~ N(mean, deviation^2).

    EI = (mean - best) Phi(z) + deviation phi(z), z = (mean - best) / deviation

    Where the deviation is 0 it is max(mean - best, 0).
    """
    from scipy.stats import norm

    gain = mean - best
    z = gain / np.where(deviation > 0, deviation, 1.0)
    return np.where(deviation > 0, gain * norm.cdf(z) + deviation * norm.pdf(z), np.maximum(gain, 0.0))


@dataclass(frozen=True, kw_only=True)
class Search:
    """How the search goes.

    Args:
        budget: architectures that are evaluated in all.
        starts: of them at random, first.
        candidates: unseen ones that are drawn at random in each round; the best guess of them is evaluated.
        noise: variance of the targets, in units of their own variance.
        length: of the Matern-5/2 kernel, in units of the median distance of embeddings.
        offset: what is to be gained over the best so far, in standard deviations of the targets.
    """

    budget: int = 30
    starts: int = 5
    candidates: int = 20
    noise: float = 0.1
    length: float = 1.0
    offset: float = 0.1

    def __post_init__(self) -> None:
        expect(self.starts >= 2, "starts", "2 or more", self.starts)
        expect(self.budget >= self.starts, "budget", f"at least the {self.starts} starts", self.budget)
        expect(self.candidates >= 1, "candidates", "1 or more", self.candidates)
        expect_positive("noise", self.noise)
        expect_positive("length", self.length)


def search(embedding: Array, accuracy: Array, how: Search, seed: int = 0) -> NDArray[np.int64]:
    """Architectures in the order in which they are evaluated.

    Every round fits a Gaussian process to all embeddings of what is known, and evaluates the candidate of largest
    expected improvement, its predictions averaged over its embeddings (mean, and variance).

    Args:
        embedding: [A, M, E].
        accuracy: [A], looked up when an architecture is evaluated.
        how: budget and process.
        seed: of starts and candidates.

    Raises:
        ValueError: shapes that do not fit, a budget above A, embeddings that are all equal.
    """
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import Matern

    x = _scaled(embedding, accuracy)
    num, inits = x.shape[:2]
    expect(how.budget <= num, "budget", f"at most the {num} architectures", how.budget)
    rng = np.random.default_rng(seed)
    order = rng.permutation(num)
    known = order[: how.starts].tolist()
    while len(known) < how.budget:
        seen = accuracy[known]
        centre, spread = seen.mean(), seen.std()
        target = (seen - centre) / (spread if spread > 0 else 1.0)
        process = GaussianProcessRegressor(Matern(how.length, nu=2.5), alpha=how.noise, optimizer=None)  # type: ignore[arg-type]
        process.fit(x[known].reshape(-1, x.shape[2]), np.repeat(target, inits))
        rest = np.setdiff1d(np.arange(num), known)
        drawn = rng.choice(rest, min(how.candidates, len(rest)), replace=False)
        guesses: Any = process.predict(x[drawn].reshape(-1, x.shape[2]), return_std=True)
        mean, deviation = guesses[0].reshape(-1, inits).mean(1), guesses[1]
        variance = (deviation.reshape(-1, inits) ** 2).mean(1)
        gain = expected_improvement(mean, np.sqrt(variance), float(target.max()) + how.offset)
        known.append(int(drawn[gain.argmax()]))
    return np.array(known)


def random_search(num: int, budget: int, seed: int = 0) -> NDArray[np.int64]:
    """As many architectures in random order; the starts of `search` are its first."""
    expect(1 <= budget <= num, "budget", f"1 to the {num} architectures", budget)
    return np.random.default_rng(seed).permutation(num)[:budget]


def best_so_far(accuracy: Array, order: NDArray[np.int64]) -> Array:
    """The best accuracy after each evaluation."""
    return np.maximum.accumulate(accuracy[order])


def guess(embedding: Array, accuracy: Array, others: Array, *, seed: int = 0) -> Array:
    """Accuracies [B] that a random forest on embeddings [A, M, E] guesses for others [B, M, E], of another space too.

    Embeddings are averaged over initialisations.
    """
    from sklearn.ensemble import RandomForestRegressor

    _check(embedding, accuracy)
    forest = RandomForestRegressor(200, random_state=seed, min_samples_leaf=2)
    return forest.fit(embedding.mean(1), accuracy).predict(others.mean(1))


def rank_agreement(embedding: Array, accuracy: Array, *, folds: int = 5, seed: int = 0) -> float:
    """Kendall's tau of true accuracies and those that `guess` gives architectures left out, fold by fold."""
    from scipy.stats import kendalltau

    _check(embedding, accuracy)
    expect(2 <= folds <= len(accuracy) // 2, "folds", f"2 to {len(accuracy) // 2}, half the architectures", folds)
    order = np.random.default_rng(seed).permutation(len(accuracy))
    found = np.empty(len(accuracy))
    for part in np.array_split(order, folds):
        rest = np.setdiff1d(order, part)
        found[part] = guess(embedding[rest], accuracy[rest], embedding[part], seed=seed)
    result: Any = kendalltau(found, accuracy)
    tau = float(result.statistic)
    return 0.0 if np.isnan(tau) else tau


def _scaled(embedding: Array, accuracy: Array) -> Array:
    """Embeddings in units of the median distance between architectures."""
    from scipy.spatial.distance import pdist

    _check(embedding, accuracy)
    some = embedding.mean(1)[np.linspace(0, len(embedding) - 1, min(len(embedding), 1000)).astype(int)]
    unit = float(np.median(pdist(some)))
    expect_positive("embedding: median distance", unit)
    return embedding / unit


def _check(embedding: Array, accuracy: Array) -> None:
    expect(embedding.ndim == 3 and len(embedding) >= 2, "embedding", "shape [A, M, E], A >= 2", embedding.shape)
    expect(accuracy.shape == (len(embedding),), "accuracy", f"shape ({len(embedding)},)", accuracy.shape)
    expect(bool(np.isfinite(embedding).all() and np.isfinite(accuracy).all()), "embedding, accuracy",
           "finite numbers", "nan or inf")  # fmt: skip
