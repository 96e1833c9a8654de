"""Decoding once: the same samples as the files, found again, and whole or not at all."""

from __future__ import annotations

import errno
import logging
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from data.pictures import classes, truncate
from nearfar.batch import Ragged, collate
from nearfar.caches import cache_folder
from nearfar.data import BadSample, ImageFolder, MemoryMap, Source, TooManyFaults, memory_map
from nearfar.data import memorymap as module
from nearfar.data.memorymap import estimate_bytes


def mapped(source: Source, cache: Path, **options: float) -> MemoryMap:
    made = memory_map(source, memory_gb=1.0, cache=str(cache), **options)  # type: ignore[arg-type]
    assert isinstance(made, MemoryMap)
    return made


def same(a: Source, b: Source) -> None:
    for i in range(len(a)):
        one, two = a[i], b[i]
        assert one.keys() == two.keys()
        np.testing.assert_array_equal(one["image"], two["image"])
        assert (one["index"], one["label"]) == (two["index"], two["label"])


@pytest.mark.parametrize("sizes", [False, True])
def test_samples_are_those_of_the_files(tmp_path: Path, sizes: bool) -> None:
    source = ImageFolder(classes(tmp_path / "in", sizes=sizes))
    made = mapped(source, tmp_path / "cache")
    assert isinstance(made, Source)
    same(made, source)
    assert made.shape == (() if sizes else (3, 8, 8))
    assert made.class_names == source.class_names
    assert made.path(3) == source.path(3)
    assert made.fingerprint() == source.fingerprint()
    for positions in ([5, 0, 0, 11], [0, 3, 6], [1]):  # of several sizes, of one, alone
        batch, one = made.batch(np.array(positions)), collate([source[i] for i in positions])
        assert batch.keys() == one.keys()
        assert batch["label"].tolist() == one["label"].tolist()
        assert batch["index"].tolist() == positions
        if isinstance(one["image"], Ragged):
            assert torch.equal(batch["image"].values, one["image"].values)
            assert torch.equal(batch["image"].offsets, one["image"].offsets)
            assert torch.equal(batch["image"].shapes, one["image"].shapes)
        else:
            assert torch.equal(batch["image"], one["image"])


def test_what_is_given_out_may_be_written(tmp_path: Path) -> None:
    source = ImageFolder(classes(tmp_path / "in", num=2))
    made = mapped(source, tmp_path / "cache")
    made[0]["image"][:] = 0
    made.batch(np.array([0, 1]))["image"].zero_()
    same(made, source)


def test_it_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = classes(tmp_path / "in")
    first = mapped(ImageFolder(root), tmp_path / "cache")
    monkeypatch.setattr(module, "_build", lambda *args: pytest.fail("made anew"))
    again = mapped(ImageFolder(root), tmp_path / "cache")
    same(first, again)
    monkeypatch.undo()
    os.utime(root / "cat" / "0.png", (1, 1))
    assert mapped(ImageFolder(root), tmp_path / "cache").folder != first.folder
    assert mapped(ImageFolder(root, shorter=5), tmp_path / "cache").shape == (3, 5, 5)


def test_it_survives_pickling_without_its_content(tmp_path: Path) -> None:
    source = ImageFolder(classes(tmp_path / "in", num=20))
    made = mapped(source, tmp_path / "cache")
    raw = pickle.dumps(made)
    assert len(raw) < made.pixels.nbytes
    same(pickle.loads(raw), source)


