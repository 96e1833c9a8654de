"""Images decoded once into a uint8 file that is mapped into memory."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from nearfar.batch import Batch, Ragged
from nearfar.caches import alone, cache_folder
from nearfar.checks import expect
from nearfar.data.arrays import from_columns
from nearfar.data.source import BadSample, Fault, Source, TooManyFaults, allowed_faults, digest

log = logging.getLogger(__name__)

PIXELS, TABLE, VERSION = "pixels.bin", "table.safetensors", "memory-map-1"


class MemoryMap:
    """A source's images, decoded; samples that could not be read raise BadSample as they do in the source.

    Args:
        source: what was decoded.
        folder: where `pixels.bin` and `table.safetensors` lie.

    Raises:
        ValueError: the files are not whole, or are of another number of samples.
    """

    def __init__(self, source: Source, folder: Path) -> None:
        self.source, self.folder = source, folder
        self.name, self.labels = source.name, source.labels
        self.num_classes, self.class_names = source.num_classes, source.class_names
        try:
            with safe_open(folder / TABLE, framework="numpy") as table:
                self.offsets, self.shapes = table.get_tensor("offsets"), table.get_tensor("shapes")
                self.faults = [Fault(**fault) for fault in json.loads(table.metadata()["faults"])]
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{folder / TABLE}: expected a table of images, received {error}") from error
        expect(len(self.shapes) == len(source), str(folder), f"{len(source)} images", len(self.shapes))
        have = (folder / PIXELS).stat().st_size if (folder / PIXELS).exists() else 0
        want = int(self.offsets[-1])
        expect(have == want, str(folder / PIXELS), f"{want} bytes", have)
        self.bad = {fault.index: fault for fault in self.faults}
        good = np.delete(self.shapes, list(self.bad), axis=0)
        same = len(good) > 0 and bool((good == good[0]).all())
        self.shape: tuple[int, ...] = tuple(good[0].tolist()) if same else ()
        self._open()

    def _open(self) -> None:
        size = int(self.offsets[-1])
        # A plain array over the map, whose slices cost less than those of np.memmap.
        self.pixels = np.asarray(np.memmap(self.folder / PIXELS, np.uint8, "r")) if size else np.zeros(0, np.uint8)
        # Where all images have one shape, and none is missing, many are read by one indexing.
        self.dense = self.pixels.reshape(-1, *self.shape) if self.shape and not self.bad else None

    def __getstate__(self) -> dict[str, Any]:
        # A worker that is not forked opens the file itself rather than receive its content.
        return {key: value for key, value in self.__dict__.items() if key not in ("pixels", "dense")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()

    def __len__(self) -> int:
        return len(self.shapes)

    def __getitem__(self, i: int) -> dict[str, Any]:
        if i in self.bad:
            raise BadSample(self.bad[i])
        sample = {"index": i, "image": np.array(self._image(i))}
        return sample if self.labels is None else {**sample, "label": int(self.labels[i])}

    def _image(self, i: int) -> np.ndarray:
        return self.pixels[self.offsets[i] : self.offsets[i + 1]].reshape(self.shapes[i])

    def batch(self, positions: np.ndarray) -> Batch:
        """Many samples at once; BadSample names the first that cannot be read."""
        for i in self.bad.keys() & set(positions.tolist()) if self.bad else ():
            raise BadSample(self.bad[i])
        if self.dense is not None:
            return from_columns(positions, np.asarray(self.dense[positions]), self.labels)
        shapes = self.shapes[positions]
        flat = np.concatenate([self.pixels[self.offsets[i] : self.offsets[i + 1]] for i in positions])
        if (shapes == shapes[0]).all():
            return from_columns(positions, flat.reshape(-1, *shapes[0]), self.labels)
        batch = from_columns(positions, flat, self.labels)
        batch["image"] = Ragged.from_lengths(
            batch["image"], torch.from_numpy(shapes.prod(axis=1)), torch.from_numpy(shapes)
        )
        return batch

    def column(self, name: str) -> np.ndarray | None:
        """A column of the source."""
        return getattr(self.source, "column", lambda _: None)(name)

    def path(self, i: int) -> str:
        """Where the sample came from."""
        return self.source.path(i)

    def fingerprint(self) -> str:
        """The source's own: decoding once changes nothing."""
        return self.source.fingerprint()


