"""Folders of image files."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nearfar.checks import expect
from nearfar.data import metadata
from nearfar.data.decode import EXTENSIONS, decode
from nearfar.data.source import BadSample, Data, Fault, check_labels, digest

log = logging.getLogger(__name__)

TRAIN, TEST = ("train",), ("val", "valid", "validation", "test")


class ImageFiles:
    """Image files with or without labels; see `nearfar.data.decode.decode` for how they are read.

    Args:
        root: folder that the files are relative to.
        files: paths below it.
        labels: one integer a file, or None.
        class_names: one a class.
        name: for people; empty: the folder's name.
        channels: 1 or 3.
        shorter: larger images are reduced to this shorter side; 0: none.
        skipped: files that were left out, and why.
    """

    def __init__(
        self,
        root: Path | str,
        files: Sequence[str],
        labels: Any = None,
        class_names: Sequence[str] = (),
        *,
        name: str = "",
        channels: int = 3,
        shorter: int = 0,
        skipped: Sequence[Fault] = (),
    ) -> None:
        expect(channels in (1, 3), "channels", "1 or 3", channels)
        self.root, self.files = Path(root), list(files)
        self.name, self.channels, self.shorter = name or self.root.name, channels, shorter
        self.shape: tuple[int, ...] = ()
        self.class_names, self.skipped = tuple(class_names), list(skipped)
        self.labels, self.num_classes = None, 0
        if labels is not None:
            self.labels, self.num_classes = check_labels(labels, len(self.files), self.class_names)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, i: int) -> dict[str, Any]:
        try:
            image = decode(self.root / self.files[i], channels=self.channels, shorter=self.shorter)
        except Exception as error:  # Pillow's readers raise nearly anything on broken files
            raise BadSample(Fault(i, self.path(i), f"{type(error).__name__}: {error}")) from error
        return {"index": i, "image": image} if self.labels is None else {
            "index": i, "image": image, "label": int(self.labels[i]),
        }  # fmt: skip

    def column(self, name: str) -> np.ndarray | None:
        """ "folder1", "folder2", ...: names of the folders that an image lies in, from the outside; or a column of
        `metadata.csv` in the root, as numbers where all are; None: there is no such column.

        Raises:
            ValueError: images that lie less deep, or that the table does not name.
        """
        number = name.removeprefix("folder")
        if number.isdecimal() and number != name:
            return metadata.folders(self.files, int(number), self.root)
        return metadata.read_column(self.root / metadata.NAME, name, self.files)

    def path(self, i: int) -> str:
        """The file of sample i."""
        return str(self.root / self.files[i])

    def fingerprint(self) -> str:
        """Hash of names, sizes and times of the files, of their labels and of how they are read."""
        stats = np.zeros((len(self.files), 2), dtype=np.int64)
        for i, file in enumerate(self.files):
            if os.path.exists(self.root / file):
                stat = os.stat(self.root / file)
                stats[i] = stat.st_size, stat.st_mtime_ns
        labels = np.zeros(0, dtype=np.int64) if self.labels is None else self.labels
        return digest("images-2", str(self.channels), "\0".join(self.files), stats, labels)


class ImageFolder(ImageFiles):
    """The images below a folder, in natural order (2 before 10).

    Labelled where the images lie in two or more subfolders, one a class, at any depth within it; otherwise flat: all
    images at any depth, without labels. Subfolders without images are no classes, nor is a lone one, which is looked
    into. Hidden files and folders are ignored.
    Links that lead out of the folder are left out and named in `skipped`, so that data from elsewhere does not reveal
    files of this machine.

    Args:
        root: the folder.
        class_names: classes known beforehand, of the training split; a folder of another name is an error.
        channels: 1 or 3.
        shorter: larger images are reduced to this shorter side; 0: none.
        follow_links: take files behind links that lead out of the folder, too.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no folder, or none of its files is an image.
    """

    def __init__(
        self,
        root: Path | str,
        *,
        class_names: Sequence[str] = (),
        channels: int = 3,
        shorter: int = 0,
        follow_links: bool = False,
    ) -> None:
        root = check_folder(root)
        files, others, skipped = scan(root, follow_links)
        if not files:
            looked = " ".join(extension[1:] for extension in EXTENSIONS)
            found = (
                ", ".join(f"{count} {end or 'without extension'}" for end, count in others.most_common(5)) or "nothing"
            )
            links = f" and {len(skipped)} links leading out of it, which are not followed" if skipped else ""
            raise ValueError(f"data.root: expected images ({looked}) in {root}, received {found}{links}")
        if skipped:
            log.warning(
                "%s: left out %d links that lead out of the folder, e.g. %s", root, len(skipped), skipped[0].path
            )
        labels, names = None, tuple(class_names)
        # Folders that all images share, such as a lone `train`, tell nothing apart.
        above = "" if class_names else os.path.commonpath([os.path.dirname(file) for file in files])
        inside = [file[len(above) :].lstrip("/") for file in files]
        tops = {file.split("/", 1)[0] if "/" in file else "" for file in inside}
        if class_names or (len(tops) > 1 and "" not in tops):
            names = names or tuple(sorted(tops, key=natural))
            unknown = ", ".join(
                repr(top) if top else "images in no subfolder" for top in sorted(tops - set(names))[:10]
            )
            expect(not unknown, f"{root}", f"classes {', '.join(names[:10])}", unknown)
            number = {name: i for i, name in enumerate(names)}
            labels = np.array([number[file.split("/", 1)[0]] for file in inside])
        elif len(tops) > 1:
            log.warning("%s: images beside subfolders; all are taken without labels", root)
        super().__init__(root, files, labels, names, channels=channels, shorter=shorter, skipped=skipped)


def open_folder(root: Path | str, *, channels: int = 3, shorter: int = 0) -> Data | ImageFolder:
    """The images below a folder; as Data when it holds `train` and one of `val`, `valid`, `validation`, `test`."""
    root = check_folder(root)
    train, test = (next((root / name for name in names if (root / name).is_dir()), None) for names in (TRAIN, TEST))
    if train is None or test is None:
        return ImageFolder(root, channels=channels, shorter=shorter)
    first = ImageFolder(train, channels=channels, shorter=shorter)
    second = ImageFolder(test, class_names=first.class_names, channels=channels, shorter=shorter)
    return Data(first, second)


def check_folder(root: Path | str) -> Path:
    """The folder, resolved; an error that says what is wrong with it."""
    expect(bool(str(root)), "data.root", "a folder of images", "nothing; give it with --data.root FOLDER")
    path = Path(root).expanduser().resolve()
    if not path.exists():
        raise FileNotFoundError(f"data.root: expected a folder of images, received {path}, which does not exist")
    expect(path.is_dir(), "data.root", "a folder of images", f"the file {path}", NotADirectoryError)
    return path


def scan(root: Path, follow_links: bool = False) -> tuple[list[str], Counter[str], list[Fault]]:
    """Images below a folder in natural order, a count of other files by extension, links that were left out."""
    files: list[str] = []
    others: Counter[str] = Counter()
    skipped: list[Fault] = []

    def walk(folder: str, prefix: str, above: frozenset[str]) -> None:
        with os.scandir(folder) as entries:
            inside = [entry for entry in entries if not entry.name.startswith(".")]
        for entry in inside:
            name = prefix + entry.name
            if entry.is_symlink() and not follow_links:
                target = Path(entry.path).resolve()
                if not target.is_relative_to(root):
                    skipped.append(Fault(-1, entry.path, f"link leads out of the folder, to {target}"))
                    continue
            if entry.is_dir():
                real = os.path.realpath(entry.path)
                if real not in above:  # a link to a folder that holds it would never end
                    walk(entry.path, name + "/", above | {real})
            elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                files.append(name)
            else:
                others[os.path.splitext(entry.name)[1].lower()] += 1

    walk(str(root), "", frozenset({str(root)}))
    return sorted(files, key=natural), others, sorted(skipped, key=lambda fault: natural(fault.path))


def natural(text: str) -> tuple[list[Any], str]:
    """Sort key with numbers by value: img2 before img10."""
    parts = re.split(r"(\d+)", text)
    return [int(part) if part.isdecimal() else part for part in parts], text
