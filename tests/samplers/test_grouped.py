"""Batches of one group, and of all groups in fixed proportions."""

from __future__ import annotations

import numpy as np
import pytest

from nearfar.samplers import MixedGroups, Shuffle, SingleGroup, groups_of

SIZES = [100, 43, 20, 7]
GROUPS = np.random.default_rng(0).permutation(groups_of(SIZES))


@pytest.mark.oracle("mcl_multistage", 2)
@pytest.mark.oracle("zerovl", 4)
@pytest.mark.parametrize("order", ["shuffle", "interleave"])
def test_every_batch_has_one_group_and_every_sample_comes_once(order: str) -> None:
    sampler = SingleGroup(GROUPS, 10, order=order)  # type: ignore[arg-type]
    batches = list(sampler.batches(0))
    assert len(batches) == sampler.num_batches(0) == 10 + 4 + 2 + 0
    assert sampler.nums == [10, 4, 2, 0]
    assert sampler.num_left_out == 3 + 7
    assert all(len(batch) == 10 and len(set(GROUPS[batch].tolist())) == 1 for batch in batches)
    assert len(set(np.concatenate(batches).tolist())) == 160
    kinds = [int(GROUPS[batch[0]]) for batch in batches]
    assert np.bincount(kinds).tolist() == [10, 4, 2]
    if order == "interleave":
        assert [i for i, kind in enumerate(kinds) if kind == 2] == [4, 12]
    else:
        assert kinds != [int(GROUPS[batch[0]]) for batch in sampler.batches(1)]


@pytest.mark.oracle("mcl_multistage", 1)
def test_one_group_is_an_ordinary_shuffled_epoch() -> None:
    batches = list(SingleGroup(np.zeros(57, dtype=np.int64), 10).batches(0))
    assert [len(batch) for batch in batches] == [len(batch) for batch in Shuffle(57, 10).batches(0)]
    assert len(set(np.concatenate(batches).tolist())) == 50


def test_short_batches_hold_the_rest() -> None:
    sampler = SingleGroup(GROUPS, 10, drop_last=False)
    batches = list(sampler.batches(0))
    assert sorted(len(batch) for batch in batches) == [3, 7] + [10] * 16
    assert sorted(np.concatenate(batches).tolist()) == list(range(170))
    assert sampler.num_left_out == 0
    assert all(len(set(GROUPS[batch].tolist())) == 1 for batch in batches)


@pytest.mark.parametrize(("power", "expected"), [(0.0, [6, 5, 5, 0]), (0.5, [8, 5, 3, 0]), (1.0, [10, 4, 2, 0])])
def test_power_tempers_the_shares(power: float, expected: list[int]) -> None:
    sampler = SingleGroup(GROUPS, 10, power=power)
    batches = list(sampler.batches(0))
    assert np.bincount([GROUPS[batch[0]] for batch in batches], minlength=4).tolist() == expected == sampler.nums
    assert all(len(set(batch.tolist())) == 10 for batch in batches)
    small = np.bincount(np.concatenate([batch for batch in batches if GROUPS[batch[0]] == 2]), minlength=170)
    own = small[GROUPS == 2]
    assert own.max() - own.min() <= 1  # each once before any again


def test_shares_decide_alone() -> None:
    sampler = SingleGroup(GROUPS, 10, shares=[1, 1, 2, 9])
    assert sampler.nums == [4, 4, 8, 0]


def test_equal_groups_are_taken_in_turn() -> None:
    batches = SingleGroup(groups_of([40, 40, 40]), 10, order="interleave").batches(0)
    assert [int(batch[0]) // 40 for batch in batches] == [0, 1, 2] * 4


@pytest.mark.parametrize("length", ["total", "shortest", "longest"])
def test_every_batch_has_the_same_mixture(length: str) -> None:
    sampler = MixedGroups(GROUPS, 20, shares=[10, 6, 3, 1], length=length)  # type: ignore[arg-type]
    assert sampler.nums == [10, 6, 3, 1]
    batches = list(sampler.batches(0))
    # 170 / 20; min and max of 100 / 10, 43 / 6, 20 / 3, 7 / 1
    assert len(batches) == sampler.num_batches(0) == {"total": 8, "shortest": 6, "longest": 10}[length]
    for batch in batches:
        assert np.bincount(GROUPS[batch]).tolist() == [10, 6, 3, 1]
        assert len(set(batch.tolist())) == 20
        halves = [np.bincount(GROUPS[half], minlength=4) for half in np.array_split(batch, 2)]
        assert np.abs(halves[0] - halves[1]).max() <= 1  # processes see the same mixture
    times = np.bincount(np.concatenate(batches), minlength=170)
    if length == "shortest":
        assert times.max() == 1
    if length == "longest":
        assert times[GROUPS == 0].tolist() == [1] * 100


def test_mixture_follows_size_and_power() -> None:
    assert MixedGroups(GROUPS, 17).nums == [10, 4, 2, 1]
    assert MixedGroups(GROUPS, 16, power=0.0).nums == [4, 4, 4, 4]


def test_groups_of_numbers_the_sources() -> None:
    assert groups_of([2, 0, 3]).tolist() == [0, 0, 2, 2, 2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SingleGroup([0, 1, 1], 3), "batch_size: expected at most the 2 samples of the largest group"),
        (lambda: SingleGroup([0, 0], 1, power=2.0), r"power: expected a number in \[0, 1\], received 2.0"),
        (lambda: SingleGroup([0, 0], 1, power=0.5, shares=[1]), "power: expected 1 beside shares, received 0.5"),
        (lambda: SingleGroup([0, 0], 1, order="turn"), "order: expected one of 'shuffle', 'interleave'"),
        (
            lambda: MixedGroups([0, 0, 1, 1], 2, shares=[1]),
            r"shares: expected 2 finite numbers above 0.*received \[1\]",
        ),
        (lambda: MixedGroups([0, 0, 1, 1], 2, shares=[1, 0]), "shares: expected 2 finite numbers above 0"),
        (lambda: MixedGroups([0, 0, 0, 1], 2, power=1.0), "batch_size: expected a place for every group .*2, 0"),
        (
            lambda: MixedGroups([0, 0, 1], 4, power=0.0),
            r"batch_size: expected at most as many places.*received \[2, 2\]",
        ),
        (lambda: MixedGroups([0, 1], 2, length="short"), "length: expected one of .*did you mean 'shortest'"),
        (lambda: groups_of([]), r"sizes: expected numbers of 0 or more, received \[\]"),
        (lambda: groups_of([1, -1]), "sizes: expected numbers of 0 or more"),
    ],
)
def test_refuses(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
