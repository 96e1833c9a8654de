"""Images in arrays, in memory or in .npy and .npz files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from nearfar.batch import Batch
from nearfar.checks import expect, expect_choice
from nearfar.data.decode import to_channels
from nearfar.data.source import Data, check_labels, digest

Layout = Literal["auto", "nchw", "nhwc"]


class ArraySource:
    """Images in one array.

    Args:
        images: uint8 [N, H, W], [N, H, W, C] or [N, C, H, W] with C of 1 or 3; NumPy or torch.
        labels: integers [N] from 0, or None.
        name: for people.
        class_names: one a class.
        channels: 1 or 3 of the samples, whatever the array has; 0: the array's own.
        layout: which of the two four-dimensional forms; auto tells them apart by where 1 or 3 stands.
        columns: further values of every sample by name, for samplers, data.target and data.levels.

    Raises:
        ValueError: another type or shape, both forms possible, labels that do not fit.
    """

    def __init__(
        self,
        images: np.ndarray | Tensor,
        labels: Any = None,
        *,
        name: str = "array",
        class_names: Sequence[str] = (),
        channels: int = 0,
        layout: Layout = "auto",
        columns: Mapping[str, Any] | None = None,
    ) -> None:
        images = images.cpu().numpy() if isinstance(images, Tensor) else images
        hint = "; scale to 0..255 and convert" if getattr(images, "dtype", np.dtype("O")).kind == "f" else ""
        expect(isinstance(images, np.ndarray) and images.dtype == np.uint8, "images", "an array of uint8",
               f"{getattr(images, 'dtype', type(images).__name__)}{hint}")  # fmt: skip
        expect(channels in (0, 1, 3), "channels", "0, 1 or 3", channels)
        self.images = _channels_first(images, layout)
        self.name, self.channels, self.class_names = name, channels, tuple(class_names)
        self.shape: tuple[int, ...] = (channels or self.images.shape[1], *self.images.shape[2:])
        self.labels, self.num_classes = None, 0
        if labels is not None:
            labels = labels.cpu().numpy() if isinstance(labels, Tensor) else labels
            self.labels, self.num_classes = check_labels(labels, len(images), self.class_names)
        self._columns = {name: np.asarray(values) for name, values in (columns or {}).items()}
        for name, values in self._columns.items():
            expect(len(values) == len(images), f"columns {name!r}", f"{len(images)} values", len(values))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict[str, Any]:
        sample = {"index": i, "image": to_channels(np.array(self.images[i], order="C"), self.channels)}
        return sample if self.labels is None else {**sample, "label": int(self.labels[i])}

    def batch(self, positions: np.ndarray) -> Batch:
        """Many samples at once."""
        return from_columns(positions, to_channels(self.images[positions], self.channels), self.labels)

    def column(self, name: str) -> np.ndarray | None:
        """One of the columns it was made with."""
        return self._columns.get(name)

    def path(self, i: int) -> str:
        """The source's name and the number."""
        return f"{self.name}[{i}]"

    def fingerprint(self) -> str:
        """Hash of the labels and of 64 images spread over the array."""
        some = np.unique(np.linspace(0, max(len(self) - 1, 0), 64, dtype=np.int64))[: len(self)]
        labels = np.zeros(0, dtype=np.int64) if self.labels is None else self.labels
        return digest("array-1", f"{self.images.shape} {self.channels}", self.images[some], labels)


def from_columns(positions: np.ndarray, images: np.ndarray, labels: np.ndarray | None) -> Batch:
    """A batch of images that were read together; `images` must be this batch's own copy."""
    columns: dict[str, Any] = {"index": np.array(positions, dtype=np.int64), "image": images}
    if labels is not None:
        columns["label"] = labels[positions]
    return {name: torch.from_numpy(np.ascontiguousarray(column)) for name, column in columns.items()}


def open_arrays(path: Path | str, *, channels: int = 0) -> Data | ArraySource:
    """Images of a .npy file, or of a .npz file by its names.

    In a .npz file: `images` and perhaps `labels`; or `train_images` with `val_images` or `test_images` and their
    `..._labels`; or `x_train`, `y_train`, `x_test`, `y_test`. With a split the result is Data. Files that hold Python
    objects are refused.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"data.root: expected a .npy or .npz file, received {path}, which does not exist")
    expect_choice("data.root: extension", path.suffix.lower(), (".npy", ".npz"))
    if path.suffix.lower() == ".npy":
        return ArraySource(_load(path, mmap_mode="r"), name=path.stem, channels=channels)
    with _load(path) as archive:
        have = set(archive.files)
        splits = [(f"{split}_images", f"{split}_labels") for split in ("train", "val", "test")]
        for train, tests in ((splits[0], splits[1:]), (("x_train", "y_train"), [("x_test", "y_test")])):
            test = next((pair for pair in tests if pair[0] in have), None)
            if train[0] in have and test is not None:
                first, second = (
                    ArraySource(
                        archive[images], archive[labels] if labels in have else None,
                        name=f"{path.stem} {images}", channels=channels,
                    ) for images, labels in (train, test)
                )  # fmt: skip
                first.num_classes = second.num_classes = max(first.num_classes, second.num_classes)
                return Data(first, second)
        expect("images" in have, str(path), "an array 'images', or 'train_images' and 'test_images'", sorted(have))
        labels = archive["labels"] if "labels" in have else None
        return ArraySource(archive["images"], labels, name=path.stem, channels=channels)


def _load(path: Path, **options: Any) -> Any:
    try:
        return np.load(path, allow_pickle=False, **options)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(
            f"data.root: expected an array file without Python objects, received {path}: {error}"
        ) from error


def _channels_first(images: np.ndarray, layout: str) -> np.ndarray:
    """A view of shape [N, C, H, W]."""
    expect_choice("layout", layout, ("auto", "nchw", "nhwc"))
    expected = "shape [N, H, W], [N, H, W, C] or [N, C, H, W] with C of 1 or 3"
    if images.ndim == 3:
        return images[:, None]
    expect(images.ndim == 4, "images", expected, images.shape)
    first, last = images.shape[1] in (1, 3), images.shape[3] in (1, 3)
    expect(first or last, "images", expected, images.shape)
    if layout == "auto":
        expect(first != last, "layout", f"'nchw' or 'nhwc', since {images.shape} may be either", repr(layout))
        layout = "nchw" if first else "nhwc"
    expect(first if layout == "nchw" else last, "images", f"1 or 3 channels in layout {layout!r}", images.shape)
    return images if layout == "nchw" else images.transpose(0, 3, 1, 2)
