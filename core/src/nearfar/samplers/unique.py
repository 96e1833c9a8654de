"""Batches in which no two samples share a key, so that no false negative stands beside its twin."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from nearfar.checks import expect
from nearfar.samplers.base import Planned, check_batch, check_ids, fingerprint, generator


def hash_keys(*columns: Iterable[str | bytes | int | None]) -> np.ndarray:
    """Numbers that stand for texts, file names or ids: equal values have equal numbers, whatever their column.

    Args:
        *columns: equally long, e.g. the captions and the image names of all samples; None: the sample has no key there.

    Returns:
        int64 [N, columns] of 0 or more, -1 for None; the same on every machine and in every process.

    Raises:
        ValueError: no column, or columns of unequal length.
        TypeError: a value of another type.

    Notes: 63 bits of BLAKE2b, about 1 us a value. Of 10^6 different texts any two share a number with probability
        5e-8, which would only keep them out of one batch.
    """
    expect(len(columns) > 0, "columns", "at least one", "none")
    hashed = [np.fromiter(map(_hash, column), dtype=np.int64) for column in columns]
    lengths = [len(column) for column in hashed]
    expect(len(set(lengths)) == 1, "columns", "one length", lengths)
    return np.stack(hashed, axis=1)


def _hash(value: str | bytes | int | None) -> int:
    if value is None:
        return -1
    if isinstance(value, str):
        value = b"s" + value.encode("utf-8", "surrogatepass")
    elif isinstance(value, bytes):
        value = b"b" + value
    else:
        expect(isinstance(value, (int, np.integer)), "columns", "str, bytes, int or None", repr(value), TypeError)
        value = b"i%d" % value
    return int.from_bytes(hashlib.blake2b(value, digest_size=8).digest(), "little") >> 1


class NoDuplicates(Planned):
    """A shuffle in which no two samples of a batch share any of their keys.

    Args:
        keys: integers [N] or [N, M], e.g. from `hash_keys`; equal numbers are the same key in every column, negative
            ones are none.
        batch_size: samples of a batch over all processes.
        seed: 0 or more.
        drop_last: leave out batches that are smaller than the others.

    Raises:
        ValueError: drop_last with a batch larger than the data.

    Notes:
        Samples are taken in the order of `Shuffle`, each into the first batch with a free place that comes after every
        batch holding one of its keys: a clash moves the later sample to a later batch. A key that k samples share needs
        k batches, so frequent keys leave short batches at the end, and the number of batches may differ from epoch to
        epoch. Time O(N) for the shuffle and O(r alpha(r)) for the r samples with a repeated key: about 1 us each,
        whatever the batch size. Memory O(N).
    """

    kept = ("batch_size", "drop_last", "seed", "data")

    def __init__(self, keys: ArrayLike, batch_size: int, *, seed: int = 0, drop_last: bool = True) -> None:
        array = np.asarray(keys)
        array = check_ids("keys", array, ndim=2 if array.ndim == 2 else 1).reshape(len(array), -1)
        check_batch(batch_size, seed)
        expect(not drop_last or batch_size <= len(array), "batch_size", f"at most the {len(array)} samples there are, "
               "or drop_last=False", batch_size)  # fmt: skip
        self.batch_size, self.drop_last, self.seed, self.data = batch_size, drop_last, seed, fingerprint(array)
        _, inverse, counts = np.unique(array, return_inverse=True, return_counts=True)
        inverse = inverse.reshape(array.shape)
        repeated = (counts[inverse] > 1) & (array >= 0)
        names, codes = np.unique(inverse[repeated], return_inverse=True)
        self._num_keys = len(names)
        self._codes = np.full(array.shape, -1, dtype=np.int64)
        self._codes[repeated] = codes
        self._clashes = np.asarray(repeated.any(axis=1))
        self._planned: tuple[int, list[np.ndarray]] = (-1, [])

    def num_batches(self, epoch: int) -> int:
        """Batches of an epoch; plans it."""
        return len(self.plan(epoch))

    def plan(self, epoch: int) -> list[np.ndarray]:
        """All batches of an epoch; the last plan is kept, since its length is not known without it."""
        if self._planned[0] != epoch:
            self._planned = (epoch, self._make(epoch))
        return self._planned[1]

    def _make(self, epoch: int) -> list[np.ndarray]:
        order = generator(self.seed, epoch).permutation(len(self._clashes))
        clashes = self._clashes[order]
        places = np.flatnonzero(clashes)
        before = np.diff(places, prepend=-1) - 1  # samples without a repeated key since the last with one
        rest = len(order) - len(places) - int(before.sum())
        batch = np.empty(len(order), dtype=np.int64)
        batch[places], singles = _first_fit(
            self._codes[order[places]].T.tolist(), before.tolist(), rest, self._num_keys, self.batch_size
        )
        batch[~clashes] = np.repeat(np.arange(len(singles)), singles)
        sizes = np.bincount(batch)
        batches = np.split(order[np.argsort(batch, kind="stable")], np.cumsum(sizes)[:-1])
        return [one for one in batches if len(one) == self.batch_size] if self.drop_last else batches


def _first_fit(
    codes: Sequence[Sequence[int]], before: Sequence[int], rest: int, num_keys: int, batch_size: int
) -> tuple[list[int], list[int]]:
    """Batches of the samples with repeated keys, and how many of the others stand in every batch.

    Args:
        codes: one sequence a column of keys, -1 for one that does not repeat.
        before: others that come before each of these samples; `rest` after the last.
    """
    free, singles, jump = [batch_size], [0], [0]  # jump: itself for a batch with a free place, or a later batch
    after = [0] * num_keys  # first batch behind all that hold a key

    def place_from(batch: int, most: int) -> tuple[int, int]:
        """Takes up to `most` places in the first batch from `batch` on that has any; the batch, and how many."""
        while True:
            while batch >= len(free):
                free.append(batch_size)
                singles.append(0)
                jump.append(len(jump))
            there = jump[batch]
            if there == batch:
                break
            if there < len(jump):  # halves the way for the next one
                jump[batch] = jump[there]
            batch = there
        taken = min(most, free[batch])
        free[batch] -= taken
        if not free[batch]:
            jump[batch] = batch + 1
        return batch, taken

    def place_others(num: int, first: int) -> int:
        while num:
            first, taken = place_from(first, num)
            singles[first] += taken
            num -= taken
        return first

    placed, first = [], 0  # no batch before the first has a free place
    for num, *sample in zip(before, *codes, strict=True):
        if num:
            first = place_others(num, first)
        start = first
        for code in sample:
            if code >= 0 and after[code] > start:
                start = after[code]
        batch, _ = place_from(start, 1)
        for code in sample:
            if code >= 0:
                after[code] = batch + 1
        placed.append(batch)
    place_others(rest, first)
    return placed, singles
