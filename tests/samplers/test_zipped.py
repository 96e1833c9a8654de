"""Stated numbers of every source in every batch, and passes that know no epochs."""

from __future__ import annotations

import numpy as np
import pytest

from nearfar.samplers import Zipped, groups_of

SIZES = [11, 40, 6]
GROUPS = groups_of(SIZES)
NUMS = [3, 8, 1]  # 3, 5 and 6 batches a pass


def rows(sampler: Zipped, source: int, epochs: int) -> np.ndarray:
    """What a source gave to every batch of some epochs, [epochs * batches, its number]."""
    batches = [batch for epoch in range(epochs) for batch in sampler.batches(epoch)]
    return np.stack([batch[GROUPS[batch] == source] for batch in batches])


@pytest.mark.parametrize(
    ("length", "num"), [("longest", 6), ("shortest", 3), ("total", 4), (0, 3), (1, 5), (2, 6)]
)  # total: 57 samples in batches of 12
def test_length_and_numbers(length: str | int, num: int) -> None:
    sampler = Zipped(GROUPS, NUMS, length=length)  # type: ignore[arg-type]
    assert sampler.batch_size == 12
    assert sampler.num_batches(0) == sampler.num_batches(9) == num
    for batch in sampler.batches(3):
        assert np.bincount(GROUPS[batch]).tolist() == NUMS
        assert len(set(batch.tolist())) == 12


@pytest.mark.parametrize("length", ["shortest", "longest", 1])
def test_each_source_goes_on_where_it_stopped(length: str | int) -> None:
    sampler = Zipped(GROUPS, NUMS, length=length, seed=4)  # type: ignore[arg-type]
    for source, (size, num) in enumerate(zip(SIZES, NUMS, strict=True)):
        stream = rows(sampler, source, epochs=8)
        per_pass = size // num
        members = np.flatnonzero(source == GROUPS)
        orders = []
        for start in range(0, len(stream) - per_pass + 1, per_pass):
            turn = stream[start : start + per_pass].ravel()
            assert len(set(turn.tolist())) == per_pass * num  # nothing twice in a pass
            assert set(turn.tolist()) <= set(members.tolist())
            orders.append(tuple(turn.tolist()))
        assert len(set(orders)) == len(orders) >= 4  # shuffled anew
        assert set(stream.ravel().tolist()) == set(members.tolist())  # the remainder is another one each time


def test_the_length_of_an_epoch_changes_nothing_in_the_stream() -> None:
    short, long = (Zipped(GROUPS, NUMS, length=length, seed=4) for length in ("shortest", "longest"))  # type: ignore[arg-type]
    for source in range(3):
        np.testing.assert_array_equal(rows(short, source, epochs=6), rows(long, source, epochs=3))


def test_sources_are_shuffled_apart() -> None:
    sampler = Zipped(groups_of([50, 50]), [10, 10], seed=1)
    first, second = (np.concatenate([b[b // 50 == k] % 50 for b in sampler.batches(0)]) for k in (0, 1))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(50))
    assert first.tolist() != second.tolist()


def test_processes_and_parts_get_their_share_of_each() -> None:
    sampler = Zipped(groups_of([64, 64]), [4, 12])
    for batch in sampler.batches(0):
        for part in np.array_split(batch, 4):
            assert np.bincount(part // 64).tolist() == [1, 3]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: Zipped(GROUPS, [3, 8]),
            r"expected 3 whole numbers of 1 or more, one a group, received \[3, 8\]",
        ),
        (lambda: Zipped(GROUPS, [3, 8, 0]), "nums: expected 3 whole numbers of 1 or more"),
        (lambda: Zipped(GROUPS, [3, 8, 0.5]), "nums: expected 3 whole numbers of 1 or more"),
        (lambda: Zipped(GROUPS, [12, 8, 1]), r"nums: expected at most as many a group as its samples, \[11, 40, 6\]"),
        (lambda: Zipped(GROUPS, NUMS, length=3), r"length: expected the id of a group, one of \[0, 1, 2\], received 3"),
        (lambda: Zipped(GROUPS, NUMS, length="first"), "length: expected one of 'total', 'shortest', 'longest'"),
        (lambda: Zipped(GROUPS, NUMS, seed=-1), "seed: expected 0 or more, received -1"),
        (lambda: list(Zipped(GROUPS, NUMS).batches(-1)), "epoch: expected 0 or more, received -1"),
    ],
)
def test_refuses(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
