"""Datasets of Hugging Face as sources; needs the library `datasets`."""

from __future__ import annotations

import logging
import pickle
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.pictures import classes, smooth
from data.shardfiles import encoded, pixels
from nearfar.config import DataConfig, SamplerConfig
from nearfar.data import BadSample, Data, HFSource, Loader, Source, Subset, TooManyFaults, column, open_data, open_hf
from nearfar.samplers import Sequential, Shuffle, make_sampler


@pytest.fixture
def hf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    found = pytest.importorskip("datasets")
    found.disable_progress_bars()
    monkeypatch.setattr(found.config, "HF_DATASETS_CACHE", tmp_path / "hub")
    return found


def made(hf: Any, num: int = 10, **changes: Any) -> Any:
    rows = {
        "image": [{"bytes": encoded(smooth(8, 8, i)), "path": None} for i in range(num)],
        "label": [i % 2 for i in range(num)],
        "caption": [f"picture {i}" for i in range(num)],
        "weight": [i / 2 for i in range(num)],
    } | changes
    features = {"image": hf.Image(), "label": hf.ClassLabel(names=["cat", "dog"]), "caption": hf.Value("string"),
                "weight": hf.Value("float32")}  # fmt: skip
    return hf.Dataset.from_dict(rows, features=hf.Features(features))


pytestmark = pytest.mark.parity


def test_samples(hf: Any) -> None:
    source = HFSource(made(hf), columns=("caption", "weight"))
    assert isinstance(source, Source)
    assert (len(source), source.shape, source.num_classes, source.class_names) == (10, (), 2, ("cat", "dog"))
    assert source.labels is not None
    assert source.labels.tolist() == [i % 2 for i in range(10)]
    for i in (7, 0):
        got = source[i]
        np.testing.assert_array_equal(got["image"], pixels(i))
        assert (got["index"], got["label"], got["caption"], got["weight"]) == (i, i % 2, f"picture {i}", i / 2)
    assert column(Subset(source, np.array([2, 3])), "caption").tolist() == ["picture 2", "picture 3"]
    assert column(source, "weight").tolist() == [i / 2 for i in range(10)]
    with pytest.raises(ValueError, match="sampler.column: expected a column of dataset, received key"):
        column(source, "key")
    copy = pickle.loads(pickle.dumps(source))
    assert copy[3]["caption"] == "picture 3"
    assert copy.fingerprint() == source.fingerprint() == HFSource(made(hf), columns=("caption", "weight")).fingerprint()
    assert source.fingerprint() != HFSource(made(hf, caption=["x"] * 10), columns=("caption", "weight")).fingerprint()
    make_sampler(SamplerConfig(kind="no-duplicates", column="caption"), source, 4)


def test_batches_do_not_depend_on_workers_or_processes(hf: Any) -> None:
    source = HFSource(made(hf))
    whole = list(Loader(source, Shuffle(10, 4)).epoch(1))
    for workers in (0, 2):
        parts = [list(Loader(source, Shuffle(10, 4), workers=workers, rank=r, world=2).epoch(1)) for r in range(2)]
        for number, batch in enumerate(whole):
            assert [*parts[0][number]["index"], *parts[1][number]["index"]] == batch["index"].tolist()


def test_folders_and_files(hf: Any, tmp_path: Path) -> None:
    data = made(hf)
    data.save_to_disk(str(tmp_path / "saved"))
    hf.DatasetDict(train=data, validation=made(hf, 4)).save_to_disk(str(tmp_path / "dict"))
    data.to_parquet(str(tmp_path / "files" / "train-0.parquet"))
    made(hf, 4).to_parquet(str(tmp_path / "files" / "test-0.parquet"))
    classes(tmp_path / "images", num=3)
    cache = str(tmp_path / "cache")
    for root in ("saved", "files/train-0.parquet", "images"):
        source = open_hf(str(tmp_path / root), cache=cache)
        assert isinstance(source, HFSource), root
        assert source.class_names == ("cat", "dog"), root
        assert source[2]["image"].shape == (3, 8, 8), root
        assert open_hf(str(tmp_path / root), cache=cache).fingerprint() == source.fingerprint(), root
        moved = tmp_path / "moved" / root
        moved.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (tmp_path / root).is_dir() else shutil.copy2)(tmp_path / root, moved)
        assert open_hf(str(moved), cache=str(tmp_path / "other")).fingerprint() == source.fingerprint(), root
    for root in ("dict", "files"):
        found = open_hf(str(tmp_path / root), cache=cache)
        assert isinstance(found, Data), root
        assert (len(found.train), len(found.test)) == (10, 4)
        np.testing.assert_array_equal(found.test[3]["image"], pixels(3))
    opened = open_data(DataConfig(source="hf", root=str(tmp_path / "saved"), cache=cache, validation=0.2))
    assert (len(opened.train), len(opened.test)) == (8, 2)


