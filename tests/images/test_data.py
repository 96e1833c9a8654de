"""Known datasets by name, from files made here in their formats."""

from __future__ import annotations

import gzip
import hashlib
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision import datasets as tv

from data.pictures import classes, write
from nearfar.config import DataConfig
from nearfar.data import Data, MemoryMap
from nearfar_images import data as module
from nearfar_images.data import DATASETS, FASHION, open_images, read_idx

RNG = np.random.default_rng(0)


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape) + array.tobytes()


def write_idx(folder: Path, *, zipped: bool = False, num: int = 6) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for split, count in (("train", num), ("t10k", num // 2)):
        arrays[f"{split}-images-idx3-ubyte"] = RNG.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[f"{split}-labels-idx1-ubyte"] = (np.arange(count) % 10).astype(np.uint8)
    for name, array in arrays.items():
        if zipped:
            (folder / f"{name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            (folder / name).write_bytes(idx(array))
    return arrays


@pytest.fixture
def debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "DEBIAN", tmp_path / "debian")
    return tmp_path / "debian"


@pytest.mark.parametrize("place", [".", "fashion-mnist", "FashionMNIST/raw"])
@pytest.mark.parametrize("zipped", [False, True])
def test_fashion_mnist_from_idx(tmp_path: Path, debian: Path, place: str, zipped: bool) -> None:
    arrays = write_idx(tmp_path / "root" / place, zipped=zipped)
    data = open_images(DataConfig(source="fashion-mnist", root=str(tmp_path / "root")))
    assert isinstance(data, Data)
    assert not data.holdout
    assert (len(data.train), len(data.test), data.train.shape) == (6, 3, (1, 28, 28))
    assert (data.train.class_names, data.train.num_classes) == (FASHION, 10)
    np.testing.assert_array_equal(data.test[1]["image"][0], arrays["t10k-images-idx3-ubyte"][1])
    assert data.train[4]["label"] == 4


def test_debian_is_the_last_resort(tmp_path: Path, debian: Path) -> None:
    write_idx(debian / "fashion-mnist", zipped=True, num=8)
    assert len(open_images(DataConfig(source="fashion-mnist")).train) == 8
    write_idx(tmp_path / "root", num=4)
    assert len(open_images(DataConfig(source="fashion-mnist", root=str(tmp_path / "root"))).train) == 4
    with pytest.raises(FileNotFoundError, match=r"train-images-idx3-ubyte\[.gz\] and its three companions"):
        open_images(DataConfig(source="mnist"))


def test_missing_files_say_how_to_get_them(tmp_path: Path, debian: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"apt-get install dataset-fashion-mnist, or python -c .*FashionMNIST"):
        open_images(DataConfig(source="fashion-mnist", root=str(tmp_path)))
    write_idx(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"to get them: python -c .*KMNIST"):
        open_images(DataConfig(source="kmnist", root=str(tmp_path)))


def test_channels(tmp_path: Path, debian: Path) -> None:
    write_idx(tmp_path)
    assert open_images(DataConfig(source="mnist", root=str(tmp_path), channels=3)).train.shape == (3, 28, 28)


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_read_idx(tmp_path: Path, shape: tuple[int, ...], suffix: str) -> None:
    array = RNG.integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(idx(array)) if suffix else idx(array))
    np.testing.assert_array_equal(read_idx(path), array)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "expected a whole IDX file"),
        (b"\0\0\x08", "expected a whole IDX file"),
        (b"\0\0\x08\x03\0\0\0\x01", "expected a whole IDX file"),
        (b"\x89PNG\r\n\x1a\n", "expected an IDX file of uint8, received magic number 8950"),
        (idx(np.zeros(4, np.uint8), kind=0x0D), "expected an IDX file of uint8, received magic number 00000d"),
        (idx(np.zeros(4, np.uint8))[:-1], r"expected 4 bytes for shape \(4,\), received 3"),
        (idx(np.zeros(4, np.uint8)) + b"x", r"expected 4 bytes for shape \(4,\), received more"),
        (struct.pack(">HBB2I", 0, 8, 2, 9, 10**6), r"expected 9000000 bytes for shape \(9, 1000000\), received 0"),
    ],
)
def test_bad_idx_files(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=message):
        read_idx(path)


