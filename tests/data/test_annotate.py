"""Targets and paths of labels: from folders, tables and columns to fields of samples."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.pictures import write
from nearfar.config import DataConfig, SamplerConfig
from nearfar.data import (
    Annotated,
    ArraySource,
    Data,
    ImageFolder,
    Loader,
    Source,
    Subset,
    column,
    open_data,
    targets_of,
    unique_paths,
)
from nearfar.samplers import Sequential, make_sampler


def nested(root: Path, num: int = 2) -> Path:
    for c, place in enumerate(("birds/jay", "birds/owl", "cats/jay")):
        for i in range(num):
            write(root / place / f"{i}.png", 10 * c + i)
    return root


def table(root: Path, rows: dict[str, Any], name: str = "age") -> None:
    with open(root / "metadata.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", name, "source"])
        writer.writerows([file, value, "scan"] for file, value in rows.items())


def config(root: Path, **options: Any) -> DataConfig:
    return DataConfig(root=str(root), cache=str(root.parent / "cache"), **options)


def arrays(num: int = 5) -> ArraySource:
    return ArraySource(np.zeros((num, 4, 4), np.uint8), np.arange(num) % 2)


def test_nested_folders_are_levels(tmp_path: Path) -> None:
    data = open_data(config(nested(tmp_path / "in", 4), levels=("folder1", "folder2"), validation=0.25))
    assert data.train.class_names == ("birds/jay", "birds/owl", "cats/jay")
    assert data.train.num_classes == 3
    path = column(data.train, "path")
    assert sorted(set(map(tuple, path.tolist()))) == [(0, 0), (0, 1), (1, 2)]  # jays of two kinds are two classes
    assert data.train.labels is not None
    np.testing.assert_array_equal(data.train.labels, path[:, 1])
    assert data.test.labels is not None
    assert np.bincount(data.test.labels).tolist() == [1, 1, 1]
    sample = data.train[0]
    assert (sample["path"].tolist(), sample["label"]) == ([0, 0], 0)
    sampler = make_sampler(SamplerConfig(kind="hierarchical", nums=(2, 1, 2)), data.train, 4)
    (batch,) = [one for one in Loader(data.train, sampler).epoch(0)][:1]
    assert batch["path"].shape == (4, 2)
    assert batch["path"].dtype == torch.int64
    assert torch.equal(batch["label"], batch["path"][:, 1])


@pytest.mark.parametrize("memory_gb", [0.0, 1.0])
def test_ids_agree_between_splits(tmp_path: Path, memory_gb: float) -> None:
    nested(tmp_path / "in" / "train")
    write(tmp_path / "in" / "val" / "cats" / "jay" / "0.png")
    data = open_data(config(tmp_path / "in", levels=("folder1", "folder2"), memory_gb=memory_gb))
    assert data.test[0]["path"].tolist() == [1, 2]
    assert data.test.class_names == data.train.class_names
    assert data.test.num_classes == 3


@pytest.mark.parametrize("memory_gb", [0.0, 1.0])
def test_targets_of_a_table(tmp_path: Path, memory_gb: float) -> None:
    root = tmp_path / "in"
    for i in range(4):
        write(root / f"{i}.png", i)
    table(root, {"3.png": 0.25, "0.png": "-1", "./1.png": 7, "2.png": "2e1", "gone.png": "x"})
    data = open_data(config(root, target="age", validation=0.25, memory_gb=memory_gb))
    assert data.train.labels is None
    expected = torch.tensor([-1.0, 7.0, 20.0, 0.25])
    batch = next(iter(Loader(data.train, Sequential(3, 3)).epoch(0)))
    torch.testing.assert_close(batch["target"], expected[batch["index"]])
    assert batch["target"].dtype == torch.float32
    found = targets_of(data.train, batch["index"], data.test, torch.tensor([data.test[0]["index"]]))
    assert found is not None
    torch.testing.assert_close(found[0].float(), batch["target"])
    assert targets_of(arrays(), torch.arange(2), data.test, torch.arange(1)) is None


def test_levels_of_a_table_and_targets_at_once(tmp_path: Path) -> None:
    root = nested(tmp_path / "in")
    rows = {f"{place}/{i}.png": i + 0.5 for place in ("birds/jay", "birds/owl", "cats/jay") for i in range(2)}
    table(root, rows)
    data = open_data(config(root, target="age", levels=("source", "label"), validation=0.0))
    assert data.train.class_names == ("scan/birds", "scan/cats")
    sample = data.train[1]
    assert (sample["target"], sample["path"].tolist()) == (1.5, [0, 0])


def test_columns_of_a_folder(tmp_path: Path) -> None:
    source = ImageFolder(nested(tmp_path / "in"))
    assert column(source, "folder2").tolist() == ["jay", "jay", "owl", "owl", "jay", "jay"]
    with pytest.raises(ValueError, match="column folder3 of .*: expected images in 3 nested folders, received 6 that"):
        column(source, "folder3")
    with pytest.raises(ValueError, match="expected folder1 or a larger number, received folder0"):
        column(source, "folder0")
    with pytest.raises(ValueError, match="sampler.column: expected a column of in, received age"):
        column(source, "age")


@pytest.mark.parametrize(
    ("rows", "options", "match"),
    [
        ({"0.png": 1}, {"target": "age"}, "column age of .*metadata.csv: expected a value for every image, .* 1.png"),
        ({"0.png": 1, "1.png": ""}, {"target": "age"}, "received none for 1, e.g. 1.png"),
        ({"0.png": 1, "1.png": "inf"}, {"target": "age"}, r"target: expected finite numbers, .* the first for .*1.png"),
        ({"0.png": 1, "1.png": "old"}, {"target": "age"}, "data.target: expected a column of numbers .* e.g. '1'"),
        ({"0.png": 1, "./0.png": 2, "1.png": 3}, {"target": "age"}, "expected a row a file, received two of ./0.png"),
        ({"0.png": 1, "1.png": 2}, {"target": "height"}, "data.target: expected a column of in, received 'height'"),
        ({"0.png": 1, "1.png": 2}, {"levels": ("kind",)}, "data.levels: expected a column of in, received 'kind'"),
    ],
)  # fmt: skip
def test_what_a_table_lacks_is_named(tmp_path: Path, rows: dict[str, Any], options: Any, match: str) -> None:
    for i in range(2):
        write(tmp_path / "in" / f"{i}.png", i)
    table(tmp_path / "in", rows)
    with pytest.raises(ValueError, match=match):
        open_data(config(tmp_path / "in", **options))


def test_a_table_needs_file_names(tmp_path: Path) -> None:
    write(tmp_path / "in" / "0.png")
    (tmp_path / "in" / "metadata.csv").write_text("file,age\n0.png,3\n")
    with pytest.raises(ValueError, match="metadata.csv: expected a column file_name, paths relative to its folder"):
        open_data(config(tmp_path / "in", target="age"))


def test_arrays_are_annotated_in_python() -> None:
    source = Annotated(arrays(), target=[1, 2, 3, 4, 5], path=[[0, 0], [0, 1], [1, 2], [1, 2], [0, 0]])
    assert isinstance(source, Source)
    assert (source.num_classes, len(source), source.path(1)) == (3, 5, "array[1]")
    part = Subset(source, np.array([4, 2]))
    batch = next(iter(Loader(part, Sequential(2, 2)).epoch(0)))
    assert batch["target"].tolist() == [5, 3]
    assert batch["path"].tolist() == [[0, 0], [1, 2]]
    assert batch["label"].tolist() == [0, 2]
    assert source[2]["target"] == 3.0
    assert source.fingerprint() != Annotated(arrays(), target=[1, 2, 3, 4, 6]).fingerprint()
    same = open_data(
        DataConfig(source="mine", levels=("label",), validation=0.0), datasets={"mine": lambda _: arrays()}
    )
    assert isinstance(same, Data)
    assert column(same.train, "path").tolist() == [[0], [1], [0], [1], [0]]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"target": [1, 2]}, r"target: expected shape \(5,\)"),
        ({"path": [0, 1, 2, 3, 4]}, r"path: expected integers of shape \(5, H\)"),
        ({"path": np.zeros((5, 2))}, "path: expected integers"),
        ({"path": [[0, 0], [1, 0], [0, 1], [0, 1], [0, 1]]}, "path: expected one parent for every id of level 1"),
        ({"path": [[0], [1], [0], [1], [2]], "class_names": ["a", "b"]}, "below the 2 class names"),
    ],
)
def test_refuses(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Annotated(arrays(), **options)


def test_digits_have_two_levels() -> None:
    data = open_data(DataConfig(source="digits", levels=("form", "label"), validation=0.0))
    assert data.train.class_names[:5] == ("loop/0", "loop/6", "loop/8", "loop/9", "open/2")
    path = column(data.train, "path")
    assert [len(np.unique(level)) for level in path.T] == [3, 10]
    with pytest.raises(ValueError, match="columns 'a': expected 5 values, received 4"):
        ArraySource(np.zeros((5, 4, 4), np.uint8), columns={"a": [1, 2, 3, 4]})


def test_unique_paths() -> None:
    ids = np.array([[0, 0], [1, 0], [0, 0], [1, 1]])
    assert unique_paths(ids).tolist() == [[0, 0], [1, 1], [0, 0], [1, 2]]
