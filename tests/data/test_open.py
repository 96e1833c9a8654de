"""From a config to data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.pictures import classes, write
from nearfar.config import DataConfig
from nearfar.data import ArraySource, Concat, Data, ImageFiles, MemoryMap, Subset, digits, open_data, view_size
from nearfar.data.open import shorter_side


def config(tmp_path: Path, **options: Any) -> DataConfig:
    return DataConfig(**{"root": str(tmp_path / "in"), "cache": str(tmp_path / "cache"), **options})


def test_digits_are_split_as_recipes_expect() -> None:
    data = open_data(DataConfig(source="digits", validation=0.25))
    assert (len(data.train), len(data.test), data.holdout) == (1347, 450, True)
    assert data.train.shape == data.test.shape == (1, 8, 8)
    assert data.test.labels is not None
    assert np.bincount(data.test.labels).min() >= 43
    again = open_data(DataConfig(source="digits", validation=0.25))
    assert again.test.fingerprint() == data.test.fingerprint()
    assert open_data(DataConfig(source="digits", channels=3)).train.shape == (3, 8, 8)


def test_a_folder_is_mapped_and_split(tmp_path: Path) -> None:
    classes(tmp_path / "in", num=10)
    data = open_data(config(tmp_path, validation=0.2))
    assert isinstance(data.train, Subset)
    assert isinstance(data.train.source, MemoryMap)
    assert (len(data.train), len(data.test), data.holdout) == (16, 4, True)
    assert data.train.shape == (3, 8, 8)
    assert data.test.labels is not None
    assert np.bincount(data.test.labels).tolist() == [2, 2]
    streamed = open_data(config(tmp_path, validation=0.2, memory_gb=0.0))
    assert isinstance(streamed.train, Subset)
    assert isinstance(streamed.train.source, ImageFiles)
    assert streamed.train.fingerprint() == data.train.fingerprint()
    np.testing.assert_array_equal(streamed.test[3]["image"], data.test[3]["image"])
    assert open_data(config(tmp_path, channels=1)).train.shape == (1, 8, 8)


def test_own_split_of_a_folder(tmp_path: Path) -> None:
    classes(tmp_path / "in" / "train", num=4)
    classes(tmp_path / "in" / "val", num=2)
    data = open_data(config(tmp_path))
    assert isinstance(data.train, MemoryMap)
    assert isinstance(data.test, MemoryMap)
    assert (len(data.train), len(data.test), data.holdout) == (8, 4, False)


@pytest.mark.parametrize("memory_gb", [0.0, 1.0])
def test_photographs_are_reduced(tmp_path: Path, memory_gb: float) -> None:
    for i in range(3):
        write(tmp_path / "in" / f"{i}.jpg", i, (50 + i, 40))
    data = open_data(config(tmp_path, image_size=16, memory_gb=memory_gb))
    assert data.train[0]["image"].shape == (3, 20, round(20 * (50 + data.train[0]["index"]) / 40))


def test_array_files(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (10, 6, 6), dtype=np.uint8)
    np.save(tmp_path / "a.npy", images)
    data = open_data(config(tmp_path, root=str(tmp_path / "a.npy")))
    assert (len(data.train), len(data.test), data.train.shape) == (9, 1, (1, 6, 6))
    np.savez(tmp_path / "b.npz", train_images=images, test_images=images[:3])
    data = open_data(config(tmp_path, root=str(tmp_path / "b.npz"), channels=3))
    assert (len(data.train), len(data.test), data.train.shape, data.holdout) == (10, 3, (3, 6, 6), False)
    with pytest.raises(FileNotFoundError, match=r"a \.npy or \.npz file, received .*c\.npy, which does not exist"):
        open_data(config(tmp_path, root=str(tmp_path / "c.npy")))


def test_datasets_by_name(tmp_path: Path) -> None:
    given = ArraySource(np.zeros((10, 4, 4), np.uint8), name="mine")
    datasets = {"mine": lambda config: given, "split": lambda config: Data(given, given)}
    assert len(open_data(config(tmp_path, source="mine"), datasets=datasets).test) == 1
    assert open_data(config(tmp_path, source="split"), datasets=datasets) == Data(given, given)
    with pytest.raises(
        ValueError,
        match=r"expected one of 'folder', 'webdataset', 'hf', 'digits', 'mine', 'split', .*'mime'; did you mean 'mine'",
    ):
        open_data(config(tmp_path, source="mime"), datasets=datasets)  # fmt: skip


def test_one_image(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.png")
    with pytest.raises(ValueError, match="in: expected at least 2 samples, since a lone one has nothing"):
        open_data(config(tmp_path))


def test_no_root() -> None:
    with pytest.raises(ValueError, match=r"data.root: expected a folder of images, received nothing; give it with"):
        open_data(DataConfig())


def test_size_of_views(tmp_path: Path) -> None:
    def of(*shape: int, size: int = 0) -> int:
        return view_size(DataConfig(image_size=size), ArraySource(np.zeros((2, *shape), np.uint8)))

    assert (of(28, 28), of(20, 30), of(256, 300), of(28, 28, size=14)) == (28, 20, 224, 14)
    classes(tmp_path / "in", sizes=True)
    assert view_size(DataConfig(), open_data(config(tmp_path)).train) == 224
    assert view_size(DataConfig(), digits()) == 8
    assert (shorter_side(DataConfig()), shorter_side(DataConfig(image_size=33))) == (280, 42)


# -- several sources as one --------------------------------------------------------------------------------------------


def two(tmp_path: Path, **options: Any) -> Data:
    named = (f"a={tmp_path / 'one'}", f"b={tmp_path / 'two'}")
    return open_data(DataConfig(sources=named, cache=str(tmp_path / "cache"), **options))


def test_folders_by_name_are_one_source(tmp_path: Path) -> None:
    for i in range(10):
        write(tmp_path / "one" / f"{i}.png", i)
    for i in range(5):
        write(tmp_path / "two" / f"{i}.png", 50 + i)
    data = two(tmp_path, validation=0.2)
    assert isinstance(data.train, Concat)
    assert isinstance(data.test, Concat)
    assert (data.train.names, data.test.names) == (("a", "b"), ("a", "b"))
    assert np.bincount(data.train.column("group")).tolist() == [8, 4]
    assert np.bincount(data.test.column("group")).tolist() == [2, 1]
    held = {Path(data.test.path(i)) for i in range(3)}
    assert held.isdisjoint(Path(data.train.path(i)) for i in range(12))
    assert (len(two(tmp_path, validation=0.0).train), len(two(tmp_path, validation=0.0).test)) == (15, 0)


def test_folders_by_name_keep_their_splits_and_labels(tmp_path: Path) -> None:
    for part, num in (("train", 3), ("test", 2)):
        classes(tmp_path / "one" / part, num=num)
    write(tmp_path / "two" / "0.png", 0)
    write(tmp_path / "two" / "1.png", 1)
    with pytest.raises(ValueError, match="data.sources: expected a split of their own in all .*one in a, none in b"):
        two(tmp_path)
    for part in ("train", "test"):
        write(tmp_path / "two" / part / "0.png", 0)
    data = two(tmp_path)
    assert (len(data.train), len(data.test), data.holdout) == (7, 5, False)
    assert data.train.labels is not None
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1, -7]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"sources": ("a=x", "a=y")}, "data.sources: expected NAME=FOLDER, each name once, received 'a=y'"),
        ({"sources": ("folder",)}, "data.sources: expected NAME=FOLDER"),
        ({"sources": ("a=",)}, "data.sources: expected NAME=FOLDER"),
        ({"sources": ("a=x",), "root": "y"}, "data.root: expected nothing with data.sources, received 'y'"),
        ({"sources": ("a=x",), "source": "digits"}, "data.source: expected one that is read from folders"),
        ({"sources": ("a=x",), "levels": ("folder1",)}, "data.sources: expected none with data.target or data.levels"),
    ],
)
def test_wrong_sources_are_named(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        DataConfig(**options)
