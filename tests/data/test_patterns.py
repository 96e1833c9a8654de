"""From a folder or a pattern to archives."""

from __future__ import annotations

from pathlib import Path

import pytest

from nearfar.data.patterns import archives, expand, split


@pytest.mark.parametrize(
    ("pattern", "texts"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("a-{8..11}.tar", ["a-8.tar", "a-9.tar", "a-10.tar", "a-11.tar"]),
        ("{x,y}/{0..1}.tar", ["x/0.tar", "x/1.tar", "y/0.tar", "y/1.tar"]),
        ("{a,b{1..2}}", ["a", "b1", "b2"]),
        ("{000..000}", ["000"]),
    ],
)
def test_braces(pattern: str, texts: list[str]) -> None:
    assert sorted(expand(pattern)) == sorted(texts)


@pytest.mark.parametrize("pattern", ["a-{00..12}.tar", "{x,y,z}-{098..101}-{0..2}"])
def test_braces_as_webdataset_has_them(pattern: str) -> None:
    other = pytest.importorskip("braceexpand")
    assert expand(pattern) == list(other.braceexpand(pattern))


@pytest.mark.parametrize(
    ("pattern", "match"),
    [
        ("a-{0..1", "braces in pairs, received 'a-{0..1'"),
        ("a}", "braces in pairs"),
        ("{5..1}", "a range that counts up, received '{5..1}'"),
        ("{0..99999999999}", "at most 1000000 archives"),
        ("{0..2000}{0..2000}", "at most 1000000 archives"),
    ],
)
def test_mistakes(pattern: str, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        expand(pattern)


def touch(root: Path, *names: str) -> list[Path]:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return [root / name for name in names]


def test_folders_in_natural_order(tmp_path: Path) -> None:
    wanted = touch(tmp_path, "a-2.tar", "a-10.tar", "b/0.tar")
    touch(tmp_path, ".x/1.tar", "b/.2.tar", "notes.txt", "c.tar.gz")
    assert archives(str(tmp_path)) == (tmp_path, wanted, [])
    assert archives(f"file://{tmp_path}")[1] == wanted


def test_links_out_of_the_folder_are_left_out(tmp_path: Path) -> None:
    (target,) = touch(tmp_path, "elsewhere/x.tar")
    (own,) = touch(tmp_path, "in/a.tar")
    (tmp_path / "in" / "b.tar").symlink_to(target)
    assert archives(str(tmp_path / "in")) == (tmp_path / "in", [own], [tmp_path / "in" / "b.tar"])
    assert len(archives(str(tmp_path / "in" / "*.tar"))[1]) == 2
    own.unlink()
    with pytest.raises(FileNotFoundError, match="tar files in .*, received none, but 1 links out of it"):
        archives(str(tmp_path / "in"))


def test_patterns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = touch(tmp_path, "a-2.tar", "a-10.tar")
    assert archives(str(tmp_path / "a-*.tar"))[1] == wanted
    assert archives(str(tmp_path / "a-{2,10}.tar"))[1] == wanted
    monkeypatch.chdir(tmp_path)
    assert archives("a-{10..10}.tar")[1] == [Path("a-10.tar")]
    assert len(archives("a-{2..10}.tar")[1]) == 9  # whether they are there is asked when they are opened
    with pytest.raises(FileNotFoundError, match="tar files by .*b-.*, received none"):
        archives("b-*.tar")
    with pytest.raises(ValueError, match="every archive once"):
        archives("{a-*,*-2}.tar")


def test_addresses() -> None:
    assert archives("https://x.org/{0..1}.tar")[1] == ["https://x.org/0.tar", "https://x.org/1.tar"]


@pytest.mark.parametrize("root", ["ftp://x.org/a.tar", "s3://bucket/*.tar", "pipe:curl x", "zip://a.tar::http://x"])
def test_addresses_that_are_refused(root: str) -> None:
    with pytest.raises(ValueError, match=r"data.root: expected files, or addresses by http, .* as in shards-\{0000"):
        archives(root)


def test_nothing() -> None:
    with pytest.raises(ValueError, match="a folder of tar files or a pattern, received nothing; give it"):
        archives("")


def test_splits_by_words() -> None:
    root = Path("/data/test")

    def parts(*names: str) -> tuple[list[str], list[str]]:
        found = split(root, [root / name for name in names])
        return [str(f.relative_to(root)) for f in found[0]], [str(f.relative_to(root)) for f in found[1]]

    assert parts("x-train-00.tar", "x-val-00.tar", "x-test-00.tar") == (["x-train-00.tar"], ["x-val-00.tar"])
    assert parts("train/0.tar", "test/0.tar") == (["train/0.tar"], ["test/0.tar"])
    assert parts("train-0.tar", "train-1.tar") == (["train-0.tar", "train-1.tar"], [])
    assert parts("trains-0.tar", "validate-0.tar") == (["trains-0.tar", "validate-0.tar"], [])
