"""No two samples of a batch share a key."""

from __future__ import annotations

import time

import numpy as np
import pytest

from nearfar.samplers import NoDuplicates, Shuffle, hash_keys


def repeats(keys: np.ndarray, batches: list[np.ndarray]) -> int:
    """Pairs of samples of one batch that share a key, by comparing all of them."""
    found = 0
    for batch in batches:
        rows = keys[batch].reshape(len(batch), -1)
        same = ((rows[:, None, :, None] == rows[None, :, None, :]) & (rows >= 0)[:, None, :, None]).any((2, 3))
        found += int(np.triu(same, 1).sum())
    return found


def scan(keys: np.ndarray, order: np.ndarray, batch_size: int) -> list[list[int]]:
    """Batch after batch from all that are left: the plain quadratic way, for one key a sample."""
    left, batches = order.tolist(), []
    while left:
        batch, used, later = [], set(), []
        for i in left:
            if len(batch) < batch_size and keys[i] not in used:
                batch.append(i)
                used.add(keys[i])
            else:
                later.append(i)
        batches.append(batch)
        left = later
    return batches


@pytest.mark.parametrize("batch_size", [1, 3, 16, 500])
@pytest.mark.parametrize("num_keys", [1, 4, 60, 10_000])
def test_single_keys_equal_a_plain_scan(batch_size: int, num_keys: int) -> None:
    keys = np.random.default_rng(num_keys).integers(0, num_keys, 230)
    sampler = NoDuplicates(keys, batch_size, seed=2, drop_last=False)
    batches = [batch.tolist() for batch in sampler.batches(1)]
    assert batches == scan(keys, Shuffle(230, 230, seed=2).order(1), batch_size)
    assert sorted(i for batch in batches for i in batch) == list(range(230))
    assert sampler.num_batches(1) == len(batches)


@pytest.mark.parametrize("num_keys", [5, 50, 500])
@pytest.mark.parametrize("columns", [1, 2, 3])
def test_no_batch_shares_a_key_over_columns(num_keys: int, columns: int) -> None:
    rng = np.random.default_rng(columns)
    keys = rng.integers(-1, num_keys, (300, columns))
    sampler = NoDuplicates(keys, 12, drop_last=False, seed=1)
    batches = list(sampler.batches(0))
    assert repeats(keys, batches) == 0
    assert repeats(keys, list(Shuffle(300, 12, seed=1).batches(0))) > 0
    assert sorted(np.concatenate(batches).tolist()) == list(range(300))
    assert max(map(len, batches)) <= 12


def test_without_repeats_it_is_the_shuffle() -> None:
    sampler = NoDuplicates(np.arange(103), 10, seed=4)
    for batch, other in zip(sampler.batches(3), Shuffle(103, 10, seed=4).batches(3), strict=True):
        np.testing.assert_array_equal(batch, other)


def test_a_sample_may_name_a_key_twice_and_negative_keys_are_none() -> None:
    assert [len(b) for b in NoDuplicates([[5, 5], [6, 6], [7, 5]], 3, drop_last=False).batches(0)] == [2, 1]
    assert [len(b) for b in NoDuplicates([-1, -1, -7, -1], 4).batches(0)] == [4]


def test_drop_last_leaves_short_batches_out() -> None:
    keys = np.concatenate([np.zeros(20, dtype=np.int64), np.arange(1, 101)])
    kept = NoDuplicates(keys, 10, drop_last=False)
    sizes = [len(batch) for batch in kept.batches(0)]
    assert len(sizes) == 20  # the frequent key needs as many batches as it has samples
    assert sum(sizes) == 120
    whole = NoDuplicates(keys, 10)
    assert [len(batch) for batch in whole.batches(0)] == [10] * sum(size == 10 for size in sizes)
    assert whole.num_batches(0) == len(list(whole.batches(0)))


def test_packing_is_tight_for_moderate_repeats() -> None:
    rng = np.random.default_rng(0)
    keys = np.where(rng.random(20_000) < 0.3, rng.integers(0, 500, 20_000), 1000 + np.arange(20_000))
    sizes = [len(batch) for batch in NoDuplicates(keys, 128, drop_last=False).batches(0)]
    assert sum(size == 128 for size in sizes) >= 154  # of 156 that the samples would fill


def test_hashes_are_stable_and_share_one_space() -> None:
    keys = hash_keys(["a cat", "a dog", None, "é"], ["a dog", b"a dog", "7", 7])
    assert keys.dtype == np.int64
    assert keys.shape == (4, 2)
    assert keys[0, 1] == keys[1, 0]
    assert len({keys[1, 1], keys[1, 0], keys[2, 1], keys[3, 1]}) == 4  # text, bytes and number differ
    assert keys[2, 0] == -1
    assert int(keys[0, 0]) == 8655580938188153507  # the same on every machine, so that runs resume
    many = hash_keys(map(str, range(50_000)))
    assert len(np.unique(many)) == 50_000
    assert many.min() >= 0
    assert abs(np.mean(many / 2**63) - 0.5) < 0.005


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["a fifth", "all", "two columns", "one in a hundred the same"])
def test_a_million_keys_take_seconds(kind: str) -> None:
    rng, n = np.random.default_rng(0), 1_000_000
    keys = {
        "a fifth": np.where(rng.random(n) < 0.2, rng.integers(0, 20_000, n), 10**7 + np.arange(n)),
        "all": rng.integers(0, n // 3, n),
        "two columns": rng.integers(0, n // 2, (n, 2)),
        "one in a hundred the same": np.where(rng.random(n) < 0.01, 0, 1 + np.arange(n)),
    }[kind]
    began = time.perf_counter()
    batches = list(NoDuplicates(keys, 8192, drop_last=False).batches(0))
    assert time.perf_counter() - began < 30  # one to two on an idle core without the type checker
    assert sum(map(len, batches)) == n
    for batch in batches[:: max(len(batches) // 10, 1)]:
        flat = np.concatenate([np.unique(row) for row in keys[batch].reshape(len(batch), -1)])
        assert len(np.unique(flat)) == len(flat)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NoDuplicates([1, 2], 3), "batch_size: expected at most the 2 samples there are, or drop_last=False"),
        (lambda: NoDuplicates([], 1), "keys: expected 1 dimension"),
        (lambda: NoDuplicates(np.zeros((1, 1, 1), dtype=int), 1), "keys: expected 1 dimension"),
        (lambda: NoDuplicates([1], 0), "batch_size: expected 1 or more, received 0"),
        (lambda: hash_keys(), "columns: expected at least one, received none"),
        (lambda: hash_keys(["a"], ["a", "b"]), r"columns: expected one length, received \[1, 2\]"),
    ],
)
def test_refuses(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


def test_refuses_other_types() -> None:
    with pytest.raises(TypeError, match="keys: expected integers, received <U1"):
        NoDuplicates(["a", "b"], 1)
    with pytest.raises(TypeError, match="columns: expected str, bytes, int or None, received 1.5"):
        hash_keys([1.5])
