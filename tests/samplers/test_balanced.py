"""Draws by class size and by weight."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from nearfar.samplers import Balanced, Weighted

SIZES = np.array([1000, 200, 40, 8, 2])
LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 5, 9], SIZES))


def drawn(sampler: Balanced | Weighted, epoch: int = 0) -> np.ndarray:
    return np.concatenate(list(sampler.batches(epoch)))


@pytest.mark.parametrize(
    ("balance", "weights"),
    [
        ("instance", SIZES),
        ("sqrt", SIZES**0.5),
        ("class", np.ones(5)),
        ("effective", SIZES * (1 - 0.99) / (1 - 0.99**SIZES)),
    ],
)
def test_classes_get_their_share(balance: str, weights: np.ndarray) -> None:
    sampler = Balanced(LABELS, 25, balance=balance, beta=0.99)  # type: ignore[arg-type]
    assert sampler.num_batches(0) == 50
    expected = 1250 * weights / weights.sum()
    for epoch in range(3):
        values, counts = np.unique(LABELS[drawn(sampler, epoch)], return_counts=True)
        assert values.tolist() == [0, 1, 2, 5, 9]
        assert (np.abs(counts - expected) < 1).all()


def test_rounding_is_fair() -> None:
    counts = sum(
        np.bincount(LABELS[drawn(Balanced(LABELS, 1250, balance="sqrt"), e)], minlength=10) for e in range(200)
    )
    expected = 1250 * SIZES**0.5 / (SIZES**0.5).sum()
    assert np.abs(counts[[0, 1, 2, 5, 9]] / 200 - expected).max() < 0.12  # three standard errors of a rounded number


def test_instance_is_a_shuffle_and_samples_come_once_before_they_come_again() -> None:
    assert sorted(drawn(Balanced(LABELS, 1, balance="instance")).tolist()) == list(range(1250))
    times = np.bincount(drawn(Balanced(LABELS, 1)), minlength=1250)
    for label in np.unique(LABELS):
        own = times[label == LABELS]
        assert own.max() - own.min() <= 1
        assert own.sum() == 250


def test_progressive_goes_from_instances_to_classes() -> None:
    sampler = Balanced(LABELS, 1, balance="progressive", num_epochs=10)
    assert sorted(drawn(sampler, 0).tolist()) == list(range(1250))
    heads = [int((LABELS[drawn(sampler, epoch)] == 0).sum()) for epoch in range(12)]
    assert np.abs(np.array(heads) - [1000 - 75 * min(t, 10) for t in range(12)]).max() <= 1


def test_effective_number_lies_between_its_limits() -> None:
    instance, near_class = (Balanced(LABELS, 1, balance="effective", beta=b).shares(0) for b in (0.0, 1 - 1e-9))
    np.testing.assert_allclose(instance, SIZES)
    np.testing.assert_allclose(near_class, np.ones(5), rtol=1e-5)


def test_negative_labels_are_never_drawn() -> None:
    labels = np.array([0, -1, 1, 1, -1])
    assert {i for epoch in range(4) for i in drawn(Balanced(labels, 1), epoch).tolist()} == {0, 2, 3}


def test_weighted_draws_follow_the_weights() -> None:
    weights = np.array([0.0, 1.0, 2.0, 0.0, 5.0, 0.0])
    counts = np.bincount(drawn(Weighted(weights, 10, num_draws=8000)), minlength=6)
    assert counts[[0, 3, 5]].tolist() == [0, 0, 0]
    expected = np.array([1000, 2000, 5000])
    assert ((counts[[1, 2, 4]] - expected) ** 2 / expected).sum() < 13.8  # 2 degrees of freedom, p = 0.001


def test_draws_without_replacement_are_successive() -> None:
    weights = np.array([1.0, 2.0, 3.0, 0.0])
    sampler = Weighted(weights, 2, replacement=False, num_draws=2)
    seen = dict.fromkeys(itertools.permutations(range(3), 2), 0)
    for epoch in range(3000):
        seen[tuple(drawn(sampler, epoch).tolist())] += 1
    statistic = 0.0
    for (a, b), count in seen.items():
        expected = 3000 * weights[a] / 6 * weights[b] / (6 - weights[a])
        statistic += (count - expected) ** 2 / expected
    assert statistic < 20.5  # 5 degrees of freedom, p = 0.001
    assert sorted(drawn(Weighted(weights, 1, replacement=False)).tolist()) == [0, 1, 2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Balanced([0, 1], 1, balance="clas"), "balance: expected one of .*did you mean 'class'"),
        (lambda: Balanced([0, 1], 1, beta=1.0), r"beta: expected a number in \[0, 1\), received 1.0"),
        (lambda: Balanced([0, 1], 1, balance="progressive"), "num_epochs: expected 1 or more for 'progressive'"),
        (lambda: Balanced([0, -1], 2), "batch_size: expected at most the 1 labelled samples, received 2"),
        (lambda: Balanced([-1, -1], 1), "labels: expected at least one id of 0 or more, received 2 negative ones"),
        (lambda: Weighted([1.0, -1.0], 1), "weights: expected finite numbers of 0 or more, received"),
        (lambda: Weighted([1.0, np.nan], 1), "weights: expected finite numbers of 0 or more, received"),
        (lambda: Weighted([0.0], 1), "weights: expected at least one above 0"),
        (lambda: Weighted([[1.0]], 1), r"weights: expected 1 dimension\(s\)"),
        (lambda: Weighted([1, 0], 1, replacement=False, num_draws=2), "num_draws: expected at most the 1 samples"),
        (lambda: Weighted([1, 0], 2, replacement=False), "batch_size: expected at most the 1 draws of an epoch"),
        (lambda: Weighted([1], 1, num_draws=-1), "num_draws: expected 0 or more, received -1"),
        (lambda: Weighted([1], 0), "batch_size: expected 1 or more, received 0"),
    ],
)
def test_refuses(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
