"""Where the members of a tar file lie, read from its headers alone: nothing is extracted, no link is followed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nearfar.checks import expect

BLOCK = 512
MOST = 1 << 20
"""bytes of a long name or of extended header records that are believed"""
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}
_ZERO = bytes(BLOCK)
BARE = b"123456"
"""links, devices, folders and pipes: types whose header is followed by no content"""


class Member(NamedTuple):
    """A regular file in an archive."""

    name: str
    offset: int
    size: int


class Texts(Sequence[str]):
    """Many strings in two arrays, which processes share and which cost a byte a letter.

    Args:
        blob: uint8, all strings one after another in UTF-8.
        ends: int64 [N], where each ends.
    """

    def __init__(self, blob: np.ndarray, ends: np.ndarray) -> None:
        self.blob, self.ends = blob, ends

    @classmethod
    def of(cls, texts: Sequence[str]) -> Texts:
        """Packs strings."""
        raw = [text.encode("utf-8", "surrogateescape") for text in texts]
        return cls(np.frombuffer(b"".join(raw), dtype=np.uint8), np.cumsum([len(one) for one in raw], dtype=np.int64))

    @classmethod
    def joined(cls, parts: Sequence[Texts]) -> Texts:
        """The strings of all parts."""
        starts = np.cumsum([0, *(len(part.blob) for part in parts)])
        ends = [part.ends + start for part, start in zip(parts, starts, strict=False)]
        return cls(np.concatenate([part.blob for part in parts]), np.concatenate(ends))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, i: int) -> str:  # type: ignore[override]
        start = int(self.ends[i - 1]) if i else 0
        return self.blob[start : int(self.ends[i])].tobytes().decode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class Index:
    """The samples of one archive: members that stand together and share the name before the first dot.

    Args:
        keys: a sample's name, N.
        first: int64 [N + 1], where its members begin in the arrays below.
        extension: int32 [M], number in `extensions`.
        offset, size: int64 [M], of the content in the archive.
        extensions: what follows the first dot, in lower case.
        skipped: names that were left out, and why.
    """

    keys: Texts
    first: np.ndarray
    extension: np.ndarray
    offset: np.ndarray
    size: np.ndarray
    extensions: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]

    @classmethod
    def joined(cls, parts: Sequence[Index]) -> Index:
        """The samples of several archives, one after another; offsets stay those of each archive."""
        extensions = tuple(dict.fromkeys(name for part in parts for name in part.extensions))
        codes = {name: code for code, name in enumerate(extensions)}
        renamed = [np.array([codes[n] for n in part.extensions], np.int32)[part.extension] for part in parts]
        starts = np.cumsum([0, *(len(part.offset) for part in parts)])
        firsts = [part.first[:-1] + start for part, start in zip(parts, starts, strict=False)]
        offset, size = (np.concatenate([getattr(part, name) for part in parts]) for name in ("offset", "size"))
        skipped = tuple(one for part in parts for one in part.skipped)
        keys, first = Texts.joined([part.keys for part in parts]), np.concatenate([*firsts, starts[-1:]])
        return cls(keys, first, np.concatenate(renamed), offset, size, extensions, skipped)

    def extensions_of(self, row: int) -> list[str]:
        """The extensions of a sample's members, in their order."""
        return [self.extensions[code] for code in self.extension[self.first[row] : self.first[row + 1]]]

    def content(self, member: int, fd: int) -> bytes:
        """The bytes of a member, from its open archive.

        Raises:
            OSError: the archive has become shorter.
        """
        offset, size = int(self.offset[member]), int(self.size[member])
        raw = read_at(fd, size, offset)
        expect(len(raw) == size, "content", f"{size} bytes at byte {offset}", len(raw), OSError)
        return raw


def read_index(path: Path) -> Index:
    """The index of a tar file; about 10 us a member.

    Raises:
        ValueError: compressed, no tar, cut off, or members of a sample that do not stand together.
    """
    with path.open("rb", buffering=0) as file:
        return group(members(file.fileno(), os.fstat(file.fileno()).st_size))


