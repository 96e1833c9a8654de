"""Arrays of images in all their layouts, from memory and from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nearfar.batch import collate
from nearfar.data import ArraySource, Data, Source, open_arrays

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 3, 5, 4), dtype=np.uint8)
LABELS = np.array([0, 2, 1, 2, 0, 1], dtype=np.uint8)


@pytest.mark.parametrize(
    "images", [IMAGES, torch.from_numpy(IMAGES), IMAGES.transpose(0, 2, 3, 1), np.asfortranarray(IMAGES)]
)
def test_layouts_give_the_same_samples(images: Any) -> None:
    source = ArraySource(images, LABELS)
    assert isinstance(source, Source)
    assert (source.shape, source.num_classes, len(source)) == ((3, 5, 4), 3, 6)
    np.testing.assert_array_equal(source[2]["image"], IMAGES[2])
    assert source[2]["image"].flags.c_contiguous
    batch = source.batch(np.array([4, 1]))
    np.testing.assert_array_equal(batch["image"].numpy(), IMAGES[[4, 1]])
    assert batch["label"].tolist() == [0, 2]
    assert batch["index"].tolist() == [4, 1]
    assert batch["image"].is_contiguous()


def test_batch_equals_collated_samples() -> None:
    for channels in (0, 1, 3):
        source = ArraySource(IMAGES, LABELS, channels=channels)
        one, many = collate([source[i] for i in (3, 0, 3)]), source.batch(np.array([3, 0, 3]))
        assert one.keys() == many.keys()
        for name in one:
            assert torch.equal(one[name], many[name])
            assert one[name].dtype == many[name].dtype


def test_grey_and_channels() -> None:
    grey = ArraySource(IMAGES[:, 0])
    assert grey.shape == (1, 5, 4)
    assert (grey.labels, grey.num_classes) == (None, 0)
    assert set(grey[0]) == {"index", "image"}
    assert ArraySource(IMAGES[:, 0], channels=3).batch(np.array([1]))["image"].shape == (1, 3, 5, 4)
    assert ArraySource(IMAGES, channels=1)[0]["image"].shape == (1, 5, 4)


def test_samples_are_copies() -> None:
    images = IMAGES.copy()
    source = ArraySource(images)
    source[0]["image"][:] = 0
    source.batch(np.array([0]))["image"].zero_()
    np.testing.assert_array_equal(images, IMAGES)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (IMAGES.astype(np.float32), None, "images: expected an array of uint8, received float32; scale to 0..255"),
        (IMAGES.astype(np.int64), None, "images: expected an array of uint8, received int64"),
        (IMAGES[0, 0], None, r"images: expected shape \[N, H, W\]"),
        (RNG.integers(0, 9, (2, 4, 5, 4), dtype=np.uint8), None, r"images: expected shape .*received \(2, 4, 5, 4\)"),
        (IMAGES[..., :3], None, "layout: expected 'nchw' or 'nhwc', since .* may be either"),
        (IMAGES, LABELS[:5], r"labels: expected one a sample, shape \[6\], received \(5,\)"),
        (IMAGES, LABELS * 0.5, "labels: expected integers, received float64"),
        (IMAGES, LABELS.astype(int) - 1, "labels: expected 0 or more, received -1"),
        (IMAGES, np.ones((6, 2), int), r"labels: expected one a sample, shape \[6\], received \(6, 2\)"),
    ],
)
def test_refuses(images: Any, labels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ArraySource(images, labels)


def test_refuses_a_list() -> None:
    with pytest.raises((ValueError, TypeError), match="images"):  # TypeError where annotations are checked
        ArraySource([[1]])  # type: ignore[arg-type]


def test_layout_can_be_said() -> None:
    square = IMAGES[..., :3]
    assert ArraySource(square, layout="nchw").shape == (3, 5, 3)
    assert ArraySource(square, layout="nhwc").shape == (3, 3, 5)
    with pytest.raises(ValueError, match="images: expected 1 or 3 channels in layout 'nhwc'"):
        ArraySource(IMAGES, layout="nhwc")
    with pytest.raises(ValueError, match="class names, received 2"):
        ArraySource(IMAGES, LABELS, class_names=["a", "b"])


def test_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "some.npy", IMAGES)
    source = open_arrays(tmp_path / "some.npy")
    assert isinstance(source, ArraySource)
    assert (source.name, len(source)) == ("some", 6)
    np.testing.assert_array_equal(source.batch(np.arange(6))["image"].numpy(), IMAGES)


@pytest.mark.parametrize("names", [("train_images", "train_labels", "val_images", "val_labels"),
                                   ("train_images", "train_labels", "test_images", "test_labels"),
                                   ("x_train", "y_train", "x_test", "y_test")])  # fmt: skip
def test_npz_with_a_split(tmp_path: Path, names: tuple[str, ...]) -> None:
    arrays = (IMAGES[:4], LABELS[:4, None], IMAGES[4:], LABELS[4:, None])
    np.savez_compressed(tmp_path / "med.npz", **dict(zip(names, arrays, strict=True)))
    data = open_arrays(tmp_path / "med.npz", channels=1)
    assert isinstance(data, Data)
    assert (len(data.train), len(data.test), data.holdout) == (4, 2, False)
    assert data.train.shape == (1, 5, 4)
    assert data.test.labels is not None
    assert data.test.labels.tolist() == [0, 1]
    assert data.train.num_classes == data.test.num_classes == 3


def test_npz_without_a_split(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=IMAGES, labels=LABELS)
    source = open_arrays(tmp_path / "a.npz")
    assert isinstance(source, ArraySource)
    assert source.labels is not None
    np.savez(tmp_path / "b.npz", images=IMAGES)
    source = open_arrays(tmp_path / "b.npz")
    assert isinstance(source, ArraySource)
    assert source.labels is None


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="which does not exist"):
        open_arrays(tmp_path / "no.npy")
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match="expected an array file without Python objects"):
        open_arrays(tmp_path / "objects.npy")
    np.savez(tmp_path / "objects.npz", images=np.array([{}]))
    with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
        open_arrays(tmp_path / "objects.npz")
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ValueError, match="expected an array file without Python objects"):
        open_arrays(tmp_path / "cut.npy")
    np.savez(tmp_path / "other.npz", pictures=IMAGES)
    with pytest.raises(ValueError, match=r"expected an array 'images'.*received \['pictures'\]"):
        open_arrays(tmp_path / "other.npz")
    (tmp_path / "a.txt").touch()
    with pytest.raises(ValueError, match=r"extension: expected one of '.npy', '.npz', received '.txt'"):
        open_arrays(tmp_path / "a.txt")


def test_fingerprint_tells_changes() -> None:
    first = ArraySource(IMAGES, LABELS).fingerprint()
    assert ArraySource(torch.from_numpy(IMAGES), torch.from_numpy(LABELS)).fingerprint() == first
    changed = IMAGES.copy()
    changed[3, 0, 0, 0] ^= 1
    others = {
        ArraySource(changed, LABELS).fingerprint(), ArraySource(IMAGES, LABELS[::-1].copy()).fingerprint(),
        ArraySource(IMAGES).fingerprint(), ArraySource(IMAGES[:5], LABELS[:5]).fingerprint(),
        ArraySource(IMAGES, LABELS, channels=1).fingerprint(),
    }  # fmt: skip
    assert len(others | {first}) == 6
