"""Sources side by side: every batch holds a stated number of each, and each is gone through at its own pace."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from nearfar.checks import expect
from nearfar.samplers._groups import Groups, interleave
from nearfar.samplers.base import Planned, check_batch, fingerprint
from nearfar.samplers.grouped import Length, num_batches


class Zipped(Planned):
    """Every batch takes `nums[g]` samples of source g, which is shuffled anew when it is through, not with the epoch.

    A source of 1000 samples that gives 100 to a batch is gone through every 10 batches, be an epoch 3 or 300 of them
    long: after an epoch of 3 the next one begins with its batch 4.

    Args:
        groups: integers [N], of the groups or of the sources (`groups_of`); negative: never drawn.
        nums: samples of a batch from each group, ascending by id.
        length: batches of an epoch: as all samples would fill ("total"), as the group that is through first
            ("shortest") or last ("longest") has, or as the group of this id has.
        seed: 0 or more.

    Raises:
        ValueError: numbers that do not fit the groups; a group with fewer samples than its number.

    Attributes:
        batch_size: samples of a batch over all processes, the sum of `nums`.

    Notes: sources are spread evenly over a batch, so that every process and every accumulated part gets its share of
        each. What does not fill a source's places is left out of that pass, so no sample comes twice in a batch. Where
        numbers may be shares of one data set's groups, and each epoch stands for itself, take `MixedGroups`.
    """

    kept = ("batch_size", "nums", "length", "seed", "data")

    def __init__(
        self, groups: ArrayLike, nums: Sequence[int], *, length: Length | int = "longest", seed: int = 0
    ) -> None:
        self._groups = Groups("groups", groups)
        counts = self._groups.counts
        whole = len(nums) == len(counts) and all(isinstance(n, (int, np.integer)) and n >= 1 for n in nums)
        expect(whole, "nums", f"{len(counts)} whole numbers of 1 or more, one a group", list(nums))
        self.nums: list[int] = [int(num) for num in nums]
        fits = bool((np.asarray(self.nums) <= counts).all())
        expect(fits, "nums", f"at most as many a group as its samples, {counts.tolist()}", self.nums)
        self.batch_size, self.length, self.seed = sum(self.nums), length, seed
        check_batch(self.batch_size, seed)
        self.data = fingerprint(self._groups.index)
        self._num = num_batches(length, self._groups, np.asarray(self.nums))

    def num_batches(self, epoch: int) -> int:
        """Batches of an epoch."""
        return self._num

    def plan(self, epoch: int) -> np.ndarray:
        """All batches of an epoch, int64 [batches, batch_size]."""
        expect(epoch >= 0, "epoch", "0 or more", epoch)
        place = interleave(np.asarray(self.nums))
        batches = np.empty((self._num, self.batch_size), dtype=np.int64)
        for number, num in enumerate(self.nums):
            batches[:, place == number] = self._rows(number, num, epoch * self._num)
        return batches

    def _rows(self, number: int, num: int, first: int) -> np.ndarray:
        """Rows `first` to `first + batches` of a group's endless stream, int64 [batches, num]."""
        start, count = int(self._groups.starts[number]), int(self._groups.counts[number])
        members = self._groups.members[start : start + count]
        per_pass = count // num
        passes = range(first // per_pass, (first + self._num - 1) // per_pass + 1)
        rows = [
            self._generator(number, turn).permutation(members)[: per_pass * num].reshape(-1, num) for turn in passes
        ]
        skip = first - passes.start * per_pass
        return np.concatenate(rows)[skip : skip + self._num]

    def _generator(self, number: int, turn: int) -> np.random.Generator:
        """Draws of one pass through one group."""
        entropy = [self.seed, int(self._groups.values[number]), turn]
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))
