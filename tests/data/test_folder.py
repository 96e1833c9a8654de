"""What is found below a folder, how it is named and numbered, and what is said when it will not do."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest

from data.pictures import classes, truncate, write
from nearfar.data import BadSample, Data, ImageFiles, ImageFolder, Source, open_folder
from nearfar.data.decode import decode
from nearfar.data.folder import natural


def test_subfolders_are_classes_in_natural_order(tmp_path: Path) -> None:
    for name in ("10", "2", "1"):
        for file in ("img10.png", "img2.png", "deep/img1.JPG"):
            write(tmp_path / name / file, seed=int(name))
    source = ImageFolder(tmp_path)
    assert isinstance(source, Source)
    assert source.class_names == ("1", "2", "10")
    assert source.num_classes == 3
    assert source.files[:3] == ["1/deep/img1.JPG", "1/img2.png", "1/img10.png"]
    assert source.labels is not None
    assert source.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    sample = source[4]
    assert (sample["index"], sample["label"]) == (4, 1)
    np.testing.assert_array_equal(sample["image"], decode(tmp_path / "2" / "img2.png"))
    assert source.path(4) == str(tmp_path / "2" / "img2.png")
    assert (source.name, source.shape, len(source)) == (tmp_path.name, (), 9)


def test_flat_folders_have_no_labels(tmp_path: Path) -> None:
    for i in range(3):
        write(tmp_path / f"{i}.png", i)
    source = ImageFolder(tmp_path)
    assert (source.labels, source.num_classes, source.class_names) == (None, 0, ())
    assert set(source[0]) == {"index", "image"}
    # One subfolder only tells nothing apart.
    assert ImageFolder(classes(tmp_path / "other", names=("only",))).labels is None


def test_images_beside_subfolders_are_taken_without_labels(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(classes(tmp_path) / "stray.png")
    source = ImageFolder(tmp_path)
    assert (len(source), source.labels) == (13, None)
    assert "images beside subfolders" in caplog.text


def test_hidden_other_and_empty_are_ignored(tmp_path: Path) -> None:
    classes(tmp_path, num=2)
    write(tmp_path / ".hidden" / "a.png")
    write(tmp_path / "cat" / ".b.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").write_text("x")
    source = ImageFolder(tmp_path)
    assert source.class_names == ("cat", "dog")
    assert len(source) == 4


def test_links_out_of_the_folder_are_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    outside = classes(tmp_path / "outside")
    root = classes(tmp_path / "root", num=2)
    (root / "cat" / "9.png").symlink_to(outside / "dog" / "1.png")
    (root / "cow").symlink_to(outside / "dog")
    (root / "dog" / "8.png").symlink_to(root / "dog" / "0.png")
    (root / "dog" / "loop").symlink_to(root / "dog")
    with caplog.at_level(logging.WARNING):
        source = ImageFolder(root)
    assert source.files == ["cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png", "dog/8.png"]
    assert [Path(fault.path).name for fault in source.skipped] == ["9.png", "cow"]
    assert "leads out of the folder" in source.skipped[0].reason
    assert "left out 2 links" in caplog.text
    followed = ImageFolder(root, follow_links=True)
    assert followed.class_names == ("cat", "cow", "dog")
    assert (len(followed), followed.skipped) == (12, [])
    # The folder itself may be reached through a link.
    (tmp_path / "link").symlink_to(root)
    assert ImageFolder(tmp_path / "link").files == source.files


def test_only_links_out_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a").symlink_to(classes(tmp_path / "outside"))
    with pytest.raises(ValueError, match="received nothing and 1 links leading out of it"):
        ImageFolder(tmp_path / "root")


@pytest.mark.parametrize("name", ["val", "valid", "validation", "test"])
def test_own_split_is_used(tmp_path: Path, name: str) -> None:
    classes(tmp_path / "train", num=3, names=("a", "b", "c"))
    classes(tmp_path / name, num=1, names=("a", "c"))
    data = open_folder(tmp_path)
    assert isinstance(data, Data)
    assert not data.holdout
    assert (len(data.train), len(data.test)) == (9, 2)
    assert data.test.labels is not None
    assert data.test.labels.tolist() == [0, 2]
    assert data.test.class_names == data.train.class_names == ("a", "b", "c")


def test_validation_comes_before_test_and_alone_is_no_split(tmp_path: Path) -> None:
    classes(tmp_path / "train", num=2)
    whole = open_folder(tmp_path)
    assert isinstance(whole, ImageFolder)
    assert (whole.class_names, len(whole), whole.files[0]) == (("cat", "dog"), 4, "train/cat/0.png")
    classes(tmp_path / "test", num=3)
    classes(tmp_path / "val", num=1)
    data = open_folder(tmp_path)
    assert isinstance(data, Data)
    assert len(data.test) == 2


def test_unknown_class_of_the_test_split(tmp_path: Path) -> None:
    classes(tmp_path / "train", num=2)
    classes(tmp_path / "val", num=1, names=("cat", "cow"))
    with pytest.raises(ValueError, match="val: expected classes cat, dog, received 'cow'"):
        open_folder(tmp_path)
    for path in (tmp_path / "val").rglob("*.png"):
        path.unlink()
    write(tmp_path / "val" / "a.png")
    with pytest.raises(ValueError, match="val: expected classes cat, dog, received images in no subfolder"):
        open_folder(tmp_path)


def test_missing_empty_and_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data.root: expected a folder of images, received nothing; give it with"):
        ImageFolder("")
    with pytest.raises(FileNotFoundError, match="which does not exist"):
        ImageFolder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"expected images \(jpg jpeg png .*received nothing"):
        ImageFolder(tmp_path)
    (tmp_path / "a.txt").touch()
    (tmp_path / "b.txt").touch()
    (tmp_path / "c").touch()
    with pytest.raises(ValueError, match=r"received 2 \.txt, 1 without extension"):
        ImageFolder(tmp_path)
    with pytest.raises(NotADirectoryError, match="received the file"):
        ImageFolder(tmp_path / "a.txt")


def test_broken_files_raise_bad_sample(tmp_path: Path) -> None:
    path = truncate(write(tmp_path / "a.png", size=(64, 64)))
    gone = write(tmp_path / "b.png")
    source = ImageFolder(tmp_path)
    with pytest.raises(BadSample, match=r"a\.png: .*truncated") as caught:
        source[0]
    assert (caught.value.fault.index, caught.value.fault.path) == (0, str(path))
    gone.unlink()
    with pytest.raises(BadSample, match=r"b\.png: FileNotFoundError"):
        source[1]


def test_fingerprint_tells_changes(tmp_path: Path) -> None:
    classes(tmp_path, num=2)
    first = ImageFolder(tmp_path).fingerprint()
    assert ImageFolder(tmp_path).fingerprint() == first
    assert ImageFolder(tmp_path, shorter=4).fingerprint() == first  # how far files are reduced is no part of the data
    prints = {first, ImageFolder(tmp_path, channels=1).fingerprint()}
    os.utime(tmp_path / "cat" / "0.png", (1, 1))
    prints.add(ImageFolder(tmp_path).fingerprint())
    write(tmp_path / "cat" / "0.png", 9, (9, 9))
    prints.add(ImageFolder(tmp_path).fingerprint())
    (tmp_path / "dog" / "0.png").rename(tmp_path / "dog" / "7.png")
    prints.add(ImageFolder(tmp_path).fingerprint())
    (tmp_path / "dog" / "7.png").unlink()
    prints.add(ImageFolder(tmp_path).fingerprint())
    assert len(prints) == 6


def test_lists_of_files_and_their_labels(tmp_path: Path) -> None:
    write(tmp_path / "a.png")
    source = ImageFiles(tmp_path, ["a.png", "a.png"], [1, 0], ["x", "y"], name="mine", channels=1)
    assert (source.name, source[0]["label"], source[0]["image"].shape) == ("mine", 1, (1, 8, 8))
    with pytest.raises(ValueError, match=r"labels: expected one a sample, shape \[1\], received \(2,\)"):
        ImageFiles(tmp_path, ["a.png"], [1, 0])
    with pytest.raises(ValueError, match="labels: expected below the 2 class names, received 2"):
        ImageFiles(tmp_path, ["a.png"], [2], ["x", "y"])
    with pytest.raises(ValueError, match="channels: expected 1 or 3, received 4"):
        ImageFiles(tmp_path, ["a.png"], channels=4)


def test_natural_order() -> None:
    assert sorted(["b", "a10", "a9", "10", "9", "a"], key=natural) == ["9", "10", "a", "a9", "a10", "b"]
