"""Samples drawn more or less often than once an epoch: by the size of their class, or by a weight of their own."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from nearfar.checks import expect, expect_choice
from nearfar.samplers._groups import Groups
from nearfar.samplers.base import Planned, Slices, check_batch, fingerprint, generator

Balance = Literal["instance", "sqrt", "class", "effective", "progressive"]


class Balanced(Planned):
    """Classes of unequal size drawn with chosen shares, for long-tailed data.

    With n_c samples in class c, its share is in proportion to

        instance     n_c                                    every sample once
        sqrt         n_c ** 0.5
        class        1                                      every class equally often
        effective    n_c (1 - beta) / (1 - beta ** n_c)     samples weighed by the effective number
        progressive  (1 - t) n_c / sum n + t / C            t = epoch / num_epochs, at most 1

    Args:
        labels: integers [N]; samples with a negative one are never drawn.
        batch_size: samples of a batch over all processes.
        balance: which share.
        beta: of the effective number, in [0, 1): 0 is instance, towards 1 it becomes class.
        num_epochs: of the run, for progressive.
        seed: 0 or more.

    Notes:
        An epoch has as many draws as there are samples, cut into whole batches. Numbers of draws a class are the
        expected ones rounded up or down at random; within a class every sample comes once before any comes again, so a
        sample of a small class may stand twice in one batch.

    Source: Kang et al., "Decoupling representation and classifier for long-tailed recognition", ICLR 2020; Cui et al.,
        "Class-balanced loss based on effective number of samples", CVPR 2019.
    """

    kept = ("batch_size", "balance", "beta", "num_epochs", "seed", "data")

    def __init__(
        self,
        labels: ArrayLike,
        batch_size: int,
        *,
        balance: Balance = "class",
        beta: float = 0.9999,
        num_epochs: int = 0,
        seed: int = 0,
    ) -> None:
        check_batch(batch_size, seed)
        expect_choice("balance", balance, get_args(Balance))
        expect(0 <= beta < 1, "beta", "a number in [0, 1)", beta)
        expect(num_epochs >= 1 or balance != "progressive", "num_epochs", "1 or more for 'progressive'", num_epochs)
        self.batch_size, self.balance, self.beta = batch_size, balance, beta
        self.num_epochs, self.seed = num_epochs, seed
        self._classes = Groups("labels", labels)
        self.data = fingerprint(self._classes.index)
        self.num_samples = len(self._classes.members)
        expect(batch_size <= self.num_samples, "batch_size", f"at most the {self.num_samples} labelled samples",
               batch_size)  # fmt: skip

    def shares(self, epoch: int) -> np.ndarray:
        """The share of every class that has samples, ascending by label, float64 [C]; not scaled to sum to one."""
        n = self._classes.counts.astype(np.float64)
        match self.balance:
            case "instance":
                return n
            case "sqrt":
                return np.sqrt(n)
            case "class":
                return np.ones_like(n)
            case "effective":
                return n * (1 - self.beta) / (1 - self.beta**n)
        t = min(epoch / self.num_epochs, 1.0)
        return (1 - t) * n + t * (self.num_samples / len(n))

    def num_batches(self, epoch: int) -> int:
        """Batches of an epoch."""
        return self.num_samples // self.batch_size

    def plan(self, epoch: int) -> Slices:
        """All batches of an epoch."""
        rng = generator(self.seed, epoch)
        ends = np.cumsum(self.shares(epoch))
        ends = np.floor(ends * (self.num_samples / ends[-1]) + rng.random()).astype(np.int64)
        ends[-1] = self.num_samples
        drawn = self._classes.draw(rng, np.diff(ends, prepend=0), 1).ravel()
        return Slices(rng.permutation(drawn), self.batch_size)


class Weighted(Planned):
    """Samples drawn by a weight of their own.

    Args:
        weights: finite numbers of 0 or more [N]; a sample with weight 0 is never drawn.
        batch_size: samples of a batch over all processes.
        replacement: every draw is independent; otherwise no sample comes twice in an epoch, each draw in proportion to
            the weights of those that are left.
        num_draws: of an epoch, cut into whole batches; 0: one a sample (of positive weight, without replacement).
        seed: 0 or more.

    Raises:
        ValueError: weights that are negative, not finite or all 0; without replacement more draws than samples of
            positive weight.

    Source: Efraimidis, Spirakis, "Weighted random sampling with a reservoir", IPL 2006, for draws without replacement.
    """

    kept = ("batch_size", "replacement", "num_draws", "seed", "data")

    def __init__(
        self, weights: ArrayLike, batch_size: int, *, replacement: bool = True, num_draws: int = 0, seed: int = 0
    ) -> None:
        check_batch(batch_size, seed)
        array = np.asarray(weights, dtype=np.float64)
        expect(array.ndim == 1 and len(array) > 0, "weights", "1 dimension(s), not empty", f"shape {array.shape}")
        good = np.isfinite(array) & (array >= 0)
        expect(bool(good.all()), "weights", "finite numbers of 0 or more", array[~good][:3])
        positive = np.flatnonzero(array)
        expect(len(positive) > 0, "weights", "at least one above 0", "none")
        expect(num_draws >= 0, "num_draws", "0 or more", num_draws)
        most = len(array) if replacement else len(positive)
        expect(replacement or num_draws <= most, "num_draws", f"at most the {most} samples of positive weight "
               "without replacement", num_draws)  # fmt: skip
        self.batch_size, self.replacement, self.seed = batch_size, replacement, seed
        self.num_draws, self.data = num_draws or most, fingerprint(array)
        expect(
            batch_size <= self.num_draws, "batch_size", f"at most the {self.num_draws} draws of an epoch", batch_size
        )
        self._positive, self._weights = positive, array[positive]

    def num_batches(self, epoch: int) -> int:
        """Batches of an epoch."""
        return self.num_draws // self.batch_size

    def plan(self, epoch: int) -> Slices:
        """All batches of an epoch."""
        rng = generator(self.seed, epoch)
        if self.replacement:
            ends = np.cumsum(self._weights)
            # Rounding may put a draw on the very end, which belongs to the last sample.
            places = np.searchsorted(ends, rng.random(self.num_draws) * ends[-1], side="right")
            places = np.minimum(places, len(ends) - 1)
        else:
            # The first of exponential clocks with these rates rings for i with probability w_i / sum w.
            places = np.argsort(rng.standard_exponential(len(self._weights)) / self._weights)[: self.num_draws]
        return Slices(self._positive[places], self.batch_size)
