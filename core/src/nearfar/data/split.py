"""Holding out samples for validation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from nearfar.checks import expect
from nearfar.data.source import Data, Source, Subset


def holdout(source: Source, share: float, seed: int = 0) -> Data:
    """Holds ceil(share * N) samples out, each class in proportion where there are labels.

    A pure function of (labels, N, share, seed). Both parts keep the order of the source and each sample its index.

    Args:
        source: the whole.
        share: of the samples, in [0, 1); 0 leaves an empty validation part.
        seed: of the permutation.

    Raises:
        ValueError: fewer than two samples, or fewer than two left to learn from.
    """
    total = len(source)
    expect(0 <= share < 1, "data.validation", "a share in [0, 1)", share)
    expect(total >= 2, source.name, "at least 2 samples, since a lone one has nothing to be compared with", total)
    num_test = math.ceil(round(share * total, 9))
    expect(total - num_test >= 2, "data.validation", f"a share that leaves 2 of {total} samples to learn from", share)
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, total])))
    order = rng.permutation(total)
    if source.labels is not None:
        order = _quota(order, np.asarray(source.labels), num_test, rng)
    held = np.zeros(total, dtype=bool)
    held[order[:num_test]] = True
    train, test = np.flatnonzero(~held), np.flatnonzero(held)
    return Data(Subset(source, train), Subset(source, test, f"{source.name} (held out)"), holdout=True)


def without_test(source: Source) -> Data:
    """All samples to learn from and none to be judged on."""
    return Data(source, Subset(source, np.zeros(0, dtype=np.int64)), holdout=True)


def long_tail(source: Source, imbalance: float, *, order: Sequence[int] = (), seed: int = 0) -> Subset:
    """Fewer samples a class, exponentially from the first to the last: n_c = m imbalance^(-r_c / (C - 1)).

    Args:
        source: with labels.
        imbalance: samples of the first class over those of the last, 1 or more.
        order: classes from the most to the fewest samples, r_c their place; empty: as they are numbered.
        seed: of which samples stay.

    Returns:
        A part in the order of the source; m is the size of its smallest class, and every class keeps one at least.

    Raises:
        ValueError: no labels, a class without samples, an order that is none of the classes.
    """
    expect(source.labels is not None, source.name, "labels", "none")
    expect(imbalance >= 1, "imbalance", "1 or more", imbalance)
    labels, num = np.asarray(source.labels), source.num_classes
    ranks = list(order) or list(range(num))
    expect(sorted(ranks) == list(range(num)), "order", f"the classes 0 to {num - 1}, each once", ranks)
    counts = np.bincount(labels, minlength=num)
    expect(int(counts.min()) >= 1, source.name, "a sample of every class", counts.tolist())
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, len(source)])))
    kept = []
    for place, c in enumerate(ranks):
        wanted = counts.min() * imbalance ** (-place / max(num - 1, 1))
        kept.append(rng.permutation(np.flatnonzero(labels == c))[: max(1, round(wanted))])
    return Subset(source, np.sort(np.concatenate(kept)), f"{source.name} (long tail)")


def _quota(order: np.ndarray, labels: np.ndarray, num_test: int, rng: np.random.Generator) -> np.ndarray:
    """Reorders so that the first `num_test` hold each class in proportion, to less than one sample.

    What rounding down leaves goes to the largest remainders, at last to classes that would have none to learn from.
    """
    counts = np.bincount(labels)
    quota, remainder = np.divmod(counts * num_test, len(labels))
    emptied = quota + 1 >= counts
    by_remainder = np.lexsort((rng.random(len(counts)), -remainder, emptied))
    quota[by_remainder[: num_test - quota.sum()]] += 1
    by_class = order[np.argsort(labels[order], kind="stable")]
    rank_in_class = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    late = rank_in_class >= np.repeat(quota, counts)
    return by_class[np.argsort(late, kind="stable")]
