"""Where shards lie: files of this machine, or addresses of others whose copies a bounded cache holds."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from nearfar.checks import expect
from nearfar.data.source import digest

log = logging.getLogger(__name__)
T = TypeVar("T")

OPEN = 16
"""files that a thread keeps open"""
REMOTE = ("http", "https", "s3", "gs", "gcs", "az", "abfs", "hf")
"""protocols that shards are fetched by, each through its library for fsspec"""
_ADDRESS = re.compile(r"([\w+]+)://|pipe:")


def protocol(place: Path | str) -> str:
    """The protocol of an address; empty for a file."""
    found = _ADDRESS.match(str(place)) if isinstance(place, str) else None
    return found[1] or "pipe" if found else ""


class Places:
    """Shards by number.

    A shard of another machine is fetched whole when one of its samples is asked for, once for all processes here, and
    stays until the cache is full; then the one that was opened longest ago goes.

    Args:
        shards: files, or addresses of the protocols in REMOTE.
        folder: of the copies.
        most: bytes of the copies; the ones still open come on top.

    Raises:
        FileNotFoundError: shards that are not there, all counted and some named.
        ImportError: a protocol whose library is not installed.
    """

    def __init__(self, shards: Sequence[Path | str], folder: Path, most: float) -> None:
        self.shards = [shard if protocol(shard) else Path(shard) for shard in shards]
        self.folder, self.most = folder, most
        found = self.each(_stat)
        missing = [str(shard) for shard, stat in zip(self.shards, found, strict=True) if stat is None]
        expect(not missing, "data.root", f"{len(self.shards)} tar files", f"{len(missing)} that do not exist, "
               f"e.g. {', '.join(missing[:3])}", FileNotFoundError)  # fmt: skip
        self.stamps = [(size, stamp) for size, stamp in filter(None, found)]
        self._files = _Files()

    def each(self, work: Callable[[Path | str], T]) -> list[T]:
        """What `work` gives for every shard; a few at a time where they are far away."""
        if not any(protocol(shard) for shard in self.shards):
            return [work(shard) for shard in self.shards]
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(work, self.shards))

    def __len__(self) -> int:
        return len(self.shards)

    def name(self, number: int) -> str:
        """The shard's own name, wherever it lies."""
        return str(self.shards[number]).rsplit("/", 1)[-1]

    def digest(self, number: int, *parts: str) -> str:
        """Hash of where a shard lies, its size and time, and other parts."""
        shard = self.shards[number]
        place = shard if isinstance(shard, str) else str(shard.resolve())
        return digest("tar-1", place, f"{self.stamps[number]}", *parts)

    @contextlib.contextmanager
    def opened(self, number: int) -> Iterator[int]:
        """The descriptor of a shard's file, good until this thread has asked for OPEN others."""
        yield self._files.number(number, self._open)

    def _open(self, number: int) -> _File:
        shard = self.shards[number]
        if isinstance(shard, Path):
            return _File(shard)
        for _ in range(8):  # between fetching and opening another process may have made room
            with contextlib.suppress(FileNotFoundError):
                return _File(self._fetched(number, shard))
        raise OSError(f"{shard}: its copy in {self.folder} vanished; raise data.cache_gb")

    def _fetched(self, number: int, address: str) -> Path:
        """The copy of a shard, fetched if it is not there."""
        place = self.folder / f"{self.digest(number)}.tar"
        if not place.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            with _alone(place.with_suffix(".lock")):
                if not place.is_file():
                    self._fetch(number, address, place)
        os.utime(place)
        return place

    def _fetch(self, number: int, address: str, place: Path) -> None:
        size = self.stamps[number][0]
        handle, partial = tempfile.mkstemp(prefix=place.stem, suffix=".part", dir=self.folder)
        os.close(handle)
        try:
            system, path = _system(address)
            log.info("fetching %s, %.2f GB", address, size / 1e9)
            system.get_file(path, partial)
            have = os.stat(partial).st_size
            expect(have == size, address, f"{size} bytes", f"{have}", OSError)
            os.replace(partial, place)
        finally:
            Path(partial).unlink(missing_ok=True)
        self._make_room(place)

    def _make_room(self, newest: Path) -> None:
        copies = []
        for path in self.folder.glob("*.tar"):
            with contextlib.suppress(FileNotFoundError):  # another process makes room too
                stat = path.stat()
                copies.append((stat.st_mtime_ns, stat.st_size, path))
        total = sum(size for _, size, _ in copies)
        for _, size, path in sorted(copies):
            if total > self.most and path != newest:
                path.unlink(missing_ok=True)
                total -= size


class _Files(threading.local):
    """Files that this thread has open, the latest used last."""

    def __init__(self) -> None:
        self.open: dict[int, _File] = {}

    def __reduce__(self) -> tuple[type[_Files], tuple[()]]:
        return _Files, ()  # a worker opens its own

    def number(self, key: int, make: Callable[[int], _File]) -> int:
        found = self.open.pop(key, None) or make(key)
        self.open[key] = found
        if len(self.open) > OPEN:
            self.open.pop(next(iter(self.open)))
        return found.number


class _File:
    """An open file, closed with its last reference."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self.number)


def _stat(shard: Path | str) -> tuple[int, str] | None:
    """Size, and what changes with the content as far as the place says; None: not there."""
    try:
        if isinstance(shard, Path):
            stat = os.stat(shard)
            return stat.st_size, str(stat.st_mtime_ns)
        system, path = _system(shard)
        info = system.info(path)
    except FileNotFoundError:
        return None
    expect(isinstance(info.get("size"), int), shard, "a size told by its server", info.get("size"))
    told = [str(info[key]) for key in ("ETag", "etag", "md5Hash", "sha256", "LastModified", "mtime") if info.get(key)]
    return info["size"], " ".join(told)


def _system(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it."""
    import fsspec

    kind = protocol(address)
    expect(
        kind in REMOTE and "::" not in address, "data.root", f"files, or addresses {'://, '.join(REMOTE)}://", address
    )
    try:
        return fsspec.core.url_to_fs(address)
    except ImportError as error:
        raise ImportError(f"{kind}:// needs another library: {error}") from error


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One process at a time; without such locks two may fetch the same, and the last to finish wins."""
    if os.name != "posix":
        yield
        return
    import fcntl

    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