def estimate_bytes(source: Source, num_probes: int = 16) -> int:
    """Bytes of the decoded images, from a few spread over the source; 0 when none of them can be read."""
    sizes = []
    for i in np.unique(np.linspace(0, len(source) - 1, num_probes, dtype=np.int64)).tolist():
        with contextlib.suppress(BadSample):  # counted when all are decoded
            sizes.append(source[i]["image"].nbytes)
    return int(np.mean(sizes) * len(source)) if sizes else 0


def memory_map(source: Source, *, memory_gb: float, cache: str = "", max_bad_share: float = 0.01) -> Source:
    """The source decoded into the cache, or the source itself when that would take more than `memory_gb`.

    A map is made under a temporary name and renamed when whole. One process makes it while others wait; it is found
    again by the source's fingerprint. Cost: the bytes of all images on disk, once; reading takes the page cache only.

    Args:
        source: reading one of its samples twice gives the same.
        memory_gb: largest size of the map in 10^9 bytes; 0: none is made.
        cache: folder; empty: nearfar's in the user's cache.
        max_bad_share: share of samples that may be unreadable.

    Raises:
        TooManyFaults: more are.
        OSError: the cache cannot be written, or the disk is full.
    """
    need = estimate_bytes(source) if memory_gb else 0
    if need > memory_gb * 1e9 or not memory_gb:
        size = (
            f"about {need / 1e9:.1f} GB decoded, above data.memory_gb = {memory_gb:g}" if need else "data.memory_gb = 0"
        )
        log.info("%s: %s; images are decoded anew each epoch", source.name, size)
        return source
    folder = cache_folder(cache) / digest(VERSION, str(getattr(source, "shorter", 0)), source.fingerprint())
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with alone(folder):
            if folder.exists():
                try:
                    return _checked(MemoryMap(source, folder), max_bad_share)
                except TooManyFaults:
                    raise
                except ValueError as error:
                    log.warning("%s: made anew, since %s", folder, error)
                    shutil.rmtree(folder)
            log.info("%s: decoding %d images into %s, about %.2f GB", source.name, len(source), folder, need / 1e9)
            _build(source, folder, max_bad_share)
    except OSError as error:
        advice = "choose another folder with --data.cache, or --data.memory-gb 0 to do without"
        why = "no space is left" if error.errno == errno.ENOSPC else (error.strerror or str(error))
        message = f"memory map of {source.name} ({need / 1e9:.2f} GB) in {folder.parent}: {why}; {advice}"
        raise OSError(error.errno, message) from error
    return _checked(MemoryMap(source, folder), max_bad_share)


def _checked(mapped: MemoryMap, max_bad_share: float) -> MemoryMap:
    if len(mapped.faults) > allowed_faults(max_bad_share, len(mapped)):
        raise TooManyFaults(mapped.faults, len(mapped), max_bad_share)
    return mapped


def _build(source: Source, folder: Path, max_bad_share: float) -> None:
    partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".part", dir=folder.parent))
    try:
        shapes, faults = np.zeros((len(source), 3), dtype=np.int64), []
        allowed = allowed_faults(max_bad_share, len(source))
        with open(partial / PIXELS, "wb") as file:
            for i, read in enumerate(_decoded(source)):
                if isinstance(read, Fault):
                    faults.append(read)
                    if len(faults) > allowed:
                        raise TooManyFaults(faults, len(source), max_bad_share)
                    continue
                file.write(read.data)
                shapes[i] = read.shape
            file.flush()
            os.fsync(file.fileno())
        offsets = np.concatenate([[0], shapes.prod(axis=1).cumsum()])
        metadata = {"faults": json.dumps([vars(fault) for fault in faults])}
        save_file({"offsets": offsets, "shapes": shapes}, partial / TABLE, metadata)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _decoded(source: Source) -> Iterator[np.ndarray | Fault]:
    """Images or faults in order; Pillow decodes outside Python's lock, so threads help."""

    def read(i: int) -> np.ndarray | Fault:
        try:
            return np.ascontiguousarray(source[i]["image"])
        except BadSample as bad:
            return Fault(i, bad.fault.path, bad.fault.reason)

    threads = min(16, os.cpu_count() or 1)
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[np.ndarray | Fault]] = deque()
        try:
            for i in range(len(source)):
                waiting.append(pool.submit(read, i))
                if len(waiting) >= 4 * threads:
                    yield waiting.popleft().result()
                if (i + 1) % math.ceil(len(source) / 10) == 0:
                    log.info("%s: %d of %d images decoded", source.name, i + 1, len(source))
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
