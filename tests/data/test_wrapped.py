"""A user's dataset: what it may return, and that its randomness is exact and leaves no trace."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nearfar.data import BadSample, Source, Wrapped
from nearfar.data.wrapped import on_pass

GREY = np.arange(20, dtype=np.uint8).reshape(4, 5)
COLOUR = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)


class Listed:
    """A dataset that returns what it was given."""

    def __init__(self, *items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        if isinstance(self.items[i], Exception):
            raise self.items[i]
        return self.items[i]


class Noisy:
    """A dataset whose samples draw from all three generators."""

    classes = ("a", "b")
    targets = (0, 1, 0, 1)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        draws = [random.randrange(256), int(np.random.randint(256)), int(torch.randint(256, ()))]  # noqa: NPY002
        return np.array([draws], dtype=np.uint8), i % 2


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (GREY, GREY[None]),
        ((GREY, 3), GREY[None]),
        ((COLOUR,), COLOUR.transpose(2, 0, 1)),
        ({"image": COLOUR, "label": 3}, COLOUR.transpose(2, 0, 1)),
        ((Image.fromarray(COLOUR), torch.tensor(3)), COLOUR.transpose(2, 0, 1)),
        (Image.fromarray(GREY), GREY[None]),
        ((torch.from_numpy(COLOUR).permute(2, 0, 1), np.int64(3)), COLOUR.transpose(2, 0, 1)),
        (torch.from_numpy(GREY), GREY[None]),
    ],
)
def test_forms(item: Any, expected: np.ndarray) -> None:
    source = Wrapped(Listed(item))
    assert isinstance(source, Source)
    sample = source[0]
    np.testing.assert_array_equal(sample["image"], expected)
    assert sample["index"] == 0
    assert sample.get("label", 3) == 3
    assert source.path(0) == "Listed[0]"


def test_other_fields_and_channels_pass() -> None:
    source = Wrapped(Listed({"image": GREY, "index": 77, "note": "x"}), channels=3, name="mine")
    assert source[0]["image"].shape == (3, 4, 5)
    assert (source[0]["index"], source[0]["note"], source.name) == (0, "x", "mine")
    assert Wrapped(Listed(Image.fromarray(COLOUR)), channels=1)[0]["image"].shape == (1, 4, 5)


def test_labels_and_names_of_the_dataset() -> None:
    source = Wrapped(Noisy())
    assert source.labels is not None
    assert (source.labels.tolist(), source.class_names, source.num_classes) == ([0, 1, 0, 1], ("a", "b"), 2)
    assert Wrapped(Listed(GREY)).labels is None
    with pytest.raises(ValueError, match=r"labels: expected one a sample, shape \[4\]"):
        Wrapped(Noisy(), labels=[0, 1])


def test_randomness_is_a_function_of_seed_epoch_and_sample() -> None:
    def draw(seed: int, epoch: int, i: int) -> tuple[int, ...]:
        with on_pass(seed, epoch):
            return tuple(Wrapped(Noisy())[i]["image"].ravel().tolist())

    assert draw(0, 0, 0) == draw(0, 0, 0)
    assert len({draw(seed, epoch, i) for seed in range(3) for epoch in range(3) for i in range(4)}) == 36


def test_generators_are_put_back(request: pytest.FixtureRequest) -> None:
    random.seed(1)
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    Wrapped(Noisy())[0]
    with pytest.raises(BadSample):
        Wrapped(Listed(OSError("gone")))[0]
    if not request.config.getoption("jaxtyping_packages"):  # its checks draw from this generator
        assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


def test_unreadable_is_a_bad_sample_and_a_bug_is_a_bug() -> None:
    source = Wrapped(Listed(OSError("gone"), KeyError("bug")))
    with pytest.raises(BadSample, match=r"Listed\[0\]: OSError: gone"):
        source[0]
    with pytest.raises(KeyError, match="bug"):
        source[1]


@pytest.mark.parametrize(
    ("item", "error", "message"),
    [
        (torch.rand(3, 4, 5), ValueError, r"Listed\[0\]: expected an image of uint8, received float32; leave ToTensor"),
        ({"picture": GREY}, ValueError, r"Listed\[0\]: expected a dict with 'image', received \['picture'\]"),
        ((GREY, 1, 2), TypeError, r"expected an image, \(image, label\) or a dict, received 3 values"),
        ("text", TypeError, "expected a PIL image, an array or a tensor, received str"),
        (np.zeros((4, 5, 2), np.uint8), ValueError, r"expected shape \[H, W\] or \[H, W, C\] with C of 1 or 3"),
        (torch.from_numpy(COLOUR), ValueError, r"expected shape \[C, H, W\] with C of 1 or 3, received \(4, 5, 3\)"),
    ],
)
def test_refuses_forms(item: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Wrapped(Listed(item))[0]


def test_refuses_what_is_no_dataset() -> None:
    with pytest.raises(TypeError, match="dataset: expected a map-style dataset with __len__, received generator"):
        Wrapped(i for i in range(3))
    with pytest.raises(ValueError, match="channels: expected 0, 1 or 3, received 2"):
        Wrapped(Noisy(), channels=2)


def test_fingerprint() -> None:
    first = Wrapped(Noisy()).fingerprint()
    assert Wrapped(Noisy()).fingerprint() == first
    assert Wrapped(Noisy(), name="other").fingerprint() != first
