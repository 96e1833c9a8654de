"""So many classes of so many samples each, on one level or along a path of levels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from nearfar.checks import expect
from nearfar.samplers._groups import Groups
from nearfar.samplers.base import Planned, check_batch, check_ids, fingerprint, generator


class Hierarchical(Planned):
    """Batches that branch alike: so many nodes of the top level, of each so many nodes below, ..., so many samples.

    With nums = (4, 2, 3) a batch has 4 coarse classes, 2 fine ones of each and 3 samples of each of those: every sample
    has 2 partners on the fine level and 5 on the coarse one.

    Args:
        paths: integers [N, H], column 0 the coarsest level; on a level the same are samples whose path down to it is
            the same, so that ids need only be unique below their parent. Rows with a negative id are never drawn.
        nums: H + 1 numbers, nodes per parent on every level and samples per node of the finest.
        length: batches of an epoch; 0: as many as the samples would fill.
        seed: 0 or more.

    Raises:
        ValueError: more nodes of the top level asked for than there are; numbers that do not fit the paths.

    Notes:
        Top-level nodes of a batch differ. Every child of a node comes once before any comes again, and so does every
        sample of a node; a node with fewer children than asked for gives some of them twice, one with fewer samples
        repeats these. Samples of a node stand side by side. An epoch is planned as a whole, O(n log n).

    Source: Zhang, Xu, Xiong, Ramaiah, "Use All The Labels", CVPR 2022, for positives on every level of a batch.
    """

    kept = ("nums", "length", "seed", "data")

    def __init__(self, paths: ArrayLike, nums: Sequence[int], *, length: int = 0, seed: int = 0) -> None:
        array = check_ids("paths", paths, ndim=2)
        self.nums = [int(num) for num in nums]
        expect(len(self.nums) == array.shape[1] + 1, "nums", f"{array.shape[1] + 1} numbers, for the levels of paths "
               "and for samples", list(nums))  # fmt: skip
        expect(min(self.nums) >= 1, "nums", "numbers of 1 or more", list(nums))
        expect(length >= 0, "length", "0 or more batches", length)
        self.batch_size = math.prod(self.nums)
        check_batch(self.batch_size, seed)
        self.seed, self.data = seed, fingerprint(array)
        self._levels = _levels(array)
        top, drawn = int(self._levels[0].counts[0]), len(self._levels[-1].members)
        expect(self.nums[0] <= top, "nums", f"at most the {top} classes there are", self.nums[0])
        self.length = length or max(drawn // self.batch_size, 1)

    def num_batches(self, epoch: int) -> int:
        """Batches of an epoch."""
        return self.length

    def plan(self, epoch: int) -> np.ndarray:
        """All batches of an epoch, int64 [batches, samples]."""
        rng = generator(self.seed, epoch)
        nodes = np.zeros(self.length, dtype=np.int64)  # the root, once a batch
        for level, num in zip(self._levels, self.nums, strict=True):
            nodes = level.fill(rng, nodes, num).ravel()
        return nodes.reshape(self.length, self.batch_size)


class PerClass(Hierarchical):
    """P classes of K samples in every batch, all classes equally often.

    Args:
        labels: integers [N]; samples with a negative one are never drawn.
        num_classes_per_batch: P, different ones.
        num_per_class: K.
        length: batches of an epoch; 0: as many as the samples would fill.
        seed: 0 or more.

    Raises:
        ValueError: P above the number of classes that have samples.

    Notes: as `Hierarchical` with one level: each class comes once before any comes again (but for the rest of a round
        that fills no batch), and each sample of a class likewise; a class with fewer than K samples repeats them.
    """

    def __init__(
        self, labels: ArrayLike, num_classes_per_batch: int, num_per_class: int, *, length: int = 0, seed: int = 0
    ) -> None:
        expect(num_classes_per_batch >= 1, "num_classes_per_batch", "1 or more", num_classes_per_batch)
        expect(num_per_class >= 1, "num_per_class", "1 or more", num_per_class)
        array = check_ids("labels", labels)
        num = len(np.unique(array[array >= 0]))
        expect(num_classes_per_batch <= num, "num_classes_per_batch", f"at most the {num} classes there are",
               num_classes_per_batch)  # fmt: skip
        super().__init__(array[:, None], (num_classes_per_batch, num_per_class), length=length, seed=seed)


def _levels(paths: np.ndarray) -> list[Groups]:
    """Nodes of the top level below the root, nodes of every level below their parents, samples below the leaves."""
    kept = np.flatnonzero((paths >= 0).all(1))
    expect(len(kept) > 0, "paths", "at least one path without negative ids", "none")
    node = np.zeros(len(kept), dtype=np.int64)
    levels = []
    for column in paths[kept].T:
        _, compact = np.unique(column, return_inverse=True)
        _, first, child = np.unique(node * (compact.max() + 1) + compact, return_index=True, return_inverse=True)
        levels.append(Groups("paths", node[first]))
        node = child
    of_sample = np.full(len(paths), -1, dtype=np.int64)
    of_sample[kept] = node
    return [*levels, Groups("paths", of_sample)]
