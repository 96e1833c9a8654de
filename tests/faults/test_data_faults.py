"""Unreadable files in a running loader: counted, named, replaced, and put up with to a share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from data.pictures import classes, truncate
from nearfar.batch import Batch
from nearfar.config import DataConfig
from nearfar.data import ImageFolder, Loader, Source, Subset, TooManyFaults, Wrapped, memory_map, open_data
from nearfar.samplers import Sequential, Shuffle

BAD = {2: "cat/2.png", 3: "cat/3.png", 19: "dog/9.png"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """20 images of which three are broken: two neighbours, and the last."""
    root = classes(tmp_path / "in", num=10)
    truncate(root / BAD[2])
    (root / BAD[3]).write_text("not an image")
    (root / BAD[19]).write_bytes(b"")
    return root


def sources(root: Path) -> dict[str, Source]:
    files = ImageFolder(root)
    return {
        "files": files,
        "mapped": memory_map(files, memory_gb=1.0, cache=str(root.parent / "cache"), max_bad_share=0.2),
        "wrapped": Wrapped(_Opened(files), labels=files.labels),
    }


class _Opened:
    """A dataset of the user's that opens files itself."""

    def __init__(self, files: ImageFolder) -> None:
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        from PIL import Image

        with Image.open(self.files.path(i)) as image:
            return np.array(image), i // 10


def rows(batches: list[Batch]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", ["files", "mapped", "wrapped"])
def test_replaced_by_the_next_good_one_with_its_own_index(root: Path, name: str, workers: int) -> None:
    source = sources(root)[name]
    loader = Loader(source, Sequential(20, 6), workers=workers, max_bad_share=0.2)
    got = rows(list(loader.epoch(0)))
    wanted = [{2: 4, 3: 4, 19: 0}.get(i, i) for i in range(20)]
    assert got["index"].tolist() == wanted
    assert got["label"].tolist() == [i // 10 for i in wanted]
    for image, i in zip(got["image"], wanted, strict=True):
        np.testing.assert_array_equal(image.numpy(), source[i]["image"])
    assert [fault.index for fault in loader.faults] == [2, 3, 19]
    for fault in loader.faults:
        assert fault.path == source.path(fault.index)
    assert "truncated" in loader.faults[0].reason
    assert "cannot identify" in loader.faults[1].reason
    list(loader.epoch(1))
    assert len(loader.faults) == 3


def test_the_batches_without_faults_are_untouched(root: Path) -> None:
    broken = list(Loader(ImageFolder(root), Shuffle(20, 5), max_bad_share=0.2).epoch(0))
    classes(root, num=10)
    whole = list(Loader(ImageFolder(root), Shuffle(20, 5)).epoch(0))
    wanted = torch.cat([batch["index"] for batch in whole])
    differ = torch.cat([batch["index"] for batch in broken]) != wanted
    assert set(wanted[differ].tolist()) == set(BAD)


@pytest.mark.parametrize("workers", [0, 2])
def test_more_than_the_share_stops(root: Path, workers: int) -> None:
    loader = Loader(ImageFolder(root), Sequential(20, 4), workers=workers, max_bad_share=0.1)
    batches = loader.epoch(0)
    for _ in range(4):
        next(batches)
    with pytest.raises(TooManyFaults, match=r"at most a share of 0.1 of 20, received 3: .*2\.png .*3\.png .*9\.png"):
        next(batches)


def test_one_is_put_up_with_unless_none_may_be(root: Path) -> None:
    classes(root, num=10)
    truncate(root / BAD[19])
    for name, source in sources(root).items():
        loader = Loader(source, Sequential(20, 20), max_bad_share=0.001)
        list(loader.epoch(0))
        assert len(loader.faults) == 1, name
        with pytest.raises(TooManyFaults, match="a share of 0 of 20, received 1"):
            list(Loader(source, Sequential(20, 20), max_bad_share=0.0).epoch(0))


def test_a_replacement_never_leaves_its_part(root: Path) -> None:
    # The next good image after 3 in the whole source is 4, which here belongs to the test split.
    source = sources(root)
    for name in ("files", "mapped"):
        part = Subset(source[name], np.array([0, 3, 10]))
        loader = Loader(part, Sequential(3, 3), max_bad_share=0.5)
        assert next(loader.epoch(0))["index"].tolist() == [0, 10, 10]


def test_all_unreadable_ends(tmp_path: Path) -> None:
    root = classes(tmp_path / "in", num=2)
    for path in root.rglob("*.png"):
        truncate(path)
    for share in (0.5, 1.0):
        with pytest.raises(TooManyFaults, match="unreadable samples"):
            next(Loader(ImageFolder(root), Sequential(4, 2), max_bad_share=share).epoch(0))


def test_a_part_without_samples_over_a_bad_first(root: Path) -> None:
    part = Subset(ImageFolder(root), np.array([2, 5]))
    loader = Loader(part, Sequential(2, 1), rank=1, world=2, max_bad_share=0.5)
    assert [len(batch["index"]) for batch in loader.epoch(0)] == [0, 0]


def test_open_data_tells_of_a_spoilt_folder(root: Path) -> None:
    config = DataConfig(root=str(root), cache=str(root.parent / "cache"))
    with pytest.raises(TooManyFaults, match=r"at most a share of 0.01 of 20, received 2: .*2\.png.*3\.png"):
        open_data(config)
