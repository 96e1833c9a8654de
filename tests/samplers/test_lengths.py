"""Batches of one length: nothing lost, little padded, the same again."""

from __future__ import annotations

import numpy as np
import pytest

from nearfar.samplers import ByLength

LENGTHS = np.random.default_rng(0).integers(1, 60, 1000)


def padding(batches: list[np.ndarray]) -> float:
    used = sum(LENGTHS[b].sum() for b in batches)
    return 1 - used / sum(len(b) * LENGTHS[b].max() for b in batches)


@pytest.mark.parametrize(("budget", "drop_last"), [(0, False), (0, True), (500, False)])
@pytest.mark.parametrize("window", [1, 64, 130, 5000])
def test_every_sample_once(budget: int, drop_last: bool, window: int) -> None:
    sampler = ByLength(LENGTHS, 48, window=window, budget=budget, drop_last=drop_last, seed=3)
    batches = list(sampler.batches(2))
    assert len(batches) == sampler.num_batches(2)
    found = np.concatenate(batches)
    assert len(set(found.tolist())) == len(found)
    assert len(found) == (960 if drop_last else 1000)
    assert all(len(b) <= 48 for b in batches)
    if drop_last:
        assert {len(b) for b in batches} == {48}
    if budget:
        assert all(len(b) * LENGTHS[b].max() <= budget for b in batches)


def test_sorting_saves_padding_and_larger_windows_save_more() -> None:
    shares = [padding(list(ByLength(LENGTHS, 50, window=w, drop_last=False).batches(0))) for w in (1, 200, 1000)]
    assert shares[0] > 0.3
    assert shares[1] < 0.2
    assert shares[2] < 0.06


def test_epochs_and_seeds_differ_and_repeat() -> None:
    def plan(seed: int, epoch: int, start: int = 0) -> list[list[int]]:
        return [b.tolist() for b in ByLength(LENGTHS, 50, window=200, seed=seed).batches(epoch, start)]

    assert plan(0, 0) == plan(0, 0)
    assert plan(0, 0) != plan(0, 1)
    assert plan(0, 0) != plan(1, 0)
    assert plan(0, 4)[7:] == plan(0, 4, 7)


def test_a_state_of_other_lengths_is_refused() -> None:
    state = ByLength(LENGTHS, 50).state_dict()
    ByLength(LENGTHS, 50).load_state_dict(state)
    with pytest.raises(ValueError, match="sampler state: digest"):
        ByLength(LENGTHS[::-1].copy(), 50).load_state_dict(state)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="budget: expected 0, or at least the longest length 59"):
        ByLength(LENGTHS, 50, budget=10)
    with pytest.raises(ValueError, match="lengths: expected 1 or more, received 0"):
        ByLength([0, 3], 1)
    with pytest.raises(ValueError, match="batch_size: expected at most the 2 samples"):
        ByLength([2, 3], 5)
    with pytest.raises(ValueError, match="window: expected 1 or more"):
        ByLength([2, 3], 1, window=0)
