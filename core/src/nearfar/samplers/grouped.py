"""Batches by group: each from one group alone, or each from all of them in fixed proportions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from nearfar.checks import expect, expect_choice
from nearfar.samplers._groups import Groups, apportion, interleave
from nearfar.samplers.base import Planned, check_batch, fingerprint, generator

Order = Literal["shuffle", "interleave"]
Length = Literal["total", "shortest", "longest"]


def groups_of(sizes: Sequence[int]) -> np.ndarray:
    """The number of its source for every position of sources that stand one after another, int64 [sum of sizes]."""
    expect(len(sizes) > 0 and min(sizes) >= 0, "sizes", "numbers of 0 or more", list(sizes))
    return np.repeat(np.arange(len(sizes), dtype=np.int64), sizes)


class SingleGroup(Planned):
    """Every batch from one group, so that no negative can be told from its anchor by its group.

    Args:
        groups: integers [N]: data set, style, cluster, bucket of lengths; samples with a negative one are never drawn.
        batch_size: samples of a batch over all processes.
        shares: one number above 0 a group, ascending by id, to which the groups' numbers of batches are in proportion;
            None: by size and power. A group too small for a batch gets none.
        power: without shares, batches are in proportion to a group's size to this power: 1 every sample once an epoch,
            0 every group equally often, between them the tempered shares. The total is always that of power 1.
        order: batches of all groups shuffled, or every group's spread evenly over the epoch (of equal groups: taken in
            turn).
        drop_last: leave out what does not fill a batch, so also groups smaller than one; otherwise each pass of a group
            ends in a smaller batch.
        seed: 0 or more.

    Raises:
        ValueError: drop_last and no group that fills a batch.

    Attributes:
        nums: batches of an epoch from every group, ascending by id.
        num_left_out: samples that an epoch of power 1 leaves out.

    Notes: with other shares a group is gone through in one random order after another; no sample comes twice in a
        batch.

    Source: Cui et al., "Contrastive vision-language pre-training with limited resources", ECCV 2022 (one data set a
        batch); Zhang et al., "Learning the unlearned", ECCV 2024 (one cluster a batch).
    """

    kept = ("batch_size", "nums", "order", "drop_last", "seed", "data")

    def __init__(
        self,
        groups: ArrayLike,
        batch_size: int,
        *,
        shares: Sequence[float] | None = None,
        power: float = 1.0,
        order: Order = "shuffle",
        drop_last: bool = True,
        seed: int = 0,
    ) -> None:
        check_batch(batch_size, seed)
        expect_choice("order", order, get_args(Order))
        self.batch_size, self.order, self.drop_last, self.seed = batch_size, order, drop_last, seed
        self._groups = Groups("groups", groups)
        self.data = fingerprint(self._groups.index)
        counts = self._groups.counts
        once = counts // batch_size if drop_last else -(-counts // batch_size)
        expect(bool(once.any()), "batch_size", f"at most the {counts.max()} samples of the largest group, or "
               "drop_last=False", batch_size)  # fmt: skip
        weights = np.where(once > 0, _weights(counts, shares, power), 0.0)
        self._takes = once if shares is None and power == 1 else apportion(int(once.sum()), weights)
        self.nums: list[int] = self._takes.tolist()
        self.num_left_out = int((counts - once * batch_size).sum()) if drop_last else 0

    def num_batches(self, epoch: int) -> int:
        """Batches of an epoch."""
        return int(self._takes.sum())

    def plan(self, epoch: int) -> list[np.ndarray]:
        """All batches of an epoch."""
        rng = generator(self.seed, epoch)
        rows = self._groups.draw(rng, self._takes, self.batch_size, short=not self.drop_last)
        if self.order == "shuffle":
            rows = rows[rng.permutation(len(rows))]
        else:
            by_group, rows = rows, np.empty_like(rows)
            rows[np.argsort(interleave(self._takes), kind="stable")] = by_group
        return list(rows) if self.drop_last else [row[row >= 0] for row in rows]


class MixedGroups(Planned):
    """Every batch from all groups, with the same number of samples from each.

    Args:
        groups: integers [N], of the groups or of the sources (`groups_of`); negative: never drawn.
        batch_size: samples of a batch over all processes.
        shares: one number above 0 a group, ascending by id, scaled to sum to one; None: by size and power.
        power: without shares, a group's is in proportion to its size to this power: 1 as in the data, 0 equal.
        length: batches of an epoch: as many as all samples would fill ("total"), until the first group would repeat
            itself ("shortest"), until no group has anything new ("longest"), or until the group of this id is through.
        seed: 0 or more.

    Raises:
        ValueError: a group that would get no place in a batch, or more than it has samples; shares that do not fit.

    Attributes:
        nums: samples of a batch from every group, ascending by id.

    Notes: groups are spread evenly over a batch, so that every process and every accumulated part gets its share of
        each. A group is gone through in one random order after another, what does not fill its places in a batch left
        out of that pass, so no sample comes twice in a batch.
    """

    kept = ("batch_size", "nums", "length", "seed", "data")

    def __init__(
        self,
        groups: ArrayLike,
        batch_size: int,
        *,
        shares: Sequence[float] | None = None,
        power: float = 1.0,
        length: Length | int = "total",
        seed: int = 0,
    ) -> None:
        check_batch(batch_size, seed)
        self.batch_size, self.length, self.seed = batch_size, length, seed
        self._groups = Groups("groups", groups)
        self.data = fingerprint(self._groups.index)
        counts = self._groups.counts
        nums = apportion(batch_size, _weights(counts, shares, power))
        self.nums: list[int] = nums.tolist()
        expect(min(self.nums) >= 1, "batch_size", "a place for every group (or more even shares)", f"{batch_size}, of "
               f"which the groups get {self.nums}")  # fmt: skip
        expect(bool((nums <= counts).all()), "batch_size", f"at most as many places a group as its samples, "
               f"{counts.tolist()}", self.nums)  # fmt: skip
        self._num = num_batches(length, self._groups, nums)

    def num_batches(self, epoch: int) -> int:
        """Batches of an epoch."""
        return self._num

    def plan(self, epoch: int) -> np.ndarray:
        """All batches of an epoch, int64 [batches, batch_size]."""
        rng = generator(self.seed, epoch)
        group = interleave(np.asarray(self.nums))
        batches = np.empty((self._num, self.batch_size), dtype=np.int64)
        for number, num in enumerate(self.nums):
            takes = np.zeros(len(self.nums), dtype=np.int64)
            takes[number] = self._num
            batches[:, group == number] = self._groups.draw(rng, takes, num)
        return batches


def num_batches(length: Length | int, groups: Groups, nums: np.ndarray) -> int:
    """Batches of an epoch in which every batch takes `nums` samples of the groups."""
    alone = groups.counts // nums
    if isinstance(length, int):
        at = np.flatnonzero(groups.values == length)
        expect(len(at) == 1, "length", f"the id of a group, one of {groups.values.tolist()[:20]}", length)
        return int(alone[at[0]])
    expect_choice("length", length, get_args(Length))
    total = max(int(groups.counts.sum()) // int(nums.sum()), 1)
    return {"total": total, "shortest": int(alone.min()), "longest": int(alone.max())}[length]


def _weights(counts: np.ndarray, shares: Sequence[float] | None, power: float) -> np.ndarray:
    """What groups of these sizes get their share by."""
    expect(0 <= power <= 1, "power", "a number in [0, 1]", power)
    expect(shares is None or power == 1, "power", "1 beside shares", power)
    weights = counts.astype(np.float64) ** power if shares is None else np.asarray(shares, dtype=np.float64)
    good = weights.shape == counts.shape and bool(np.isfinite(weights).all() and (weights > 0).all())
    expect(good, "shares", f"{len(counts)} finite numbers above 0, one a group", shares)
    return weights
