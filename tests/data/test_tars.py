"""Headers of tar files: the same members as Python's tarfile finds, and a named fault for what is no whole archive."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data.shardfiles import cut, sample, shards, tar
from nearfar.data.tars import BLOCK, Index, Texts, members, read_index, split_name, unsafe

FORMATS = {"gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT, "ustar": tarfile.USTAR_FORMAT}
LONG = "a" * 60 + "/" + "b" * 60 + "/" + "c" * 30  # over 100 letters, which ustar splits in two


def listed(path: Path) -> list[tuple[str, int, int]]:
    with tarfile.open(path, "r:") as archive:
        return [(m.name, m.offset_data, m.size) for m in archive if m.isreg()]


def found(path: Path) -> list[tuple[str, int, int]]:
    with path.open("rb") as file:
        everything = list(members(file.fileno(), os.fstat(file.fileno()).st_size))
    return [tuple(member) for member in everything if len(member) == 3]  # type: ignore[misc]


def names(index: Index) -> list[tuple[str, list[str]]]:
    ends = zip(index.first, index.first[1:], strict=False)
    return [
        (key, [index.extensions[code] for code in index.extension[start:end]])
        for key, (start, end) in zip(index.keys, ends, strict=True)
    ]


@pytest.mark.parametrize("kind", FORMATS)
def test_members_are_those_of_tarfile(tmp_path: Path, kind: str) -> None:
    contents = [
        ("a.png", b"x" * 513),
        ("sub/b.cls", b""),
        (f"{LONG}.txt", b"1"),
        ("ü/é.json", b"{}"),
        ("c", b"y" * 512),
    ]
    if kind != "ustar":
        contents += [("d" * 300 + ".png", b"long"), ("e" * 300 + ".png", b"longer")]
    path = tar(tmp_path / "a.tar", contents, FORMATS[kind])
    assert found(path) == listed(path)
    assert len(found(path)) == len(contents)
    raw = path.read_bytes()
    assert [raw[at : at + size] for _, at, size in found(path)] == [content for _, content in contents]


def test_an_index_puts_members_to_samples(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", [
        ("one.jpg", b"1"), ("one.CLS", b"22"), ("dir.d/two.seg.png", b"333"), ("dir.d/two.json", b"4"),
        ("./3.jpg", b""), (".hidden.jpg", b"5"), ("README", b"6"), ("dir.d/._two.png", b"7"), ("end.", b"8"),
    ])  # fmt: skip
    index = read_index(path)
    assert names(index) == [("one", ["jpg", "cls"]), ("dir.d/two", ["seg.png", "json"]), ("./3", ["jpg"])]
    assert index.size.tolist() == [1, 2, 3, 1, 0]
    assert index.offset.tolist() == [at for _, at, _ in listed(path)[:5]]
    assert not index.skipped


def test_names_are_grouped_as_webdataset_does(tmp_path: Path) -> None:
    tariterators = pytest.importorskip("webdataset.tariterators")
    for name in ("a.jpg", "a/b.c/d.tar.gz", "a.b/c", ".x.jpg", "x", "a..jpg", "a b.JPG", "é.x"):
        key, extension = tariterators.base_plus_ext(name)
        assert split_name(name) == ((key, extension.lower()) if key else ("", "")), name


def test_other_members_are_left_out_and_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind, link in (
            ("dir", tarfile.DIRTYPE, ""), ("soft.png", tarfile.SYMTYPE, "/etc/passwd"),
            ("hard.png", tarfile.LNKTYPE, "a"),
            ("pipe.png", tarfile.FIFOTYPE, ""), ("dev.png", tarfile.CHRTYPE, ""),
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            archive.addfile(info)
        info = tarfile.TarInfo("a.png")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))
    index = read_index(path)
    assert names(index) == [("a", ["png"])]
    assert dict(index.skipped) == {
        "soft.png": "link", "hard.png": "link", "pipe.png": "no regular file (type '6')",
        "dev.png": "no regular file (type '3')",
    }  # fmt: skip


HOSTILE = {
    "../../etc/passwd.png": "out of the archive", "/etc/passwd.png": "absolute", "a/../../b.png": "out of the archive",
    "C:/x.png": "absolute", "..\\x.png": "absolute", "\x1b[2Jx.png": "control", "a\nb.png": "control",
}  # fmt: skip


@pytest.mark.parametrize("kind", ["gnu", "pax"])
def test_hostile_names(tmp_path: Path, kind: str) -> None:
    path = tar(tmp_path / "a.tar", [*((name, b"x") for name in HOSTILE), ("good.png", b"y")], FORMATS[kind])
    index = read_index(path)
    assert names(index) == [("good", ["png"])]
    assert [name for name, _ in index.skipped] == list(HOSTILE)
    for name, reason in index.skipped:
        assert HOSTILE[name] in reason
        assert reason == unsafe(name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.tar"]
    assert not unsafe("a..b/c.png")


def test_cut_off_anywhere(tmp_path: Path) -> None:
    shards(tmp_path, (3,))
    path = tmp_path / "s-00.tar"
    whole = path.read_bytes()
    (_, start, size), last = listed(path)[0], listed(path)[-1]
    end = last[1] + BLOCK
    for at, match in (
        (start + size - 1, r"expected \d+ bytes of '0000.png' behind 0 whole members, received .* cut off"),
        (start - 100, "an end mark behind 0 members, received the end of the file at byte 412: it is cut off"),
        (end, "an end mark behind 12 members"),
        (end - BLOCK, r"bytes of '0002.json' behind 11 whole members"),
        (0, "an end mark behind 0 members"),
    ):
        path.write_bytes(whole[:at])
        with pytest.raises(ValueError, match=match):
            read_index(path)
    path.write_bytes(whole[: end + BLOCK])
    assert len(read_index(path).keys) == 3


def test_what_is_no_plain_tar(tmp_path: Path) -> None:
    shards(tmp_path, (1,))
    path = tmp_path / "s-00.tar"
    raw = path.read_bytes()
    for content, match in (
        (
            gzip.compress(raw),
            "a plain tar, in which samples can be found by their place, received one compressed by gzip",
        ),
        (b"\x28\xb5\x2f\xfd" + raw, "compressed by zstandard"),
        (b"not a tar " * 100, "a tar header, received none at byte 0"),
        (raw + raw, "nothing behind the end mark, received more data behind byte"),
        (raw[:600] + b"?" + raw[601:], ""),  # content is nobody's concern here
        (raw[:100] + b"?" + raw[101:], "a tar header, received none at byte 0"),
    ):
        path.write_bytes(content)
        if match:
            with pytest.raises(ValueError, match=match):
                read_index(path)
        else:
            assert len(read_index(path).keys) == 1


def test_names_twice(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected names that differ, received 'a.PNG' twice"):
        read_index(tar(tmp_path / "a.tar", [("a.png", b""), ("a.PNG", b"")]))
    with pytest.raises(ValueError, match="side by side, received 'a' in two places; sort them"):
        read_index(tar(tmp_path / "b.tar", [("a.png", b""), ("b.png", b""), ("a.cls", b"")]))


def header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    block = bytearray(BLOCK)
    block[: len(name)], block[124 : 124 + len(size)], block[156:157], block[148:156] = name, size, kind, b" " * 8
    block[148:155] = b"%06o\0" % sum(block)
    return bytes(block)


def test_numbers_and_records(tmp_path: Path) -> None:
    path, end = tmp_path / "a.tar", bytes(2 * BLOCK)
    path.write_bytes(header(b"a.png", b"\x80" + (5).to_bytes(11, "big")) + b"hello".ljust(BLOCK, b"\0") + end)
    assert found(path) == listed(path) == [("a.png", BLOCK, 5)]
    pax = b"15 size=000005\n".ljust(BLOCK, b"\0")
    path.write_bytes(header(b"p", b"17", b"x") + pax + header(b"a.png", b"0") + b"hello".ljust(BLOCK, b"\0") + end)
    assert found(path) == [("a.png", 3 * BLOCK, 5)]
    for body, match in (
        (b"99 path=x\n", "pax records LENGTH KEY=VALUE, received something else at byte 0"),
        (b"x", "pax records"), (b"10 path x\n", "pax records"), (b"11 size=-1\n", "a pax size in digits, received"),
    ):  # fmt: skip
        record = header(b"p", b"%o" % len(body), b"x") + body.ljust(BLOCK, b"\0")
        path.write_bytes(record + header(b"a.png", b"0") + end)
        with pytest.raises(ValueError, match=match):
            read_index(path)
    for block, match in (
        (header(b"a", b"\xff" * 12), "a tar header"), (header(b"a", b"9"), "a tar header"),
        (header(b"a", b"77777777777"), "8589934591 bytes of 'a' behind 0 whole members"),
        (header(b"a", b"7777777777", b"x"), "cut off"), (header(b"a", b"0", b"S"), "no sparse files, received 'a'"),
    ):  # fmt: skip
        path.write_bytes(block + end)
        with pytest.raises(ValueError, match=match):
            read_index(path)


def test_any_damage_is_an_answer_or_a_value_error(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", [(f"{LONG}{'d' * 200}.png", b"x" * 700), ("b.cls", b"1")], tarfile.PAX_FORMAT)
    raw, random, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(300):
        damaged = bytearray(raw)
        for at in random.integers(0, 4 * BLOCK, 3):
            damaged[at] = random.integers(256)
        path.write_bytes(damaged)
        try:
            index = read_index(path)
        except ValueError:
            refused += 1
        else:
            assert (index.offset + index.size <= len(raw)).all()
    assert refused > 100


def test_texts() -> None:
    parts = [["a", "", "ü" * 3], [], ["\udce4x"]]
    joined = Texts.joined([Texts.of(part) for part in parts])
    assert list(joined) == [text for part in parts for text in part]
    assert len(joined) == 4


def test_cut_helper_and_samples(tmp_path: Path) -> None:
    path = cut(tar(tmp_path / "a.tar", [(f"a.{end}", raw) for end, raw in sample(0).items()]), 700)
    assert path.stat().st_size == 700
