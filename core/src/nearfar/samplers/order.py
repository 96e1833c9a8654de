"""Every sample once: shuffled for training, in order for evaluation."""

from __future__ import annotations

import numpy as np

from nearfar.checks import expect
from nearfar.samplers.base import Planned, Slices, check_batch, generator


class Ordered(Planned):
    """Batches cut from an order of the samples."""

    kept = ("num_samples", "batch_size", "drop_last")

    def __init__(self, num_samples: int, batch_size: int, drop_last: bool, seed: int = 0) -> None:
        expect(num_samples >= 1, "num_samples", "1 or more", num_samples)
        check_batch(batch_size, seed)
        expect(
            not drop_last or batch_size <= num_samples, "batch_size",
            f"at most the {num_samples} samples there are, or drop_last=False", batch_size,
        )  # fmt: skip
        self.num_samples, self.batch_size, self.drop_last, self.seed = num_samples, batch_size, drop_last, seed

    def order(self, epoch: int) -> np.ndarray:
        """The positions of an epoch, int64 [num_samples]."""
        return np.arange(self.num_samples, dtype=np.int64)

    def num_batches(self, epoch: int) -> int:
        """Batches of an epoch."""
        whole, rest = divmod(self.num_samples, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def plan(self, epoch: int) -> Slices:
        """All batches of an epoch."""
        return Slices(self.order(epoch), self.batch_size)


class Shuffle(Ordered):
    """Every sample once an epoch, in an order that (seed, epoch) alone decides.

    Args:
        num_samples: samples of the source.
        batch_size: samples of a batch over all processes.
        seed: 0 or more.
        drop_last: leave out a last batch that is smaller than the others.

    Raises:
        ValueError: drop_last with a batch larger than the data, of which nothing would be left.
    """

    kept = (*Ordered.kept, "seed")

    def __init__(self, num_samples: int, batch_size: int, seed: int = 0, drop_last: bool = True) -> None:
        super().__init__(num_samples, batch_size, drop_last, seed)

    def order(self, epoch: int) -> np.ndarray:
        """The permutation of an epoch, int64 [num_samples]."""
        return generator(self.seed, epoch).permutation(self.num_samples)


class Sequential(Ordered):
    """Every sample once, in the order of the source; for evaluation.

    Args:
        num_samples: samples of the source.
        batch_size: samples of a batch over all processes; the last one may have fewer.
    """

    def __init__(self, num_samples: int, batch_size: int) -> None:
        super().__init__(num_samples, batch_size, drop_last=False)
