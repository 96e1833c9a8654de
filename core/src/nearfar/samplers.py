"""Which samples stand in which batch: a pure function of seed and epoch, so that a resumed run repeats its batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np

from nearfar.checks import expect


@runtime_checkable
class Sampler(Protocol):
    """Yields GLOBAL batches, arrays of positions in a source; each process takes its part of every one."""

    def num_batches(self, epoch: int) -> int:
        """Batches of an epoch."""
        ...

    def batches(self, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
        """int64 arrays of positions, from batch `start` of the epoch."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must agree with."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes up a state; ValueError when it is of another order of samples."""
        ...


class _Order:
    """Batches cut from an order of the samples."""

    def __init__(self, num_samples: int, batch_size: int, drop_last: bool) -> None:
        expect(num_samples >= 1, "num_samples", "1 or more", num_samples)
        expect(batch_size >= 1, "batch_size", "1 or more", batch_size)
        expect(
            not drop_last or batch_size <= num_samples, "batch_size",
            f"at most the {num_samples} samples there are, or drop_last=False", batch_size,
        )  # fmt: skip
        self.num_samples, self.batch_size, self.drop_last = num_samples, batch_size, drop_last

    def order(self, epoch: int) -> np.ndarray:
        return np.arange(self.num_samples, dtype=np.int64)

    def num_batches(self, epoch: int) -> int:
        """Batches of an epoch."""
        whole, rest = divmod(self.num_samples, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def batches(self, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
        """int64 arrays of positions, from batch `start` of the epoch."""
        total = self.num_batches(epoch)
        expect(0 <= start <= total, "start", f"a batch from 0 to {total}", start)
        order = self.order(epoch)
        for number in range(start, total):
            yield order[number * self.batch_size : (number + 1) * self.batch_size]

    def state_dict(self) -> dict[str, Any]:
        """The arguments, all there is: the order follows from them and the epoch."""
        return {name: getattr(self, name) for name in ("num_samples", "batch_size", "drop_last")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Checks that the state is of the same order; ValueError names what differs."""
        for name, value in self.state_dict().items():
            expect(state.get(name) == value, f"sampler state: {name}", repr(value), repr(state.get(name)))


class Shuffle(_Order):
    """Every sample once an epoch, in an order that (seed, epoch) alone decides.

    Args:
        num_samples: samples of the source.
        batch_size: samples of a batch over all processes.
        seed: 0 or more.
        drop_last: leave out a last batch that is smaller than the others.

    Raises:
        ValueError: drop_last with a batch larger than the data, of which nothing would be left.
    """

    def __init__(self, num_samples: int, batch_size: int, seed: int = 0, drop_last: bool = True) -> None:
        super().__init__(num_samples, batch_size, drop_last)
        expect(seed >= 0, "seed", "0 or more", seed)
        self.seed = seed

    def order(self, epoch: int) -> np.ndarray:
        """The permutation of an epoch, int64 [num_samples]."""
        expect(epoch >= 0, "epoch", "0 or more", epoch)
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, epoch]))).permutation(
            self.num_samples
        )

    def state_dict(self) -> dict[str, Any]:
        """The arguments, all there is: the order follows from them and the epoch."""
        return {**super().state_dict(), "seed": self.seed}


class Sequential(_Order):
    """Every sample once, in the order of the source; for evaluation.

    Args:
        num_samples: samples of the source.
        batch_size: samples of a batch over all processes; the last one may have fewer.
    """

    def __init__(self, num_samples: int, batch_size: int) -> None:
        super().__init__(num_samples, batch_size, drop_last=False)