@pytest.mark.parametrize("damage", ["pixels gone", "pixels cut", "table gone", "table cut", "folder empty"])
def test_a_damaged_map_is_made_anew(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    source = ImageFolder(classes(tmp_path / "in", num=2))
    folder = mapped(source, tmp_path / "cache").folder
    what, how = damage.split()
    path = {"pixels": folder / module.PIXELS, "table": folder / module.TABLE, "folder": folder}[what]
    if how == "gone":
        path.unlink()
    elif how == "cut":
        truncate(path)
    else:
        shutil.rmtree(path)
        path.mkdir()
    with caplog.at_level(logging.WARNING):
        same(mapped(source, tmp_path / "cache"), source)
    assert "made anew" in caplog.text


def test_an_interrupted_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = ImageFolder(classes(tmp_path / "in", num=20))
    original = ImageFolder.__getitem__

    def interrupted(self: ImageFolder, i: int) -> dict[str, object]:
        if i == 30:  # none of those that estimate the size
            raise KeyboardInterrupt
        return original(self, i)

    monkeypatch.setattr(ImageFolder, "__getitem__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mapped(source, tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]
    monkeypatch.undo()
    same(mapped(source, tmp_path / "cache"), source)


def test_what_a_killed_build_left_is_removed(tmp_path: Path) -> None:
    source = ImageFolder(classes(tmp_path / "in", num=2))
    folder = mapped(source, tmp_path / "cache").folder
    folder.rename(folder.with_name(f"{folder.name}.abc.part"))
    same(mapped(source, tmp_path / "cache"), source)
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == ["", ".lock"]


def test_full_disk_is_said_and_cleaned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(
        OSError, match=r"memory map of in .*: no space is left; choose another folder with --data.cache"
    ):
        mapped(ImageFolder(classes(tmp_path / "in")), tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".lock"]


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(OSError, match=r"memory map of in .*: File exists; choose another folder"):
        mapped(ImageFolder(classes(tmp_path / "in")), tmp_path / "cache")


def test_builders_at_once_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = ImageFolder(classes(tmp_path / "in"))
    built, build = [], module._build
    monkeypatch.setattr(module, "_build", lambda *args: (built.append(1), build(*args)))
    with ThreadPoolExecutor(4) as pool:
        for made in pool.map(lambda _: mapped(source, tmp_path / "cache"), range(4)):
            same(made, source)
    assert len(built) == 1


def test_larger_sources_are_read_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = ImageFolder(classes(tmp_path / "in"))
    assert estimate_bytes(source) == 12 * 3 * 8 * 8
    with caplog.at_level(logging.INFO):
        assert memory_map(source, memory_gb=2303e-9, cache=str(tmp_path / "cache")) is source
        assert memory_map(source, memory_gb=0.0, cache=str(tmp_path / "cache")) is source
    assert "above data.memory_gb" in caplog.text
    assert "data.memory_gb = 0; images are decoded anew each epoch" in caplog.text
    assert not (tmp_path / "cache").exists()
    assert memory_map(source, memory_gb=2304e-9, cache=str(tmp_path / "cache")) is not source


def test_bad_files_are_recorded_and_raise_as_before(tmp_path: Path) -> None:
    root = classes(tmp_path / "in", sizes=True)
    truncate(root / "cat" / "2.png")
    source = ImageFolder(root)
    for made in (mapped(source, tmp_path / "cache"), mapped(source, tmp_path / "cache")):  # made, then found
        assert [(fault.index, fault.path) for fault in made.faults] == [(2, str(root / "cat" / "2.png"))]
        assert "truncated" in made.faults[0].reason
        for read in (lambda made=made: made[2], lambda made=made: made.batch(np.array([1, 2]))):
            with pytest.raises(BadSample, match=r"2\.png"):
                read()
        np.testing.assert_array_equal(made[3]["image"], source[3]["image"])
        assert made.batch(np.array([3, 1]))["index"].tolist() == [3, 1]


def test_too_many_bad_files(tmp_path: Path) -> None:
    root = classes(tmp_path / "in", num=10)
    for i in range(3):
        truncate(root / "dog" / f"{i}.png")
    source = ImageFolder(root)
    with pytest.raises(TooManyFaults, match=r"at most a share of 0.1 of 20, received 3: .*0\.png \(OSError.*2\.png"):
        mapped(source, tmp_path / "cache", max_bad_share=0.1)
    assert len(mapped(source, tmp_path / "cache", max_bad_share=0.15).faults) == 3
    with pytest.raises(TooManyFaults, match="received 3"):
        mapped(source, tmp_path / "cache", max_bad_share=0.1)  # a map that was found is held to the share too
    with pytest.raises(TooManyFaults, match="share of 0 of 20, received 1"):
        mapped(source, tmp_path / "other", max_bad_share=0.0)


def test_no_good_file_at_all(tmp_path: Path) -> None:
    root = classes(tmp_path / "in", num=1)
    for path in root.rglob("*.png"):
        truncate(path)
    with pytest.raises(TooManyFaults, match="of 2, received 2"):
        mapped(ImageFolder(root), tmp_path / "cache")


def test_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("NEARFAR_CACHE", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "nearfar"
    assert cache_folder("~/maps") == tmp_path / "maps"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "nearfar"
    monkeypatch.setenv("NEARFAR_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"


def test_a_folder_of_another_source_is_refused(tmp_path: Path) -> None:
    made = mapped(ImageFolder(classes(tmp_path / "in", num=2)), tmp_path / "cache")
    with pytest.raises(ValueError, match="expected 6 images, received 4"):
        MemoryMap(ImageFolder(classes(tmp_path / "more", num=3)), made.folder)
