"""Shard after shard: every sample once, few shards at a time, lanes that end together, whatever the shards' sizes."""

from __future__ import annotations

import numpy as np
import pytest

from nearfar.config import SamplerConfig
from nearfar.data import ArraySource, Concat, Subset
from nearfar.samplers import NoDuplicates, Sampler, Shards, SingleGroup, make_sampler

SIZES = [31, 1, 57, 20, 44, 8, 3, 90]
SHARD = np.repeat(np.arange(8), SIZES)


def flat(sampler: Shards, epoch: int = 0) -> list[list[int]]:
    return [batch.tolist() for batch in sampler.batches(epoch)]


@pytest.mark.parametrize(("batch", "lanes"), [(8, 1), (8, 4), (12, 3), (254, 2), (6, 6)])
@pytest.mark.parametrize("window", [1, 5, 1000])
def test_every_sample_once(batch: int, lanes: int, window: int) -> None:
    sampler = Shards(SHARD, batch, lanes=lanes, window=window, seed=1, drop_last=False)
    assert isinstance(sampler, Sampler)
    for epoch in (0, 7):
        batches = flat(sampler, epoch)
        assert sorted(i for one in batches for i in one) == list(range(254))
        assert len(batches) == sampler.num_batches(epoch) == -(-254 // batch)
        assert [len(one) for one in batches[:-1]] == [batch] * (len(batches) - 1)
        whole = Shards(SHARD, batch, lanes=lanes, window=window, seed=1)
        assert flat(whole, epoch) == [one for one in batches if len(one) == batch]
    assert all(one.dtype == np.int64 for one in sampler.batches(0))


def test_order_by_hand() -> None:
    # Without a window the order is that of the permuted shards, cut into lanes.
    sampler = Shards(SHARD, 8, lanes=2, window=1, seed=3)
    shards = np.random.Generator(np.random.PCG64(np.random.SeedSequence([3, 5]))).permutation(8)
    row = np.concatenate([np.flatnonzero(shard == SHARD) for shard in shards])
    lanes = row[:127], row[127:]
    for number, batch in enumerate(sampler.batches(5)):
        assert batch.tolist() == [i for lane in lanes for i in lane[4 * number : 4 * number + 4]]


@pytest.mark.parametrize("window", [4, 40])
def test_a_sample_stays_within_its_window(window: int) -> None:
    row = Shards(SHARD, 1, lanes=1, window=1, seed=2).order(0).tolist()
    mixed = Shards(SHARD, 1, lanes=1, window=window, seed=2).order(0).tolist()
    moved = [abs(row.index(i) - place) for place, i in enumerate(mixed)]
    assert max(moved) <= window
    assert np.mean(moved) > window / 6
    assert row != mixed


def test_processes_read_their_own_shards() -> None:
    shard = np.repeat(np.arange(40), 25)
    sampler = Shards(shard, 40, lanes=8, window=50, seed=0)
    read = [set(), set()]
    for batch in sampler.batches(0):
        for process, part in enumerate(np.array_split(batch, 2)):
            read[process] |= set(shard[part].tolist())
    assert len(read[0] & read[1]) <= 1
    assert read[0] | read[1] == set(range(40))
    open_at_once = [len(set(shard[batch].tolist())) for batch in sampler.batches(0)]
    assert max(open_at_once) <= 8 * 4  # a window of 50 reaches over at most four shards of 25


def test_batches_depend_on_seed_and_epoch_alone() -> None:
    one = Shards(SHARD, 8, seed=1)
    again = Shards(SHARD, 8, seed=1)
    list(again.batches(3))
    assert flat(one, 5) == flat(again, 5)
    assert [batch.tolist() for batch in one.batches(5, 20)] == flat(one, 5)[20:]
    orders = [flat(Shards(SHARD, 8, seed=seed), epoch) for seed in (1, 2) for epoch in (0, 1)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])
    # Runs resume over releases, so these numbers may not change.
    assert flat(Shards(SHARD, 8, lanes=4, window=16, seed=3), 1)[0] == FIRST


