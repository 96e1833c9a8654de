"""Shards of other machines: fetched once, kept to a limit, the same samples as from files."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.shardfiles import pixels, shards
from nearfar.config import SamplerConfig
from nearfar.data import Loader, TarShards, open_shards, patterns, places
from nearfar.data.places import Places, protocol
from nearfar.samplers import Shuffle, make_sampler


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Four shards behind fsspec's own file system, as if they lay elsewhere."""
    for module in (places, patterns):
        monkeypatch.setattr(module, "REMOTE", (*places.REMOTE, "local"))
    shards(tmp_path / "far", (5, 7, 8, 4))
    return f"local://{tmp_path}/far/s-{{00..03}}.tar"


def opened(root: str | Path, tmp_path: Path, **options: Any) -> TarShards:
    found = open_shards(str(root), cache=str(tmp_path / "cache"), **options)
    assert isinstance(found, TarShards)
    return found


def copies(tmp_path: Path) -> list[int]:
    return [path.stat().st_size for path in (tmp_path / "cache" / "shard-files").glob("*.tar")]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["shuffle", "shards"])
def test_samples_are_those_of_files(tmp_path: Path, far: str, workers: int, kind: str) -> None:
    near = opened(tmp_path / "far", tmp_path)
    size = max(path.stat().st_size for path in (tmp_path / "far").iterdir())
    source = opened(far, tmp_path, cache_gb=1.5 * size / 1e9)  # one copy at a time
    assert (len(source), source.num_classes, source.path(7)) == (24, 2, f"local://{tmp_path}/far/s-01.tar/0007")
    sampler = make_sampler(SamplerConfig(kind=kind, lanes=2, window=4), near, 6)  # type: ignore[arg-type]
    wanted = list(Loader(near, sampler).epoch(1))
    got = list(Loader(source, sampler, workers=workers).epoch(1))
    for one, other in zip(wanted, got, strict=True):
        assert one["index"].tolist() == other["index"].tolist()
        assert one["label"].tolist() == other["label"].tolist()
        np.testing.assert_array_equal(one["image"].numpy(), other["image"].numpy())
    assert sum(copies(tmp_path)) <= 1.5 * size
    assert not list((tmp_path / "cache" / "shard-files").glob("*.part"))


def test_a_shard_is_fetched_once(tmp_path: Path, far: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []
    fetch = Places._fetch

    def counted(self: Places, number: int, address: str, place: Path) -> None:
        fetched.append(number)
        fetch(self, number, address, place)

    monkeypatch.setattr(Places, "_fetch", counted)
    source = opened(far, tmp_path)
    assert sorted(fetched) == [0, 1, 2, 3]  # for headers and labels
    list(Loader(source, Shuffle(24, 6)).epoch(0))
    again = opened(far, tmp_path)
    assert again.fingerprint() == source.fingerprint()
    np.testing.assert_array_equal(again[23]["image"], pixels(23))
    assert len(fetched) == 4
    for path in (tmp_path / "cache" / "shard-files").glob("*.tar"):
        path.unlink()
    third = opened(far, tmp_path)  # indices and labels are still there
    assert len(fetched) == 4
    np.testing.assert_array_equal(third[23]["image"], pixels(23))
    assert fetched[4:] == [3]


def test_what_is_not_there_or_changes(tmp_path: Path, far: str) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"expected 6 tar files, received 2 that do not exist, e.g. local://.*s-04"
    ):
        opened(far.replace("03}", "05}"), tmp_path)
    source = opened(far, tmp_path)
    for path in (tmp_path / "cache" / "shard-files").glob("*.tar"):
        path.unlink()
    path = tmp_path / "far" / "s-02.tar"
    path.write_bytes(path.read_bytes()[:3000])
    other = TarShards(source.shards[:2], cache=str(tmp_path / "cache"))
    np.testing.assert_array_equal(other[2]["image"], pixels(2))
    fresh = Places(source.shards, tmp_path / "cache" / "shard-files", 1e9)
    fresh.stamps[2] = source._places.stamps[2]
    with pytest.raises(OSError, match=r"s-02.tar: expected \d+ bytes, received 3000"), fresh.opened(2):
        pass


@pytest.mark.parametrize(
    ("address", "match"),
    [
        ("ftp://x/a.tar", "expected files, or addresses http://, https://"),
        ("http://x/a.tar::zip://b", "expected files, or addresses"),
    ],
)
def test_addresses_that_are_refused(address: str, match: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=match):
        TarShards([address], cache=str(tmp_path))


def test_a_library_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    def lacks(address: str) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", lacks)
    with pytest.raises(ImportError, match="s3:// needs another library: Install s3fs to access S3"):
        TarShards(["s3://bucket/a.tar"], cache=str(tmp_path))


def test_protocols() -> None:
    assert [protocol(text) for text in ("a.tar", "/a/b.tar", "s3://a", "pipe:x", "C:/x")] == [
        "",
        "",
        "s3",
        "pipe",
        "",
    ]
    assert protocol(Path("s3:/a")) == ""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    shards(tmp_path / "web", (5, 7))
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path / "web"))
    ) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{served.server_address[1]}"
        served.shutdown()
        thread.join()


@pytest.mark.parity
@pytest.mark.filterwarnings("default")  # of aiohttp
def test_over_http(server: str, tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    source = opened(f"{server}/s-{{00..01}}.tar", tmp_path)
    assert [int(label) for label in source.labels] == [i % 2 for i in range(12)]  # type: ignore[union-attr]
    batches = list(Loader(source, Shuffle(12, 4), workers=1).epoch(0))
    for batch in batches:
        for image, i in zip(batch["image"], batch["index"].tolist(), strict=True):
            np.testing.assert_array_equal(image.numpy(), pixels(i))
    with pytest.raises(FileNotFoundError, match="received 1 that do not exist"):
        opened(f"{server}/s-{{00..02}}.tar", tmp_path)