def test_bad_gzip(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    for raw in (b"plain", gzip.compress(idx(np.zeros(9999, np.uint8)))[:-12]):
        path.write_bytes(raw)
        with pytest.raises(ValueError, match="expected a whole IDX file"):
            read_idx(path)


def test_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()

    def put(name: str, content: dict[str, Any]) -> list[str]:
        raw = pickle.dumps(content)
        (folder / name).write_bytes(raw)
        return [name, hashlib.md5(raw).hexdigest()]

    images = RNG.integers(0, 256, (4, 3072), dtype=np.uint8)
    names = [f"class {i}" for i in range(10)]
    monkeypatch.setattr(tv.CIFAR10, "train_list", [put("data_batch_1", {"data": images, "labels": [3, 1, 9, 0]})])
    monkeypatch.setattr(tv.CIFAR10, "test_list", [put("test_batch", {"data": images[:2], "labels": [3, 1]})])
    meta = put("batches.meta", {"label_names": names})
    monkeypatch.setattr(tv.CIFAR10, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})
    data = open_images(DataConfig(source="cifar10", root=str(tmp_path)))
    assert (len(data.train), len(data.test), data.train.shape) == (4, 2, (3, 32, 32))
    np.testing.assert_array_equal(data.train[2]["image"], images[2].reshape(3, 32, 32))
    assert (data.train[2]["label"], data.test.class_names[9]) == (9, "class 9")
    # torchvision compares sums before it reads, so that other files never get to the unpickler.
    (folder / "data_batch_1").write_bytes(pickle.dumps({"data": images[::-1], "labels": [3, 1, 9, 0]}))
    with pytest.raises(
        FileNotFoundError, match=r"expected CIFAR10 as torchvision stores it in .*not found or corrupted"
    ):
        open_images(DataConfig(source="cifar10", root=str(tmp_path)))


def test_stl10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    images = RNG.integers(0, 256, (3, 3, 96, 96), dtype=np.uint8)
    for split in ("train", "test"):
        (folder / f"{split}_X.bin").write_bytes(images.tobytes())
        (folder / f"{split}_y.bin").write_bytes(bytes([10, 1, 2]))
    (folder / "class_names.txt").write_text("\n".join(f"c{i}" for i in range(10)))
    monkeypatch.setattr(tv.STL10, "_check_integrity", lambda self: True)
    data = open_images(DataConfig(source="stl10", root=str(tmp_path)))
    np.testing.assert_array_equal(data.train[1]["image"], images[1].transpose(0, 2, 1))
    assert [data.test[i]["label"] for i in range(3)] == [9, 0, 1]


def test_food101(tmp_path: Path) -> None:
    root = tmp_path / "in" / "food-101"
    lists: dict[str, Any] = {"train": {}, "test": {}}
    for name in ("apple_pie", "sushi"):
        for i in range(3):
            write(root / "images" / name / f"{i}.jpg", i, (40, 30 + i))
            lists["test" if i == 2 else "train"].setdefault(name, []).append(f"{name}/{i}")
    (root / "meta").mkdir()
    for split, content in lists.items():
        (root / "meta" / f"{split}.json").write_text(json.dumps(content))
    config = DataConfig(source="food101", root=str(tmp_path / "in"), cache=str(tmp_path / "cache"), image_size=16)
    data = open_images(config)
    assert isinstance(data.train, MemoryMap)
    assert (len(data.train), len(data.test), data.holdout) == (4, 2, False)
    assert data.train.class_names == ("apple_pie", "sushi")
    assert data.test[1]["label"] == 1
    assert data.train[0]["image"].shape == (3, 20, 27)
    assert data.train.path(0) == str(root / "images" / "apple_pie" / "0.jpg")


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "stl10", "food101"])
def test_no_root_and_no_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"data.root: expected the folder that holds"):
        open_images(DataConfig(source=name))
    with pytest.raises(FileNotFoundError, match=r"as torchvision stores it in .*to get it: python -c .*download=True"):
        open_images(DataConfig(source=name, root=str(tmp_path)))


def test_folders_digits_and_unknown_names(tmp_path: Path) -> None:
    assert open_images(DataConfig(root=str(classes(tmp_path / "in")), cache=str(tmp_path / "c"))).train.num_classes == 2
    assert len(open_images(DataConfig(source="digits")).train) == 1617
    with pytest.raises(ValueError, match="received 'fashion_mnist'; did you mean 'fashion-mnist'"):
        open_images(DataConfig(source="fashion_mnist"))
    assert set(DATASETS) >= {"fashion-mnist", "mnist", "cifar10"}


def test_the_debian_package_itself() -> None:
    if not (module.DEBIAN / "fashion-mnist").is_dir():
        pytest.skip("dataset-fashion-mnist is not installed")
    data = open_images(DataConfig(source="fashion-mnist"))
    assert (len(data.train), len(data.test), data.train.shape) == (60000, 10000, (1, 28, 28))
    assert data.train.labels is not None
    assert np.bincount(data.train.labels).tolist() == [6000] * 10