FIRST = [34, 32, 115, 116, 27, 28, 214, 216]


def test_state_tells_another_sampler_apart() -> None:
    state = Shards(SHARD, 8, seed=1).state_dict()
    Shards(SHARD, 8, seed=1).load_state_dict(state)
    for other, name in (
        (Shards(SHARD, 8, seed=2), "seed"), (Shards(SHARD, 8, seed=1, lanes=4), "lanes"),
        (Shards(SHARD, 8, seed=1, window=7), "window"), (Shards(SHARD[::-1], 8, seed=1), "data"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"sampler state: {name}: expected"):
            other.load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"batch_size": 9}, "batch_size: expected a multiple of the 8 lanes, received 9"),
        ({"batch_size": 8, "lanes": 0}, "lanes: expected 1 or more"),
        ({"batch_size": 8, "window": 0}, "window: expected 1 or more"),
        ({"batch_size": 256}, "batch_size: expected at most the 254 samples"),
        ({"batch_size": 8, "seed": -1}, "seed: expected 0 or more"),
    ],
)
def test_mistakes(options: dict[str, int], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Shards(SHARD, **options)  # type: ignore[arg-type]


class Sharded(ArraySource):
    def column(self, name: str) -> np.ndarray | None:
        texts = np.array([f"t{i % 100}" for i in range(254)], dtype=object)
        return {"shard": SHARD, "txt": texts, "style": np.array(["b", "a"] * 127, dtype=object)}.get(name)


def test_by_config() -> None:
    source = Sharded(np.zeros((254, 2, 2), np.uint8))
    made = make_sampler(SamplerConfig(kind="shards", lanes=4, window=9), source, 8, seed=1)
    expected = Shards(SHARD, 8, lanes=4, window=9, seed=1)
    assert made.state_dict() == expected.state_dict()
    assert [b.tolist() for b in made.batches(2)] == flat(expected, 2)
    with pytest.raises(ValueError, match="sampler.column: expected a column of array, received shard"):
        make_sampler(SamplerConfig(kind="shards"), ArraySource(np.zeros((9, 2, 2), np.uint8)), 8)
    for name in ("lanes", "window"):
        with pytest.raises(ValueError, match=f"sampler.{name}: expected 1 or more, received 0"):
            SamplerConfig(kind="shards", **{name: 0})


def test_shards_of_parts_and_of_joined_sources() -> None:
    source = Sharded(np.zeros((254, 2, 2), np.uint8))
    part = Subset(source, np.flatnonzero(np.arange(254) % 3))
    both = Concat([source, source])
    for of in (part, both):
        sampler = make_sampler(SamplerConfig(kind="shards"), of, 8, drop_last=False)
        assert sorted(np.concatenate(list(sampler.batches(0))).tolist()) == list(range(len(of)))
    # Two sources' shards have the same numbers, but are not the same.
    sampler = Shards(np.array([0, 0, 1, 1, 0, 0]), 1, lanes=1, window=1)
    starts = {tuple(sampler.order(epoch)[::2] // 2) for epoch in range(50)}
    assert len(starts) == 6


def test_columns_of_texts_are_keys_and_groups() -> None:
    source = Sharded(np.zeros((254, 2, 2), np.uint8))
    unique = make_sampler(SamplerConfig(kind="no-duplicates", column="txt"), source, 8, drop_last=False)
    assert isinstance(unique, NoDuplicates)
    assert all(len(set((batch % 100).tolist())) == len(batch) for batch in unique.batches(0))
    groups = make_sampler(SamplerConfig(kind="single-group", column="style"), source, 8)
    assert isinstance(groups, SingleGroup)
    assert all(len(set((batch % 2).tolist())) == 1 for batch in groups.batches(0))
