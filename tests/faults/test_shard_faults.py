"""Damage in shards: counted, named, replaced by the next readable sample, as in folders."""

from __future__ import annotations

import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data.shardfiles import pixels, shards
from nearfar.data import Loader, TarShards, TooManyFaults, memory_map, open_shards
from nearfar.samplers import Sequential, Shuffle


def spoil(path: Path, name: str, content: bytes = b"\0") -> None:
    """Overwrites a member's content but for its first quarter."""
    with tarfile.open(path) as archive:
        member = archive.getmember(name)
    with path.open("r+b") as file:
        file.seek(member.offset_data + member.size // 4)
        file.write(content * (member.size - member.size // 4))


@pytest.fixture
def source(tmp_path: Path) -> TarShards:
    """20 samples in three shards; the pictures of 6, 7 and 19 are broken."""
    shards(tmp_path)
    for shard, number in ((1, 6), (1, 7), (2, 19)):
        spoil(tmp_path / f"s-{shard:02}.tar", f"{number:04}.png")
    found = open_shards(str(tmp_path), cache=str(tmp_path / "cache"))
    assert isinstance(found, TarShards)
    return found


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("mapped", [False, True])
def test_replaced_by_the_next_good_one_with_its_own_index(
    tmp_path: Path, source: TarShards, workers: int, mapped: bool
) -> None:
    read = memory_map(source, memory_gb=1.0, cache=str(tmp_path / "cache"), max_bad_share=0.2) if mapped else source
    loader = Loader(read, Sequential(20, 6), workers=workers, max_bad_share=0.2)
    wanted = [{6: 8, 7: 8, 19: 0}.get(i, i) for i in range(20)]
    for epoch in (0, 1):
        batches = list(loader.epoch(epoch))
        assert [i for batch in batches for i in batch["index"].tolist()] == wanted
        assert [label for batch in batches for label in batch["label"].tolist()] == [i % 2 for i in wanted]
        for batch in batches:
            for image, i in zip(batch["image"], batch["index"].tolist(), strict=True):
                np.testing.assert_array_equal(image.numpy(), pixels(i))
    assert [fault.index for fault in loader.faults] == [6, 7, 19]
    assert [fault.path for fault in loader.faults] == [source.path(i) for i in (6, 7, 19)]
    assert loader.faults[0].path.endswith("s-01.tar/0006")


def test_more_than_the_share_stops(source: TarShards) -> None:
    with pytest.raises(TooManyFaults, match=r"at most a share of 0.1 of 20, received 3: .*0006 .*0007 .*0019"):
        list(Loader(source, Sequential(20, 5), max_bad_share=0.1).epoch(0))


def test_a_broken_caption_or_json_is_a_bad_sample(tmp_path: Path) -> None:
    shards(tmp_path)
    spoil(tmp_path / "s-00.tar", "0001.txt", b"\xff")
    spoil(tmp_path / "s-00.tar", "0003.json", b"}")
    found = open_shards(str(tmp_path), cache=str(tmp_path / "cache"), columns=("txt", "json.weight"))
    loader = Loader(found, Sequential(20, 20), max_bad_share=0.2)
    assert next(loader.epoch(0))["index"].tolist()[:5] == [0, 2, 2, 4, 4]
    assert ["UnicodeDecodeError" in loader.faults[0].reason, "JSONDecodeError" in loader.faults[1].reason] == [True] * 2


def test_a_shard_that_is_cut_while_the_run_goes_on(tmp_path: Path) -> None:
    shards(tmp_path)
    source = open_shards(str(tmp_path), cache=str(tmp_path / "cache"))
    path = tmp_path / "s-02.tar"
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    loader = Loader(source, Shuffle(20, 5), max_bad_share=0.5)
    seen = {i for batch in loader.epoch(0) for i in batch["index"].tolist()}
    assert seen >= set(range(12))
    assert loader.faults
    assert all("s-02.tar" in fault.path and "bytes at byte" in fault.reason for fault in loader.faults)


def test_a_shard_that_vanishes_while_the_run_goes_on(tmp_path: Path) -> None:
    shards(tmp_path)
    source = open_shards(str(tmp_path), cache=str(tmp_path / "cache"), label="none")
    (tmp_path / "s-00.tar").rename(tmp_path / "gone")
    source = pickle.loads(pickle.dumps(source))  # as a worker has it, without the files that are open here
    with pytest.raises(TooManyFaults, match="s-00.tar/0000 .FileNotFoundError"):
        list(Loader(source, Sequential(20, 4), max_bad_share=0.05).epoch(0))