def test_corrupt_and_missing(hf: Any, tmp_path: Path, caplog: Any) -> None:
    images: list[Any] = [{"bytes": encoded(smooth(8, 8, i)), "path": None} for i in range(10)]
    images[2] = {"bytes": b"no image", "path": None}
    images[3] = {"bytes": None, "path": "/etc/hostname"}
    images[4] = None
    data = made(hf, image=images, label=[0, 1, 0, 1, 0, 1, -1, None, 0, 1])
    source = HFSource(data)
    for i, match in ((2, "cannot identify"), (3, "a file below the dataset's folder, received /etc/hostname"),
                     (4, "expected one, received none"), (6, "no label .label"), (7, "no label .label")):  # fmt: skip
        with pytest.raises(BadSample, match=match):
            source[i]
    loader = Loader(source, Sequential(10, 10), max_bad_share=0.5)
    assert next(loader.epoch(0))["index"].tolist() == [0, 1, 5, 5, 5, 5, 8, 8, 8, 9]
    assert [fault.index for fault in loader.faults] == [2, 3, 4, 6, 7]
    assert HFSource(made(hf, label=[-1] * 10)).labels is None
    data.save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(TooManyFaults, match="at most a share of 0.1 of 10, received 2"):
        open_hf(str(tmp_path / "saved"), max_bad_share=0.1)


def test_columns_of_bytes_and_names(hf: Any) -> None:
    data = hf.Dataset.from_dict(
        {"jpg": [encoded(smooth(8, 8, i)) for i in range(4)], "kind": ["b10", "b2", "b2", "b10"]}
    )
    with pytest.raises(ValueError, match="expected a column of feature Image, .* name the column of encoded bytes"):
        HFSource(data)
    source = HFSource(data, image="jpg", label="kind", channels=1)
    assert (source.class_names, source.labels.tolist()) == (("b2", "b10"), [1, 0, 0, 1])  # type: ignore[union-attr]
    assert source[1]["image"].shape == (1, 8, 8)
    text = HFSource(data, columns=("kind",))
    assert text[0] == {"index": 0, "kind": "b10"}
    for options, match in (
        ({"image": "png"}, "data.image_column: expected one of jpg, kind, received 'png'"),
        ({"image": "kind"}, "data.image_column: expected a column of feature Image or of bytes"),
        ({"image": "jpg", "label": "x"}, "data.label_column: expected one of jpg, kind, received 'x'"),
        ({"image": "jpg", "columns": ("x",)}, "data.columns: expected one of jpg, kind"),
    ):
        with pytest.raises(ValueError, match=match):
            HFSource(data, **options)


def test_several_labels_and_images(hf: Any) -> None:
    data = made(hf).rename_column("label", "fine")
    data = data.add_column("coarse", [0] * 10, feature=hf.ClassLabel(names=["animal"]))
    with pytest.raises(ValueError, match="data.label_column: expected which of fine, coarse is the label, or none"):
        HFSource(data)
    assert HFSource(data, label="coarse").class_names == ("animal",)
    assert HFSource(data, label="none").labels is None
    two = made(hf).rename_column("image", "left").add_column("right", made(hf)["caption"][:])
    two = two.cast_column("right", hf.Image())
    with pytest.raises(ValueError, match="data.image_column: expected which of left, right is the image"):
        HFSource(two)


def test_what_cannot_be_opened(hf: Any, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="expected a datasets.Dataset, received IterableDataset, which has no places"):
        HFSource(made(hf).to_iterable_dataset())
    with pytest.raises(TypeError, match="expected a datasets.Dataset, received list"):
        HFSource([1])
    for root, error, match in (
        ("", ValueError, "a folder, a file or a name on the hub, received nothing"),
        (str(tmp_path / "nowhere"), FileNotFoundError, "nowhere, which does not exist"),
        ("./a/b", FileNotFoundError, "which does not exist"),
        (str(tmp_path), ValueError, r"expected files .parquet .arrow .*, received .* with nothing"),
    ):
        with pytest.raises(error, match=match):
            open_hf(root)
    (tmp_path / "x.pkl").write_bytes(b"")
    for root in (tmp_path, tmp_path / "x.pkl"):
        with pytest.raises(ValueError, match=r"data.root: expected (a file|files) .parquet"):
            open_hf(str(root))
    hf.DatasetDict(a=made(hf), b=made(hf)).save_to_disk(str(tmp_path / "dict"))
    with pytest.raises(ValueError, match="data.root: expected a split named train, received splits a, b of"):
        open_hf(str(tmp_path / "dict"))


def test_a_hub_that_cannot_be_reached(hf: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(hf, "load_dataset", refuse)
    with pytest.raises(FileNotFoundError, match="received a/b:c, which is neither here nor can be had .*: no route"):
        open_hf("a/b:c")


@pytest.mark.parametrize("name", ["nearfar", "nearfar.data"])
def test_importing_nearfar_does_not_load_the_library(name: str) -> None:
    import subprocess

    code = f"import sys, {name}; sys.exit(bool({{'datasets', 'webdataset', 'pyarrow'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_logging_stays_quiet(hf: Any, caplog: Any) -> None:
    with caplog.at_level(logging.WARNING):
        HFSource(made(hf))
    assert not caplog.records
