"""A user's own dataset as a source."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nearfar.checks import expect
from nearfar.data.decode import from_pil, to_channels, to_colour
from nearfar.data.source import BadSample, Fault, check_labels, digest

# (seed, epoch) of the pass that a loader is on.
_PASS: ContextVar[tuple[int, int]] = ContextVar("nearfar_pass", default=(0, 0))


class Wrapped:
    """A map-style dataset that returns an image, (image, label), or a dict with `image`.

    Images are PIL images, uint8 arrays [H, W] or [H, W, C], or uint8 tensors [C, H, W]. Random transforms of the
    dataset are exact: before each sample the generators of Python, NumPy and torch (CPU) are seeded by (seed, epoch,
    sample) and afterwards put back, so that workers, order and resuming change nothing. An OSError counts as a bad
    sample; any other error of the dataset passes through.

    Args:
        dataset: has __len__ and __getitem__.
        name: for people, and part of the fingerprint.
        labels: integers [N] known without reading samples; empty: the dataset's `targets` or `labels`, if any.
        class_names: one a class; empty: the dataset's `classes`, if it has them.
        channels: 1 or 3; 0: each image's own.
        shape: (C, H, W), if all images have it.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        name: str = "",
        labels: Any = None,
        class_names: Sequence[str] = (),
        channels: int = 0,
        shape: tuple[int, ...] = (),
    ) -> None:
        for method in ("__len__", "__getitem__"):
            expect(
                hasattr(dataset, method),
                "dataset",
                f"a map-style dataset with {method}",
                type(dataset).__name__,
                TypeError,
            )
        expect(channels in (0, 1, 3), "channels", "0, 1 or 3", channels)
        self.dataset, self.name, self.channels, self.shape = dataset, name or type(dataset).__name__, channels, shape
        self.class_names = tuple(class_names) or tuple(map(str, getattr(dataset, "classes", ())))
        found = labels if labels is not None else getattr(dataset, "targets", getattr(dataset, "labels", None))
        self.labels, self.num_classes = None, len(self.class_names)
        if found is not None:
            self.labels, self.num_classes = check_labels(found, len(dataset), self.class_names)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> dict[str, Any]:
        try:
            with _seeded(*_PASS.get(), i):
                raw = self.dataset[i]
        except OSError as error:
            raise BadSample(Fault(i, self.path(i), f"{type(error).__name__}: {error}")) from error
        sample = _named(raw, self.path(i))
        sample["image"] = _image(sample["image"], self.channels, self.path(i))
        return {"index": i, **{key: value for key, value in sample.items() if key != "index"}}

    def path(self, i: int) -> str:
        """The source's name and the number."""
        return f"{self.name}[{i}]"

    def fingerprint(self) -> str:
        """Hash of name, number of samples and labels; the samples are not read."""
        return digest(
            "wrapped-1", self.name, str(len(self)), np.zeros(0, np.int64) if self.labels is None else self.labels
        )


@contextlib.contextmanager
def on_pass(seed: int, epoch: int) -> Iterator[None]:
    """Samples read within are those of this epoch."""
    token = _PASS.set((seed, epoch))
    try:
        yield
    finally:
        _PASS.reset(token)


def this_pass() -> tuple[int, int]:
    """Seed and epoch of the pass that samples are read for; (0, 0) outside of a loader."""
    return _PASS.get()


@contextlib.contextmanager
def _seeded(*key: int) -> Iterator[None]:
    seeds = np.random.SeedSequence(key).generate_state(3)
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    random.seed(int(seeds[0]))
    np.random.seed(seeds[1])  # noqa: NPY002
    torch.default_generator.manual_seed(int(seeds[2]))  # not torch.manual_seed, which reseeds the GPUs too
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        torch.set_rng_state(before[2])


def _named(raw: Any, where: str) -> dict[str, Any]:
    if isinstance(raw, Mapping):
        expect("image" in raw, where, "a dict with 'image'", sorted(map(str, raw)))
        return dict(raw)
    if isinstance(raw, (tuple, list)):
        expect(len(raw) in (1, 2), where, "an image, (image, label) or a dict", f"{len(raw)} values", TypeError)
        if len(raw) == 1:
            return {"image": raw[0]}
        scalar = isinstance(raw[1], (Tensor, np.ndarray)) and raw[1].ndim == 0
        return {"image": raw[0], "label": raw[1].item() if scalar else raw[1]}
    return {"image": raw}


def _image(image: Any, channels: int, where: str) -> np.ndarray:
    if isinstance(image, Image.Image):
        return from_pil(to_colour(image, channels or (1 if image.mode in ("1", "L", "I", "I;16") else 3)))
    tensor = isinstance(image, Tensor)
    array = image.numpy() if tensor else image
    expect(isinstance(array, np.ndarray), where, "a PIL image, an array or a tensor", type(image).__name__, TypeError)
    hint = "; leave ToTensor and Normalize out, views are made and normalised on the device"
    expect(array.dtype == np.uint8, where, "an image of uint8", f"{array.dtype}{hint}")
    if array.ndim == 2:
        array = array[None]
    elif not tensor and array.ndim == 3:
        array = array.transpose(2, 0, 1)
    form = "[C, H, W]" if tensor else "[H, W] or [H, W, C]"
    expect(array.ndim == 3 and array.shape[0] in (1, 3), where, f"shape {form} with C of 1 or 3", tuple(image.shape))
    return to_channels(np.array(array, order="C"), channels)
