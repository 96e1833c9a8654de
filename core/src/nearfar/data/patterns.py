"""From a folder or a pattern to the archives it means."""

from __future__ import annotations

import glob
import itertools
import re
from collections.abc import Sequence
from pathlib import Path

from nearfar.checks import expect
from nearfar.data.folder import TEST, TRAIN, natural
from nearfar.data.places import REMOTE, protocol

SHARDS = 1_000_000
"""archives that one pattern may name"""
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_INNERMOST = re.compile(r"\{([^{}]*)\}")


def expand(pattern: str) -> list[str]:
    """The texts of a pattern with braces: `a-{08..11}.tar` counts, with as many digits; `{train,val}` lists.

    Raises:
        ValueError: a brace without its partner, a range that runs backwards, or more than a million texts.
    """
    found = _INNERMOST.search(pattern)
    if not found:
        expect("{" not in pattern and "}" not in pattern, "data.root", "braces in pairs", repr(pattern))
        return [pattern]
    counted = _RANGE.fullmatch(found[1])
    if counted:
        low, high = counted.groups()
        expect(int(low) <= int(high), "data.root", "a range that counts up", repr(found[0]))
        expect(int(high) - int(low) < SHARDS, "data.root", f"at most {SHARDS} archives", repr(found[0]))
        width = len(low) if low.startswith("0") else 0
        choices: Sequence[str] = [f"{number:0{width}}" for number in range(int(low), int(high) + 1)]
    else:
        choices = found[1].split(",")
    before, after = pattern[: found.start()], pattern[found.end() :]
    each = (expand(before + choice + after) for choice in choices)
    texts = list(itertools.islice(itertools.chain.from_iterable(each), SHARDS + 1))
    expect(len(texts) <= SHARDS, "data.root", f"at most {SHARDS} archives", f"more by {pattern!r}")
    return list(dict.fromkeys(texts))


def archives(root: str) -> tuple[Path, Sequence[Path | str], list[Path]]:
    """The folder they lie in, the tar files that a folder or pattern means, and links out of the folder, left out.

    Addresses of other machines are taken as they stand, without asking whether there is anything.

    Raises:
        FileNotFoundError: no archives by this pattern.
        ValueError: a pattern that is none, or an address of an unknown protocol, or with wildcards.
    """
    expect(bool(root), "data.root", "a folder of tar files or a pattern", "nothing; give it with --data.root PATTERN")
    root = root.removeprefix("file://")
    if protocol(root):
        expect(protocol(root) in REMOTE and not glob.has_magic(root), "data.root", f"files, or addresses by "
               f"{', '.join(REMOTE)} with all names spelt out, as in shards-{{0000..0099}}.tar", root)  # fmt: skip
        return Path(), list(dict.fromkeys(expand(root))), []
    root = str(Path(root).expanduser())
    folder = Path(root)
    if folder.is_dir():
        within = folder.resolve()
        files = sorted((file for file in within.rglob("*.tar") if _shown(file, within)), key=lambda f: natural(str(f)))
        inside = [file for file in files if file.resolve().is_relative_to(within)]
        outside = [file for file in files if file not in set(inside)]
        hint = f", but {len(outside)} links out of it, which a pattern may name" if outside else ""
        expect(bool(inside), "data.root", f"tar files in {within}", f"none{hint}", FileNotFoundError)
        return within, inside, outside
    found = []
    for text in expand(root):
        matched = sorted(glob.glob(text, recursive=True), key=natural) if glob.has_magic(text) else [text]
        expect(bool(matched), "data.root", f"tar files by {text}", "none", FileNotFoundError)
        found.extend(Path(file) for file in matched)
    expect(len(set(found)) == len(found), "data.root", "every archive once", root)
    return folder.parent, found, []


def split(folder: Path, files: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Archives to learn from and to judge on, by a word of their folders or names: train; val, valid, validation, test.

    All are to learn from where one of the two is missing.
    """
    words = [set(re.split(r"[^a-z]+", str(file.relative_to(folder)).lower())) for file in files]
    train = [file for file, has in zip(files, words, strict=True) if has & set(TRAIN)]
    for name in TEST:
        test = [file for file, has in zip(files, words, strict=True) if name in has and not has & set(TRAIN)]
        if train and test:
            return train, test
    return list(files), []


def _shown(file: Path, within: Path) -> bool:
    return file.is_file() and not any(part.startswith(".") for part in file.relative_to(within).parts)
