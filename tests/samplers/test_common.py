"""What every sampler promises: a pure function of seed and epoch, any start, a state that names what differs."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch

from nearfar.data import ArraySource, Loader
from nearfar.samplers import (
    Balanced,
    Hierarchical,
    MixedGroups,
    NoDuplicates,
    PerClass,
    Sampler,
    SingleGroup,
    Weighted,
    Zipped,
)
from nearfar.samplers._groups import Groups, apportion, interleave
from nearfar.samplers.base import Planned

LABELS = np.repeat(np.arange(5), [31, 17, 9, 4, 2])
PATHS = np.stack([LABELS % 2, LABELS, np.arange(len(LABELS)) % 3], axis=1)
KEYS = np.arange(len(LABELS)) // 2


def make(seed: int = 3) -> dict[str, Planned]:
    return {
        "per class": PerClass(LABELS, 3, 2, seed=seed),
        "hierarchical": Hierarchical(PATHS, (2, 2, 1, 2), seed=seed),
        "balanced": Balanced(LABELS, 8, balance="progressive", num_epochs=4, seed=seed),
        "weighted": Weighted(LABELS + 1.0, 8, seed=seed),
        "weighted once": Weighted(LABELS + 1.0, 8, replacement=False, seed=seed),
        "single group": SingleGroup(LABELS, 4, power=0.5, seed=seed),
        "single group, short": SingleGroup(LABELS, 4, drop_last=False, order="interleave", seed=seed),
        "mixed groups": MixedGroups(LABELS, 10, power=0.3, seed=seed),
        "no duplicates": NoDuplicates(KEYS, 8, drop_last=False, seed=seed),
        "zipped": Zipped(LABELS, [4, 3, 1, 2, 1], seed=seed),
    }


NAMES = sorted(make())

EXPECTED = {
    "per class": [4, 13, 56, 55, 33, 37],
    "hierarchical": [11, 8, 50, 56, 40, 34, 59, 59],
    "balanced": [36, 18, 47, 24, 35, 58, 43, 27],
    "weighted": [29, 39, 35, 40, 47, 60, 34, 46],
    "weighted once": [34, 54, 14, 28, 51, 45, 43, 57],
    "single group": [59, 60, 58, 57],
    "single group, short": [14, 28, 19, 24],
    "mixed groups": [14, 34, 54, 59, 28, 62, 45, 51, 60, 19],
    "no duplicates": [13, 41, 31, 3, 53, 10, 57, 34],
    "zipped": [8, 39, 57, 3, 41, 53, 61, 23, 58, 47, 25],
}


def flat(sampler: Planned, epoch: int) -> list[list[int]]:
    return [batch.tolist() for batch in sampler.batches(epoch)]


@pytest.mark.parametrize("name", NAMES)
def test_start_continues_the_epoch(name: str) -> None:
    sampler = make()[name]
    whole = flat(sampler, 2)
    assert len(whole) == sampler.num_batches(2) > 2
    for start in range(len(whole) + 1):
        assert [batch.tolist() for batch in make()[name].batches(2, start)] == whole[start:]
    with pytest.raises(ValueError, match=f"start: expected a batch from 0 to {len(whole)}, received {len(whole) + 1}"):
        next(sampler.batches(2, len(whole) + 1))
    with pytest.raises(ValueError, match="epoch: expected 0 or more, received -1"):
        list(sampler.batches(-1))


@pytest.mark.parametrize("name", NAMES)
def test_batches_depend_on_seed_and_epoch_alone(name: str) -> None:
    sampler = make()[name]
    list(sampler.batches(0))
    again = pickle.loads(pickle.dumps(copy.deepcopy(sampler)))
    assert flat(sampler, 5) == flat(again, 5) == flat(make()[name], 5)
    epochs = [flat(make(seed)[name], epoch) for seed in (3, 4) for epoch in (0, 1)]
    assert all(a != b for i, a in enumerate(epochs) for b in epochs[:i])
    assert all(batch.dtype == np.int64 for batch in sampler.batches(0))
    assert isinstance(sampler, Sampler)


@pytest.mark.parametrize("name", NAMES)
def test_state_tells_another_sampler_apart(name: str) -> None:
    sampler = make()[name]
    state = sampler.state_dict()
    make()[name].load_state_dict(state)
    with pytest.raises(ValueError, match="sampler state: seed: expected 4, received 3"):
        make(4)[name].load_state_dict(state)
    with pytest.raises(ValueError, match="sampler state: data: expected"):
        sampler.load_state_dict(state | {"data": "0"})
    assert all(isinstance(value, (int, float, str, bool, list)) for value in state.values())


@pytest.mark.parametrize("name", NAMES)
def test_data_are_told_apart(name: str) -> None:
    sampler = make()[name]
    moved = {
        "per class": lambda: PerClass(LABELS[::-1], 3, 2, seed=3),
        "hierarchical": lambda: Hierarchical(PATHS[::-1], (2, 2, 1, 2), seed=3),
        "balanced": lambda: Balanced(LABELS[::-1], 8, balance="progressive", num_epochs=4, seed=3),
        "weighted": lambda: Weighted(LABELS[::-1] + 1.0, 8, seed=3),
        "weighted once": lambda: Weighted(LABELS[::-1] + 1.0, 8, replacement=False, seed=3),
        "single group": lambda: SingleGroup(LABELS[::-1], 4, power=0.5, seed=3),
        "single group, short": lambda: SingleGroup(LABELS[::-1], 4, drop_last=False, order="interleave", seed=3),
        "mixed groups": lambda: MixedGroups(LABELS[::-1], 10, power=0.3, seed=3),
        "no duplicates": lambda: NoDuplicates(KEYS[::-1], 8, drop_last=False, seed=3),
        "zipped": lambda: Zipped(LABELS[::-1], [4, 3, 1, 2, 1], seed=3),
    }[name]()
    with pytest.raises(ValueError, match="sampler state: (data|nums): expected"):
        moved.load_state_dict(sampler.state_dict())


def test_batches_stay_what_they_were() -> None:
    # Runs resume over releases, so these numbers may not change.
    assert {name: next(sampler.batches(1)).tolist() for name, sampler in make().items()} == EXPECTED


@pytest.mark.parametrize("name", ["per class", "mixed groups", "zipped", "no duplicates"])
def test_processes_share_every_batch(name: str) -> None:
    images = np.zeros((len(LABELS), 4, 4), dtype=np.uint8)
    source, sampler = ArraySource(images, LABELS), make()[name]
    whole = list(Loader(source, sampler).epoch(2, start=1))
    parts = [list(Loader(source, sampler, rank=rank, world=3).epoch(2, start=1)) for rank in range(3)]
    assert len(whole) == sampler.num_batches(2) - 1
    for number, batch in enumerate(whole):
        assert torch.equal(torch.cat([part[number]["index"] for part in parts]), batch["index"])
        assert batch["index"].tolist() == flat(sampler, 2)[number + 1]


def test_a_group_is_gone_through_before_it_repeats() -> None:
    ids = np.array([7, -1, 2, 7, 2, 7, 2, 7, 2, 7, 9, 2, 2])
    groups = Groups("ids", ids)
    assert groups.values.tolist() == [2, 7, 9]
    assert groups.counts.tolist() == [6, 5, 1]
    rows = groups.draw(np.random.default_rng(0), np.array([6, 5, 2]), 2)
    assert rows.shape == (13, 2)
    assert ids[rows].tolist() == [[2, 2]] * 6 + [[7, 7]] * 5 + [[9, 9]] * 2
    for first in (0, 3):  # two passes of three rows
        assert sorted(rows[first : first + 3].ravel().tolist()) == np.flatnonzero(ids == 2).tolist()
    for first in (6, 8, 10):  # two rows a pass, one of the five left out
        assert len(set(rows[first : min(first + 2, 11)].ravel().tolist())) == min(4, 2 * (11 - first))
    short = groups.draw(np.random.default_rng(0), np.array([2, 2, 1]), 4, short=True)
    assert (short >= 0).sum(1).tolist() == [4, 2, 4, 1, 1]
    assert sorted(short[short >= 0].tolist()) == np.flatnonzero(ids >= 0).tolist()
    slots = np.array([2, 0, 1, 0])
    assert ids[groups.fill(np.random.default_rng(0), slots, 3)].tolist() == [[9] * 3, [2] * 3, [7] * 3, [2] * 3]


def test_orders_within_a_group_are_uniform() -> None:
    groups = Groups("ids", np.zeros(4, dtype=np.int64))
    rows = groups.draw(np.random.default_rng(1), np.array([2400]), 4)
    _, counts = np.unique(rows, axis=0, return_counts=True)
    assert len(counts) == 24
    assert ((counts - 100) ** 2 / 100).sum() < 49.7  # chi-squared with 23 degrees of freedom, p = 0.001


def test_apportion_and_interleave() -> None:
    assert apportion(10, np.array([1.0, 1.0, 1.0])).tolist() == [4, 3, 3]
    assert apportion(7, np.array([5.0, 0.0, 2.0])).tolist() == [5, 0, 2]
    for weights in np.random.default_rng(0).random((50, 7)):
        shares = apportion(20, weights)
        assert shares.sum() == 20
        assert (np.abs(shares - 20 * weights / weights.sum()) < 1).all()
    assert interleave(np.array([2, 2])).tolist() == [0, 1, 0, 1]
    assert interleave(np.array([4, 0, 2])).tolist() == [0, 2, 0, 0, 2, 0]
