"""Every sample once, in an order that reads shard after shard rather than here and there."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from nearfar.checks import expect
from nearfar.samplers.base import check_ids, fingerprint, generator
from nearfar.samplers.order import Ordered


class Shards(Ordered):
    """A shuffle whose samples come from few shards at a time: of shards, and of samples within a moving window.

    An epoch's shards stand in random order one behind another. That row is cut into `lanes` equal parts, whose samples
    are shuffled within a window; every batch takes as many samples of each lane. So a batch mixes about `lanes` shards,
    every sample comes once, all lanes end together whatever the shards' sizes, and a process that takes its part of
    each batch reads the shards of its own lanes: only the up to `lanes - 1` shards at a cut are read by two.

    Args:
        shard: ids [N], the shard of every sample; the samples of a shard stand side by side.
        batch_size: samples of a batch over all processes, a multiple of `lanes`.
        lanes: places that are read at the same time; a multiple of the number of processes keeps each at its own.
        window: samples of a lane that change places with one another, at most; 1: the shards alone are shuffled.
        seed: 0 or more.
        drop_last: leave out a last batch that is smaller than the others.

    Raises:
        ValueError: a batch size that is no multiple of the lanes, or larger than the data with drop_last.

    Notes: a sample moves by at most `window` places in its lane: at place t, with u uniform in [0, 1), samples are
        sorted by t + window * u. This is no uniform permutation; `Shuffle` is one, at the same cost wherever reading at
        random places is as fast as reading in order. O(N log N) an epoch, 0.1 s for a million samples.
    """

    kept = (*Ordered.kept, "seed", "lanes", "window", "data")

    def __init__(
        self,
        shard: ArrayLike,
        batch_size: int,
        *,
        lanes: int = 8,
        window: int = 4096,
        seed: int = 0,
        drop_last: bool = True,
    ) -> None:
        ids = check_ids("shard", shard)
        super().__init__(len(ids), batch_size, drop_last, seed)
        expect(lanes >= 1, "lanes", "1 or more", lanes)
        expect(window >= 1, "window", "1 or more", window)
        expect(batch_size % lanes == 0, "batch_size", f"a multiple of the {lanes} lanes", batch_size)
        self.lanes, self.window, self.data = lanes, window, fingerprint(ids)
        self._starts = np.flatnonzero(np.diff(ids, prepend=ids[0] - 1))

    def order(self, epoch: int) -> np.ndarray:
        """The positions of an epoch, int64 [num_samples]."""
        random = generator(self.seed, epoch)
        sizes = np.diff(self._starts, append=self.num_samples)
        shards = random.permutation(len(sizes))
        # Sample by sample along the permuted shards: where its shard begins, and how far into it.
        before = np.cumsum(sizes[shards]) - sizes[shards]
        row = np.repeat(self._starts[shards] - before, sizes[shards]) + np.arange(self.num_samples)
        parts = [
            part[np.argsort(np.arange(len(part)) + self.window * random.random(len(part)), kind="stable")]
            for part in np.array_split(row, self.lanes)
        ]
        each = self.batch_size // self.lanes
        whole = self.num_samples // self.lanes // each  # full batches; the parts differ by one sample at most
        body = np.stack([part[: whole * each] for part in parts]).reshape(self.lanes, whole, each)
        return np.concatenate([body.swapaxes(0, 1).ravel(), *(part[whole * each :] for part in parts)])