def members(fd: int, total: int) -> Iterator[Member | tuple[str, str]]:
    """Regular files of an open archive in their order; (name, why) for other members.

    Knows ustar, GNU long names and numbers, and pax records of path and size.

    Raises:
        ValueError: compressed, no tar, cut off, joined to another.
    """
    at = number = 0
    head = read_at(fd, BLOCK, 0)
    for magic, kind in COMPRESSED.items():
        if head.startswith(magic):
            raise _broken("a plain tar, in which samples can be found by their place",
                          f"one compressed by {kind}; unpack it, images hardly shrink anyway")  # fmt: skip
    long_name, pax = "", {}
    while True:  # a million times, so messages are made only where they are needed
        head = read_at(fd, BLOCK, at)
        if len(head) < BLOCK:
            raise _broken(f"an end mark behind {number} members", f"the end of the file at byte {total}: it is cut off")
        if head == _ZERO:
            if any(read_at(fd, MOST, at)):
                raise _broken("nothing behind the end mark", f"more data behind byte {at}, as in joined archives")
            return
        name, kind, size = _header(head, number, at)
        size = int(pax.get("size", size))
        filled = kind not in BARE
        end = at + BLOCK + (size if filled else 0)
        if end > total:
            raise _broken(f"{size} bytes of {name!r} behind {number} whole members",
                          f"the end of the file at byte {total}: it is cut off")  # fmt: skip
        if kind in b"LKxXg":
            if size > MOST:
                raise _broken(f"extended headers of at most {MOST} bytes", f"{size} at byte {at}")
            if kind == b"L":
                long_name = _text(read_at(fd, size, at + BLOCK))
            elif kind in b"xX":
                pax = _records(read_at(fd, size, at + BLOCK), at)
        else:
            name = pax.get("path") or long_name or name
            if kind in b"0\x007" and not name.endswith("/"):
                sparse = any(key.startswith("GNU.sparse") for key in pax)
                yield (name, "sparse file") if sparse else Member(name, at + BLOCK, size)
            elif kind == b"S":
                raise _broken("no sparse files", repr(name))
            elif kind != b"5" and not name.endswith("/"):
                yield name, "link" if kind in b"12" else f"no regular file (type {kind.decode('latin-1')!r})"
            long_name, pax = "", {}
            number += 1
        at += BLOCK + ((size + BLOCK - 1) // BLOCK * BLOCK if filled else 0)


def group(found: Iterable[Member | tuple[str, str]]) -> Index:
    """Members put together to samples, as WebDataset does it; names that lead elsewhere are left out.

    Raises:
        ValueError: a name twice, or a sample's members in two places.
    """
    keys: list[str] = []
    rows: list[tuple[int, int, int, int]] = []
    codes: dict[str, int] = {}
    skipped: list[tuple[str, str]] = []
    seen: set[str] = set()
    have: set[str] = set()
    for member in found:
        name = member[0]
        reason = unsafe(name) if isinstance(member, Member) else member[1]
        if reason or not isinstance(member, Member):
            skipped.append((name, str(reason)))
            continue
        key, extension = split_name(name)
        if not key:
            continue
        if not keys or key != keys[-1]:
            if key in seen:
                raise _broken(
                    "the members of a sample side by side", f"{key!r} in two places; sort them (tar --sort=name)"
                )
            keys.append(key)
            seen.add(key)
            have = set()
        if extension in have:
            raise _broken("names that differ", f"{name!r} twice")
        have.add(extension)
        rows.append((len(keys) - 1, codes.setdefault(extension, len(codes)), member.offset, member.size))
    table = np.array(rows, dtype=np.int64).reshape(-1, 4)
    first = np.searchsorted(table[:, 0], np.arange(len(keys) + 1))
    offset, size = (np.ascontiguousarray(table[:, i]) for i in (2, 3))
    return Index(Texts.of(keys), first, table[:, 1].astype(np.int32), offset, size, tuple(codes), tuple(skipped))


def split_name(name: str) -> tuple[str, str]:
    """What stands before the first dot of a file's name, its folders included, and what follows in lower case.

    Both are empty for hidden files and for names without a dot.
    """
    start = name.rfind("/") + 1
    dot = name.find(".", start)
    return (name[:dot], name[dot + 1 :].lower()) if start < dot < len(name) - 1 else ("", "")


def unsafe(name: str) -> str:
    """Why a name is refused; empty for a good one. Nothing is written by these names, but people copy them."""
    if name.startswith("/") or "\\" in name or name[1:2] == ":":
        return "absolute name"
    if ".." in name.split("/"):
        return "name leads out of the archive"
    return "" if name.isprintable() else "name with control characters"


def _header(head: bytes, number: int, at: int) -> tuple[str, bytes, int]:
    """Name, type and size of a header block."""
    total = sum(head) - sum(head[148:156]) + 8 * 32  # the sum stands in the block itself, and counts as blanks there
    try:
        good = int(head[148:156].split(b"\0")[0], 8) == total
        size = (
            int.from_bytes(head[125:136], "big") if head[124] == 0x80 else int(head[124:136].split(b"\0")[0] or b"0", 8)
        )
    except ValueError:
        good, size = False, 0
    if not good or size < 0:
        raise _broken("a tar header", f"none at byte {at}, behind {number} whole members")
    name = _text(head[:100])
    if head[345] and head[257:263] == b"ustar\0":
        name = f"{_text(head[345:500])}/{name}"
    return name, head[156:157], size


def _records(body: bytes, at: int) -> dict[str, str]:
    """Pax records, `LENGTH KEY=VALUE` and a line feed each."""
    found, place = {}, 0
    while place < len(body) and body[place]:
        length = body[place : place + 12].split(b" ")[0]
        whole = length.isdigit() and len(length) + 3 <= int(length) <= len(body) - place
        key, equals, value = body[place + len(length) + 1 : place + int(length) - 1 if whole else None].partition(b"=")
        if not whole or not equals:
            raise _broken("pax records LENGTH KEY=VALUE", f"something else at byte {at}")
        found[_text(key)] = value.decode("utf-8", "surrogateescape")
        place += int(length)
    if not found.get("size", "0").isdecimal():
        raise _broken("a pax size in digits", f"{found['size']!r} at byte {at}")
    return found


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _broken(expected: str, received: str) -> ValueError:
    return ValueError(f"expected {expected}, received {received}")


def read_at(fd: int, size: int, offset: int) -> bytes:
    """Up to `size` bytes of an open file from a place in it."""
    if hasattr(os, "pread"):
        return os.pread(fd, size, offset)
    os.lseek(fd, offset, os.SEEK_SET)
    return os.read(fd, size)
