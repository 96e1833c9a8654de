"""Shards as a source: every sample as it was packed, columns and labels without images, faults that are named."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.pictures import smooth
from data.shardfiles import cut, encoded, pixels, sample, shards, tar
from nearfar.config import DataConfig
from nearfar.data import (
    BadSample,
    Data,
    Loader,
    MemoryMap,
    Source,
    Subset,
    TarShards,
    TooManyFaults,
    column,
    open_data,
    open_shards,
)
from nearfar.samplers import Sequential, Shuffle


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., TarShards]:
    """Opens shards of three files with 5, 7 and 8 samples, or of a root."""

    def opens(root: str | Path = "", **options: Any) -> TarShards:
        root = root or tmp_path / "s-{00..02}.tar"
        if not (tmp_path / "s-00.tar").exists():
            shards(tmp_path)
        found = open_shards(str(root), cache=str(tmp_path / "cache"), **options)
        assert isinstance(found, TarShards)
        return found

    return opens


def test_every_sample_at_its_place(tmp_path: Path, opened: Callable[..., TarShards]) -> None:
    source = opened()
    assert isinstance(source, Source)
    assert (len(source), source.shape, source.num_classes, source.class_names) == (20, (), 2, ())
    assert source.labels is not None
    assert source.labels.tolist() == [i % 2 for i in range(20)]
    for i in np.random.default_rng(0).permutation(20).tolist():
        got = source[i]
        assert got.keys() == {"index", "image", "label"}
        assert (got["index"], got["label"]) == (i, i % 2)
        np.testing.assert_array_equal(got["image"], pixels(i))
    assert source.path(7) == f"{tmp_path}/s-01.tar/0007"
    assert source.name == "s-{00..02}.tar"
    with pytest.raises(FileNotFoundError, match=r"expected 9 tar files, received 6 that do not exist, e.g. .*s-03.tar"):
        opened(tmp_path / "s-{00..08}.tar")


def test_columns(opened: Callable[..., TarShards]) -> None:
    source = opened(columns=("txt", "json.weight", "json.style.id"))
    got = source[4]
    assert (got["txt"], got["json.weight"], got["json.style.id"]) == ("picture 4", 0.5, 1)
    part = Subset(source, np.array([3, 12]))
    assert column(part, "key").tolist() == ["0003", "0012"]
    assert column(part, "txt").tolist() == ["picture 3", "picture 12"]
    assert column(part, "json.style.id").tolist() == [0, 0]
    assert column(source, "json.weight").dtype == np.float64
    assert column(source, "shard").tolist() == [0] * 5 + [1] * 7 + [2] * 8
    assert column(source, "cls").tolist() == source.labels.tolist()  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="sampler.column: expected a column of .*, received caption"):
        column(source, "caption")
    with pytest.raises(ValueError, match=r"expected a value for each of 20 samples, received none for 20, the first of "
                       r"which is 0 \(json: expected a field 'nix', received none\)"):  # fmt: skip
        column(source, "json.nix")
    batch = next(Loader(source, Sequential(20, 3)).epoch(0))
    assert batch["txt"] == ["picture 0", "picture 1", "picture 2"]
    assert batch["json.weight"].tolist() == [0.5] * 3


def test_labels_by_name(opened: Callable[..., TarShards]) -> None:
    source = opened(label="json.name")
    assert (source.class_names, source.num_classes) == (("cat", "dog"), 2)
    assert source.labels is not None
    assert source.labels.tolist() == [i % 2 for i in range(20)]
    number = opened(label="json.style.id")
    assert (number.num_classes, number[5]["label"]) == (3, 2)
    none = opened(label="none")
    assert (none.labels, none.num_classes) == (None, 0)
    assert none[0].keys() == {"index", "image"}
    assert len({s.fingerprint() for s in (source, number, none, opened(), opened(columns=("txt",)))}) == 5


def test_channels_and_reduction(tmp_path: Path, opened: Callable[..., TarShards]) -> None:
    tar(tmp_path / "big.tar", [(f"{i}.jpg", encoded(smooth(50, 40, i), "jpeg")) for i in range(2)])
    source = opened(tmp_path / "big.tar", channels=1, shorter=20)
    assert source[1]["image"].shape == (1, 20, 25)
    assert source.labels is None


def test_mixed_extensions(tmp_path: Path, opened: Callable[..., TarShards]) -> None:
    members = [("a.jpg", encoded(smooth(8, 8), "jpeg")), ("b.PNG", encoded(smooth(8, 8, 1))), ("c.webp", b""),
               ("d.seg.png", b""), ("d.png", encoded(smooth(8, 8, 3)))]  # fmt: skip
    source = opened(tar(tmp_path / "m.tar", members))
    np.testing.assert_array_equal(source[1]["image"], pixels(1))
    np.testing.assert_array_equal(source[3]["image"], pixels(3))
    with pytest.raises(BadSample, match=r"m.tar/c: UnidentifiedImageError"):
        source[2]
    tar(tmp_path / "n.tar", [*members, ("e.png", b""), ("e.jpg", b"")])
    with pytest.raises(
        ValueError, match=r"data.image_column: expected which of png, jpg is the image, e.g. in .*n.tar/e"
    ):
        opened(tmp_path / "n.tar")
    chosen = opened(tmp_path / "n.tar", image="png", max_bad_share=1.0)
    assert sorted(chosen.bad) == [0, 2]
    assert chosen.bad[0].reason == "no image among jpg"
    with pytest.raises(ValueError, match="data.image_column: expected an extension of jpg, png, .*, received tif"):
        opened(tmp_path / "n.tar", image="tif")


def packed(path: Path, labels: list[bytes | None]) -> Path:
    members = []
    for i, label in enumerate(labels):
        members += [(f"{i}.png", sample(i)["png"])] + ([] if label is None else [(f"{i}.cls", label)])
    return tar(path, members)


def test_missing_and_odd_labels(tmp_path: Path, opened: Callable[..., TarShards]) -> None:
    path = packed(tmp_path / "l.tar", [b"1", b" 0\n", None, b"x", b"-1", b"-2", b"\xff", b"2", b"1", b"0"])
    with pytest.raises(TooManyFaults, match="at most a share of 0.01 of 10, received 5: .*l.tar/2 .no label: expected"):
        opened(path)
    source = opened(path, max_bad_share=0.5)
    assert source.labels is not None
    assert (source.labels.tolist(), source.num_classes) == ([1, 0, 0, 0, 0, 0, 0, 2, 1, 0], 3)
    reasons = {i: fault.reason for i, fault in source.bad.items()}
    assert sorted(reasons) == [2, 3, 4, 5, 6]
    assert reasons[2] == "no label: expected a member .cls, received png alone"
    assert reasons[3] == "label cls: expected a class number from 0, received 'x'"
    assert reasons[4] == "no label (cls)"
    assert reasons[5] == "label cls: expected a class number from 0, received -2"
    assert "utf-8" in reasons[6]
    loader = Loader(source, Sequential(10, 10), max_bad_share=0.5)
    batch = next(loader.epoch(0))
    assert batch["index"].tolist() == [0, 1, 7, 7, 7, 7, 7, 7, 8, 9]
    assert batch["label"].tolist() == [1, 0, 2, 2, 2, 2, 2, 2, 1, 0]
    assert [fault.index for fault in loader.faults] == [2, 3, 4, 5, 6]
    assert not packed(tmp_path / "none.tar", [None, None]).is_dir()
    assert opened(tmp_path / "none.tar").labels is None


def test_labels_that_are_asked_for_must_be_there(opened: Callable[..., TarShards]) -> None:
    with pytest.raises(
        ValueError, match="data.label_column json.nix: expected class numbers or names, .*a field 'nix'"
    ):
        opened(label="json.nix")
    with pytest.raises(ValueError, match="data.label_column: expected one of png, cls, txt, json, of json a field"):
        opened(label="klass")
    with pytest.raises(ValueError, match="data.columns: expected one of .*, received 'json'"):
        opened(columns=("json",))


def test_pickles_are_refused(tmp_path: Path, opened: Callable[..., TarShards]) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    raw = io.BytesIO()
    np.save(raw, np.array([Trap()], dtype=object), allow_pickle=True)
    members = []
    for i in range(2):
        members += [(f"{i}.png", sample(i)["png"]), (f"{i}.pyd", pickle.dumps(Trap())), (f"{i}.npy", raw.getvalue())]
    path = tar(tmp_path / "p.tar", members)
    assert opened(path)[1].keys() == {"index", "image"}
    for option in ("columns", "label"):
        value: Any = ("pyd",) if option == "columns" else "pyd"
        with pytest.raises(ValueError, match=r"received 'pyd', a pickle, which may run any code when it is read"):
            opened(path, **{option: value})
    with pytest.raises(BadSample, match="allow_pickle"):
        opened(path, columns=("npy",))[0]
    assert not (tmp_path / "sprung").exists()


def test_arrays_and_samples_without_images(tmp_path: Path, opened: Callable[..., TarShards]) -> None:
    members = []
    for i in range(3):
        raw = io.BytesIO()
        np.save(raw, np.full((2, 3), i, np.float32))
        members += [(f"{i}.npy", raw.getvalue()), (f"{i}.txt", b"t%d" % i)]
    path = tar(tmp_path / "a.tar", members)
    source = opened(path, columns=("npy", "txt"))
    assert source[2]["txt"] == "t2"
    np.testing.assert_array_equal(source[2]["npy"], np.full((2, 3), 2, np.float32))
    assert next(Loader(source, Sequential(3, 3)).epoch(0))["npy"].shape == (3, 2, 3)
    with pytest.raises(ValueError, match=r"a.tar: expected images \(jpg, .*\), received samples of npy, txt; name"):
        opened(path)


def test_broken_shards_are_all_named(tmp_path: Path, opened: Callable[..., TarShards]) -> None:
    opened()
    cut(tmp_path / "s-00.tar", 5000)
    (tmp_path / "s-02.tar").write_bytes(b"\x1f\x8b" + bytes(600))
    with pytest.raises(ValueError, match=r"data.root: expected 3 whole tar files, received 2 that are not: .*s-00.tar.*"
                       r"behind \d+ members, .* cut off; .*s-02.tar: .*compressed by gzip"):  # fmt: skip
        opened()


def test_the_index_is_made_once(
    tmp_path: Path, opened: Callable[..., TarShards], monkeypatch: pytest.MonkeyPatch
) -> None:
    from nearfar.data import shards as module

    first, made = opened(label="json.name"), []
    monkeypatch.setattr(module, "group", made.append)
    again = opened(label="json.name")
    assert (made, again.fingerprint()) == ([], first.fingerprint())
    np.testing.assert_array_equal(again[19]["image"], pixels(19))
    files = sorted(path.suffix for path in (tmp_path / "cache" / "shards").iterdir())
    assert files == [".json"] * 3 + [".safetensors"] * 3
    monkeypatch.undo()
    os.utime(tmp_path / "s-01.tar", ns=(0, 0))
    assert opened(label="json.name").fingerprint() != first.fingerprint()
    assert len(list((tmp_path / "cache" / "shards").iterdir())) == 8


def test_a_damaged_or_forbidden_cache(tmp_path: Path, opened: Callable[..., TarShards], caplog: Any) -> None:
    opened()
    for path in (tmp_path / "cache" / "shards").iterdir():
        path.write_bytes(b"{")
    with caplog.at_level(logging.WARNING):
        assert opened().labels is not None
    assert caplog.text.count("made anew, since") == 6
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("a file where the folder would be")
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert len(opened()) == 20
    assert "not kept for the next run" in caplog.text


def test_fingerprint_does_not_depend_on_where_the_shards_lie(tmp_path: Path, opened: Callable[..., TarShards]) -> None:
    first = opened()
    shutil.copytree(tmp_path, tmp_path / "moved", ignore=shutil.ignore_patterns("cache"), copy_function=shutil.copy2)
    moved = opened(tmp_path / "moved" / "s-*.tar")
    assert moved.fingerprint() == first.fingerprint()
    tar(tmp_path / "moved" / "s-02.tar", [(f"{i}.png", sample(i)["png"]) for i in range(8)])
    assert opened(tmp_path / "moved" / "s-*.tar", label="none").fingerprint() != first.fingerprint()


def test_many_files_threads_and_workers(tmp_path: Path, opened: Callable[..., TarShards]) -> None:
    shards(tmp_path / "many", (1,) * 40, "m")
    source = opened(tmp_path / "many")

    def same(i: int) -> bool:
        return bool((source[i]["image"] == pixels(i)).all())

    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(same, list(range(40)) * 5))
    assert not before or len(os.listdir("/proc/self/fd")) <= before + 4 * 16 + 4
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[39]["image"], pixels(39))
    one, two = (list(Loader(source, Shuffle(40, 7), workers=workers).epoch(1)) for workers in (0, 2))
    assert all(
        (a["image"] == b["image"]).all() and (a["index"] == b["index"]).all() for a, b in zip(one, two, strict=True)
    )


def test_opened_by_a_config(tmp_path: Path, opened: Callable[..., TarShards]) -> None:
    opened()
    config = DataConfig(
        source="webdataset",
        root=str(tmp_path / "s-*.tar"),
        cache=str(tmp_path / "cache"),
        validation=0.2,
        memory_gb=0.0,
    )
    data = open_data(config)
    assert (len(data.train), len(data.test), data.holdout) == (16, 4, True)
    assert isinstance(data.train, Subset)
    assert isinstance(data.train.source, TarShards)
    from dataclasses import replace

    mapped = open_data(replace(config, memory_gb=1.0)).train
    assert isinstance(mapped, Subset)
    assert isinstance(mapped.source, MemoryMap)
    assert mapped.fingerprint() == data.train.fingerprint()
    np.testing.assert_array_equal(mapped[5]["image"], data.train[5]["image"])
    assert column(mapped, "shard").tolist() == column(data.train, "shard").tolist()
    captions = open_data(replace(config, memory_gb=1.0, columns=("txt",))).train
    assert captions[0]["txt"] == "picture 0"
    with pytest.raises(ValueError, match="data.source: expected 'webdataset' or 'hf' with data.image_column"):
        DataConfig(columns=("txt",))


def test_own_split(tmp_path: Path) -> None:
    shards(tmp_path / "in", (4, 4), "x-train", classes=3)
    shards(tmp_path / "in", (3,), "x-val")
    found = open_shards(str(tmp_path / "in"), cache=str(tmp_path / "cache"))
    assert isinstance(found, Data)
    assert (len(found.train), len(found.test), found.train.num_classes, found.test.num_classes) == (8, 3, 3, 3)
    assert (found.train.name, found.test.name) == ("in", "in test")
    named = open_shards(str(tmp_path / "in"), cache=str(tmp_path / "cache"), label="json.name")
    assert isinstance(named, Data)
    assert named.test.class_names == ("cat", "dog")
    tar(
        tmp_path / "in" / "x-val-00.tar",
        [("0.png", sample(0)["png"]), ("0.json", json.dumps({"name": "cow"}).encode())],
    )
    unknown = open_shards(str(tmp_path / "in"), cache=str(tmp_path / "cache"), label="json.name")
    assert isinstance(unknown, Data)
    with pytest.raises(BadSample, match="label json.name: expected a class name of the training data, received 'cow'"):
        unknown.test[0]


def test_left_out_members_are_said(tmp_path: Path, caplog: Any) -> None:
    path = tar(tmp_path / "a.tar", [("../x.png", b""), *((f"{i}.png", sample(i)["png"]) for i in range(2))])
    with caplog.at_level(logging.WARNING):
        source = open_shards(str(path), cache=str(tmp_path / "cache"))
    assert isinstance(source, TarShards)
    assert len(source) == 2
    assert "left out 1 members or files" in caplog.text
    assert source.skipped[0].path == f"{path}/'../x.png'"


def test_empty(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a.tar: expected samples, files KEY.EXTENSION in tar files, received none"):
        open_shards(str(tar(tmp_path / "a.tar", [])), cache=str(tmp_path / "cache"))


def test_a_picture_is_read_from_memory_as_from_a_file(tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).rotate(90)
    path = tar(tmp_path / "a.tar", [(f"{i}.png", encoded(image)) for i in range(2)])
    source = open_shards(str(path), cache=str(tmp_path / "cache"), channels=1)
    assert isinstance(source, TarShards)
    np.testing.assert_array_equal(source[1]["image"][0], np.asarray(image))
