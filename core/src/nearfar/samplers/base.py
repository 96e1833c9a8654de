"""What samplers have in common: the protocol, the plan of an epoch, the state, checks of what they are given."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

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


class Planned(ABC):
    """Base of the samplers here: an epoch is planned as a whole, so that a start far into it costs no more than 0."""

    kept: ClassVar[tuple[str, ...]] = ()
    """attributes that decide the batches"""

    @abstractmethod
    def num_batches(self, epoch: int) -> int:
        """Batches of an epoch."""

    @abstractmethod
    def plan(self, epoch: int) -> Sequence[np.ndarray] | np.ndarray:
        """All batches of an epoch."""

    def batches(self, epoch: int, start: int = 0) -> Iterator[np.ndarray]:
        """int64 arrays of positions, from batch `start` of the epoch."""
        total = self.num_batches(epoch)
        expect(0 <= start <= total, "start", f"a batch from 0 to {total}", start)
        plan = self.plan(epoch)
        for number in range(start, total):
            yield plan[number]

    def state_dict(self) -> dict[str, Any]:
        """The arguments (of long ones a fingerprint), all there is: the batches follow from them and the epoch."""
        return {name: getattr(self, name) for name in self.kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Checks that the state is of the same batches; ValueError names what differs."""
        for name, value in self.state_dict().items():
            expect(state.get(name) == value, f"sampler state: {name}", repr(value), repr(state.get(name)))


class Slices(Sequence[np.ndarray]):
    """An order of positions cut into batches of one size, the last perhaps smaller."""

    def __init__(self, order: np.ndarray, batch_size: int) -> None:
        self.order, self.batch_size = order, batch_size

    def __len__(self) -> int:
        return -(-len(self.order) // self.batch_size)

    def __getitem__(self, number: Any) -> Any:
        return self.order[number * self.batch_size : (number + 1) * self.batch_size]


def generator(seed: int, epoch: int) -> np.random.Generator:
    """Draws that depend on seed and epoch alone."""
    expect(epoch >= 0, "epoch", "0 or more", epoch)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))


def check_batch(batch_size: int, seed: int) -> None:
    """ValueError unless the batch has samples and the seed is no negative number."""
    expect(batch_size >= 1, "batch_size", "1 or more", batch_size)
    expect(seed >= 0, "seed", "0 or more", seed)


def check_ids(name: str, ids: ArrayLike, ndim: int = 1) -> np.ndarray:
    """int64 array of ids; ValueError or TypeError when it has other dimensions, no rows, or no integers."""
    array = np.asarray(ids)
    expect(array.ndim == ndim and array.size > 0, name, f"{ndim} dimension(s), not empty", f"shape {array.shape}")
    expect(array.dtype.kind in "iu", name, "integers", array.dtype, TypeError)
    return array.astype(np.int64, copy=False)


def fingerprint(*arrays: np.ndarray) -> str:
    """A short digest of arrays, to tell whether a resumed run sees the same ones."""
    digest = hashlib.blake2b(digest_size=8)
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
