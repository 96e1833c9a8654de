"""Batches of samples of about the same length, so that little is padded."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from nearfar.checks import expect
from nearfar.samplers.base import Planned, check_batch, check_ids, fingerprint, generator


class ByLength(Planned):
    """Every sample once an epoch: shuffled, sorted by length within windows, cut into batches, and those shuffled.

    Args:
        lengths: int64 [N], tokens or words of every sample, 1 or more.
        batch_size: samples of a batch over all processes, at most.
        window: samples that are sorted together; more waste less and mix less.
        budget: largest size times longest length of a batch; 0: every batch has batch_size samples.
        seed: 0 or more.
        drop_last: leave out what is left when all batches have batch_size samples; not with a budget.

    Raises:
        ValueError: a sample longer than the budget; a batch larger than the data.
    """

    kept = ("digest", "batch_size", "window", "budget", "seed", "drop_last")

    def __init__(
        self,
        lengths: ArrayLike,
        batch_size: int,
        *,
        window: int = 4096,
        budget: int = 0,
        seed: int = 0,
        drop_last: bool = True,
    ) -> None:
        self.lengths = check_ids("lengths", lengths)
        check_batch(batch_size, seed)
        expect(int(self.lengths.min()) >= 1, "lengths", "1 or more", int(self.lengths.min()))
        expect(window >= 1, "window", "1 or more", window)
        longest = int(self.lengths.max())
        expect(budget == 0 or budget >= longest, "budget", f"0, or at least the longest length {longest}", budget)
        drop_last = drop_last and not budget
        expect(
            not drop_last or batch_size <= len(self.lengths), "batch_size",
            f"at most the {len(self.lengths)} samples there are, or drop_last=False", batch_size,
        )  # fmt: skip
        self.batch_size, self.window, self.budget = batch_size, window, budget
        self.seed, self.drop_last, self.digest = seed, drop_last, fingerprint(self.lengths)
        self._planned: tuple[int, list[np.ndarray]] = (-1, [])

    def num_batches(self, epoch: int) -> int:
        """Batches of an epoch; with a budget no two epochs need have as many."""
        return len(self.plan(epoch))

    def plan(self, epoch: int) -> list[np.ndarray]:
        """All batches of an epoch."""
        if self._planned[0] != epoch:
            self._planned = (epoch, self._plan(epoch))
        return self._planned[1]

    def _plan(self, epoch: int) -> list[np.ndarray]:
        draw = generator(self.seed, epoch)
        order = draw.permutation(len(self.lengths))
        batches: list[np.ndarray] = []
        rest = np.zeros(0, dtype=np.int64)
        for start in range(0, len(order), self.window):
            part = np.concatenate([rest, order[start : start + self.window]])
            part = part[np.argsort(-self.lengths[part], kind="stable")]
            ends = self._ends(part)
            last = start + self.window >= len(order)
            whole = ends if last else ends[:-1]  # the last of a window may be a part, and goes on in the next
            batches += np.split(part, whole)[: len(whole)]
            rest = part[whole[-1] if len(whole) else 0 :]
        if self.drop_last:
            batches = [batch for batch in batches if len(batch) == self.batch_size]
        return [batches[i] for i in draw.permutation(len(batches))]

    def _ends(self, part: np.ndarray) -> list[int]:
        """Where batches of positions sorted from the longest end."""
        ends, start = [], 0
        while start < len(part):
            size = self.batch_size
            if self.budget:
                size = min(size, self.budget // int(self.lengths[part[start]]))
            start = min(start + size, len(part))
            ends.append(start)
        return ends
