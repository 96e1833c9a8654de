"""Batches of one process, the same whatever the number of workers."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from nearfar.batch import Batch, collate, pin, take
from nearfar.checks import expect
from nearfar.data.source import BadSample, Fault, Source, Subset, TooManyFaults, allowed_faults, column, whole
from nearfar.data.wrapped import on_pass
from nearfar.samplers import Sampler


class Loader:
    """Reads the batches that a sampler names.

    A sample that cannot be read is replaced by the next readable one of the source (of several as one: of its own),
    which keeps its own index; faults are counted and named. Sources with `batch(positions)` are read a batch at a time.

    Args:
        source: raw samples.
        sampler: global batches of positions in the source.
        workers: processes that read ahead; 0 reads in this one.
        seed: of random transforms in a wrapped dataset.
        max_bad_share: share of the source's samples that may turn out unreadable, one in any case unless it is 0.
        rank: number of this process.
        world: processes; each takes its part of every global batch, uneven where it does not divide.
    """

    def __init__(
        self,
        source: Source,
        sampler: Sampler,
        *,
        workers: int = 0,
        seed: int = 0,
        max_bad_share: float = 0.01,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        expect(len(source) > 0, "source", "at least one sample", f"{source.name} with none")
        expect(workers >= 0, "workers", "0 or more", workers)
        expect(seed >= 0, "seed", "0 or more", seed)
        expect(0 <= max_bad_share <= 1, "max_bad_share", "a number in [0, 1]", max_bad_share)
        expect(0 <= rank < world, "rank", f"a number from 0 to {world - 1}", rank)
        self.source, self.sampler, self.workers, self.seed = source, sampler, workers, seed
        self.max_bad_share, self.rank, self.world = max_bad_share, rank, world
        self._faults: dict[int, Fault] = {}

    @property
    def faults(self) -> list[Fault]:
        """Samples found unreadable so far, each once, in the order they were met."""
        return list(self._faults.values())

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This process's part of every global batch of an epoch, from batch `start`; a part may be empty.

        Raises:
            TooManyFaults: more samples are unreadable than max_bad_share allows.
        """
        parts = (np.array_split(batch, self.world)[self.rank] for batch in self.sampler.batches(epoch, start))
        reader = _Reader(self.source, self.seed, epoch, allowed_faults(self.max_bad_share, len(self.source)))
        read = self._read(reader, parts) if self.workers else map(reader.__getitem__, parts)
        for batch, faults in read:
            for fault in faults:
                self._faults.setdefault(fault.index, fault)
            if len(self._faults) > reader.allowed or batch is None:
                raise TooManyFaults(self.faults, len(self.source), self.max_bad_share)
            yield pin(batch)

    def _read(self, reader: _Reader, parts: Iterator[np.ndarray]) -> Iterator[tuple[Batch | None, list[Fault]]]:
        loader: Any = DataLoader(
            reader,
            batch_size=None,  # the reader takes a whole batch of positions at a time
            sampler=parts,  # type: ignore[arg-type]
            num_workers=self.workers,
            collate_fn=_unchanged,
            worker_init_fn=_leave_interrupts,
            # Without a generator of its own it would draw from, and so move, the state of the main process.
            generator=torch.Generator().manual_seed(self.seed),
        )
        batches = iter(loader)
        try:
            yield from batches
        finally:
            # Left to the garbage collector after an error or interrupt, whose traceback holds it, it would first lose
            # its queues and then wait seconds for workers that hear nothing.
            batches._shutdown_workers()


class _Reader(Dataset):
    """Positions -> (batch, faults); the batch is None when there are too many faults."""

    def __init__(self, source: Source, seed: int, epoch: int, allowed: int) -> None:
        self.source, self.seed, self.epoch, self.allowed = source, seed, epoch, allowed

    def __getitem__(self, positions: np.ndarray) -> tuple[Batch | None, list[Fault]]:
        faults: dict[int, Fault] = {}
        with on_pass(self.seed, self.epoch):
            # A part without samples has the fields of a batch of one.
            batch = self._batch(positions if len(positions) else np.zeros(1, dtype=np.int64), faults)
        return batch if len(positions) or batch is None else take(batch, []), list(faults.values())

    def _batch(self, positions: np.ndarray, faults: dict[int, Fault]) -> Batch | None:
        whole, within = _whole(self.source, positions)
        if hasattr(whole, "batch"):
            with contextlib.suppress(BadSample):  # then one by one, where it is met again and replaced
                return whole.batch(within)
        samples = []
        for position in positions.tolist():
            sample = self._sample(position, faults)
            if sample is None:
                return None
            samples.append(sample)
        return collate(samples)

    def _sample(self, position: int, faults: dict[int, Fault]) -> dict[str, Any] | None:
        """The sample, or the next one that can be read; None when there are too many faults."""
        for _ in range(len(self.source)):
            try:
                return self.source[position]
            except BadSample as bad:
                faults.setdefault(bad.fault.index, bad.fault)
                if len(faults) > self.allowed:
                    return None
                position = self._after(position)
        return None

    def _after(self, position: int) -> int:
        """The next position, in a ring; of several sources as one the next of the same source."""
        if not hasattr(whole(self.source), "names"):
            return (position + 1) % len(self.source)
        group = column(self.source, "group")
        own = np.flatnonzero(group == group[position])
        return int(own[(np.searchsorted(own, position) + 1) % len(own)])


def _whole(source: Source, positions: np.ndarray) -> tuple[Any, np.ndarray]:
    """The source under nested subsets, and the positions in it."""
    while isinstance(source, Subset):
        source, positions = source.source, source.positions[positions]
    return source, positions


def _unchanged(value: Any) -> Any:
    return value


def _leave_interrupts(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal; the main process decides what becomes of it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
