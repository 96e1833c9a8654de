"""Orders of samples: complete, reproducible, resumable."""

from __future__ import annotations

import numpy as np
import pytest

from nearfar.samplers import Sampler, Sequential, Shuffle


def test_epoch_holds_every_sample_once() -> None:
    sampler = Shuffle(103, 10, seed=3, drop_last=False)
    batches = list(sampler.batches(0))
    assert [len(batch) for batch in batches] == [10] * 10 + [3]
    assert sampler.num_batches(0) == 11
    assert sorted(np.concatenate(batches).tolist()) == list(range(103))
    assert batches[0].dtype == np.int64


def test_drop_last_leaves_the_rest_out() -> None:
    sampler = Shuffle(103, 10, seed=3, drop_last=True)
    assert [len(batch) for batch in sampler.batches(0)] == [10] * 10
    assert sampler.num_batches(0) == 10
    whole = np.concatenate(list(Shuffle(103, 10, seed=3, drop_last=False).batches(0)))
    np.testing.assert_array_equal(np.concatenate(list(sampler.batches(0))), whole[:100])


def test_order_is_a_function_of_seed_and_epoch_alone() -> None:
    def orders(seed: int, epoch: int, batch: int = 7) -> list[int]:
        return np.concatenate(list(Shuffle(50, batch, seed, drop_last=False).batches(epoch))).tolist()

    sampler = Shuffle(50, 7, 1, drop_last=False)
    list(sampler.batches(0))
    assert np.concatenate(list(sampler.batches(4))).tolist() == orders(1, 4) == orders(1, 4, batch=50)
    assert len({tuple(orders(seed, epoch)) for seed in range(4) for epoch in range(4)}) == 16


def test_order_stays_what_it_was() -> None:
    # Runs resume over releases, so these numbers may not change.
    assert next(Shuffle(10, 10, 0).batches(0)).tolist() == [4, 6, 2, 7, 3, 5, 9, 0, 8, 1]


@pytest.mark.parametrize("sampler", [Shuffle(53, 8, 5), Shuffle(53, 8, 5, drop_last=False), Sequential(53, 8)])
def test_start_continues_the_epoch(sampler: Sampler) -> None:
    whole = list(sampler.batches(2))
    for start in range(len(whole) + 1):
        rest = list(sampler.batches(2, start))
        assert len(rest) == len(whole) - start
        for batch, again in zip(rest, whole[start:], strict=True):
            np.testing.assert_array_equal(batch, again)


def test_sequential_is_in_order() -> None:
    assert np.concatenate(list(Sequential(11, 4).batches(3))).tolist() == list(range(11))


def test_every_place_is_as_likely() -> None:
    firsts = np.array([Shuffle(5, 5, seed=0).order(epoch)[0] for epoch in range(2000)])
    counts = np.bincount(firsts, minlength=5)
    assert ((counts - 400) ** 2 / 400).sum() < 18.5  # chi-squared with 4 degrees of freedom, p = 0.001


def test_state_names_what_differs() -> None:
    sampler = Shuffle(50, 7, 1)
    sampler.load_state_dict(Shuffle(50, 7, 1).state_dict())
    with pytest.raises(ValueError, match="sampler state: seed: expected 1, received 2"):
        sampler.load_state_dict(Shuffle(50, 7, 2).state_dict())
    with pytest.raises(ValueError, match="sampler state: num_samples: expected 50, received 51"):
        sampler.load_state_dict(Shuffle(51, 7, 1).state_dict())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: Shuffle(10, 11),
            "batch_size: expected at most the 10 samples there are, or drop_last=False, received 11",
        ),
        (lambda: Shuffle(0, 1), "num_samples: expected 1 or more"),
        (lambda: Shuffle(5, 0), "batch_size: expected 1 or more"),
        (lambda: Shuffle(5, 1, seed=-1), "seed: expected 0 or more"),
        (lambda: Shuffle(5, 1).order(-1), "epoch: expected 0 or more"),
        (lambda: list(Shuffle(5, 2).batches(0, 3)), "start: expected a batch from 0 to 2, received 3"),
    ],
)
def test_refuses(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]


def test_small_data_need_no_full_batch() -> None:
    assert [len(batch) for batch in Shuffle(10, 11, drop_last=False).batches(0)] == [10]
