"""Datasets of Hugging Face as sources; the library `datasets` is imported only when one is opened."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nearfar.caches import cache_folder
from nearfar.checks import expect
from nearfar.data.decode import EXTENSIONS, decode
from nearfar.data.fields import as_column, read_labels
from nearfar.data.folder import TEST, TRAIN
from nearfar.data.source import BadSample, Data, Fault, TooManyFaults, allowed_faults, digest

BUILDERS = {".parquet": "parquet", ".arrow": "arrow", ".jsonl": "json", ".json": "json", ".csv": "csv"}
_HUB = re.compile(r"[\w.-]+(/[\w.-]+)?(:[\w.-]+)?")


class HFSource:
    """A map-style `datasets.Dataset`, whose images are decoded as those of folders are.

    Args:
        dataset: with a column of images (feature Image, or encoded bytes), or none and `columns` alone.
        name: for people.
        image: column of the image; empty: the only one of feature Image, or "image".
        label: column of the label; empty: "label", or the only one of feature ClassLabel; "none": no labels.
        columns: further fields of a sample by name: numbers and texts.
        class_names: classes known beforehand, of the training split, where labels are texts.
        channels: 1 or 3.
        shorter: larger images are reduced to this shorter side; 0: none.
        roots: folders below which a dataset may name image files by their path; others are bad samples.

    A sample without a label, or whose label is -1, is bad: a loader replaces and counts it; without any labels there
    are none.

    Raises:
        TypeError: no Dataset, e.g. one that is streamed.
        ValueError: columns that are not there, or of another type.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        name: str = "",
        image: str = "",
        label: str = "",
        columns: Sequence[str] = (),
        class_names: Sequence[str] = (),
        channels: int = 3,
        shorter: int = 0,
        roots: Iterable[Path] = (),
    ) -> None:
        library = _datasets()
        kind = type(dataset).__name__
        streamed = ", which has no places to shuffle, share and resume by; load it with streaming=False"
        hint = streamed if isinstance(dataset, library.IterableDataset) else ""
        expect(isinstance(dataset, library.Dataset), "dataset", "a datasets.Dataset", f"{kind}{hint}", TypeError)
        expect(channels in (1, 3), "channels", "1 or 3", channels)
        self._features = dataset.features
        self.name, self.columns = name or str(dataset.info.dataset_name or "dataset"), tuple(columns)
        self.channels, self.shorter, self.shape = channels, shorter, ()
        self.roots = [Path(root).resolve() for root in roots]
        self._image = self._choose_image(image, library)
        for column in self.columns:
            self._expect_column("data.columns", column)
        self._label = self._choose_label(label, library)
        self._rows = dataset.with_format(None)
        if self._image and isinstance(self._features[self._image], library.Image):
            self._rows = self._rows.cast_column(self._image, library.Image(decode=False))
        self._wanted = self._rows.select_columns([column for column in (self._image, *self.columns) if column])
        self.labels: np.ndarray | None = None
        self.class_names, self.num_classes = tuple(class_names), len(class_names)
        self.bad: dict[int, Fault] = {}
        if self._label:
            feature = self._features[self._label]
            known = tuple(feature.names) if isinstance(feature, library.ClassLabel) else self.class_names
            found = read_labels(self._rows[self._label][:], self._label, known)
            self.labels, self.class_names, self.num_classes = found.labels, found.class_names, found.num_classes
            self.bad = {i: Fault(i, self.path(i), reason) for i, reason in found.bad.items()}

    def _choose_image(self, image: str, library: Any) -> str:
        found = [column for column, feature in self._features.items() if isinstance(feature, library.Image)]
        if image:
            self._expect_column("data.image_column", image)
            binary = getattr(self._features[image], "dtype", "") in ("binary", "large_binary")
            expect(image in found or binary, "data.image_column", "a column of feature Image or of bytes",
                   f"{image} of {self._features[image]}; cast_column({image!r}, Image()) makes one")  # fmt: skip
            return image
        if len(found) > 1:
            expect("image" in found, "data.image_column", f"which of {', '.join(found)} is the image", "nothing")
            return "image"
        expect(bool(found or self.columns), self.name, "a column of feature Image", f"{dict(self._features)}; name the "
               "column of encoded bytes with data.image_column")  # fmt: skip
        return found[0] if found else ""

    def _choose_label(self, label: str, library: Any) -> str:
        if label == "none":
            return ""
        if label:
            self._expect_column("data.label_column", label)
        found = [column for column, feature in self._features.items() if isinstance(feature, library.ClassLabel)]
        expect(bool(label) or "label" in self._features or len(found) < 2, "data.label_column",
               f"which of {', '.join(found)} is the label, or none", "nothing")  # fmt: skip
        return label or ("label" if "label" in self._features else "".join(found))

    def _expect_column(self, option: str, column: str) -> None:
        expect(column in self._features, option, f"one of {', '.join(self._features)}", repr(column))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, i: int) -> dict[str, Any]:
        if i in self.bad:
            raise BadSample(self.bad[i])
        row = self._wanted[i]
        sample: dict[str, Any] = {"index": i}
        try:
            if self._image:
                content = self._content(row[self._image])
                sample["image"] = decode(content, channels=self.channels, shorter=self.shorter)
        except Exception as error:  # Pillow's readers raise nearly anything on broken files
            raise BadSample(Fault(i, self.path(i), f"{type(error).__name__}: {error}")) from error
        for column in self.columns:
            value = row[column]
            if value is None:
                raise BadSample(Fault(i, self.path(i), f"no {column}"))
            sample[column] = np.asarray(value) if isinstance(value, list) else value
        return sample if self.labels is None else {**sample, "label": int(self.labels[i])}

    def _content(self, value: Any) -> Path | io.BytesIO:
        expect(value is not None, "image", "one", "none")
        if isinstance(value, bytes):
            return io.BytesIO(value)
        if value["bytes"] is not None:
            return io.BytesIO(value["bytes"])
        path = Path(value["path"]).resolve()
        within = any(path.is_relative_to(root) for root in self.roots)
        expect(within, "image", "its bytes, or a file below the dataset's folder", path)
        return path

    def column(self, name: str) -> np.ndarray | None:
        """A value a sample: a column of numbers or texts; None: there is no such column.

        Raises:
            ValueError: samples without it, or values of another type.
        """
        return as_column(self._rows[name][:], name, self.name) if name in self._features else None

    def path(self, i: int) -> str:
        """The source's name and the number."""
        return f"{self.name}[{i}]"

    def fingerprint(self) -> str:
        """Hash of the labels, of 64 samples spread over the dataset, and of how it is read.

        The library's own fingerprint would be another one for the same files in another folder.
        """
        labels = np.zeros(0, dtype=np.int64) if self.labels is None else self.labels
        how = f"{len(self)} {self.channels} {self._features} {self._image} {self._label} {' '.join(self.columns)}"
        some = np.unique(np.linspace(0, max(len(self) - 1, 0), 64, dtype=np.int64))[: len(self)]
        return digest("hf-1", how, labels, *(self._print(self._wanted[i]) for i in some.tolist()))

    def _print(self, row: dict[str, Any]) -> str:
        """Hash of a sample as it is stored."""
        parts = [repr(row[column]) for column in self.columns]
        if self._image:
            try:
                content = self._content(row[self._image])
                raw = content.getvalue() if isinstance(content, io.BytesIO) else content.read_bytes()
            except (ValueError, OSError) as error:  # a bad sample, counted when it is read
                raw = type(error).__name__.encode()
            parts.append(hashlib.blake2b(raw, digest_size=16).hexdigest())
        return digest(*parts)


def open_hf(
    root: str,
    *,
    image: str = "",
    label: str = "",
    columns: Sequence[str] = (),
    channels: int = 3,
    shorter: int = 0,
    cache: str = "",
    max_bad_share: float = 0.01,
) -> Data | HFSource:
    """A dataset of Hugging Face as a source, or as Data where it has splits to learn from and to judge on.

    Args:
        root: a folder by `save_to_disk`; a folder of .parquet, .arrow, .jsonl, .json or .csv files, or of images; one
            such file; or NAME or NAME:CONFIG on the hub, which is downloaded.
        image, label, columns, channels, shorter: see HFSource.
        cache: folder of what the library prepares; empty: nearfar's in the user's cache.
        max_bad_share: share of samples that may have no label.

    Raises:
        ImportError: `datasets` is not installed; the message says how to get it.
        FileNotFoundError: neither there nor on the hub, or the hub cannot be reached.
        ValueError: nothing that can be read, or splits without one to learn from.
    """
    expect(bool(root), "data.root", "a folder, a file or a name on the hub", "nothing; give it with --data.root")
    library = _datasets()
    made = str(cache_folder(cache) / "hf")
    loaded = _load(root, library, made)
    splits = dict(loaded) if isinstance(loaded, dict) else {"train": loaded}
    first = next((split for split in TRAIN if split in splits), "") or (next(iter(splits)) if len(splits) == 1 else "")
    expect(bool(first), "data.root", "a split named train", f"splits {', '.join(splits)} of {root}")
    second = next((split for split in TEST if split in splits and split != first), "")
    path = Path(root).expanduser()
    roots = [Path(made), Path(library.config.HF_DATASETS_CACHE), Path(library.config.DOWNLOADED_DATASETS_PATH)]
    roots += [path if path.is_dir() else path.parent] if path.exists() else []
    name, sources, names = path.stem if path.exists() else root, [], ()
    for split in filter(None, (first, second)):
        source = HFSource(
            splits[split], name=f"{name} {split}" if second else name, image=image, label=label, columns=columns,
            class_names=names, channels=channels, shorter=shorter, roots=roots,
        )  # fmt: skip
        names = source.class_names
        sources.append(source)
        if len(source.bad) > allowed_faults(max_bad_share, len(source)):
            raise TooManyFaults(list(source.bad.values()), len(source), max_bad_share)
    if not second:
        return sources[0]
    sources[0].num_classes = sources[1].num_classes = max(source.num_classes for source in sources)
    return Data(sources[0], sources[1])


def _load(root: str, library: Any, cache: str) -> Any:
    """A Dataset or a DatasetDict. Only builders of plain formats are used, none that unpickles."""
    path = Path(root).expanduser()
    if path.is_file():
        expect(path.suffix in BUILDERS, "data.root", f"a file {' '.join(BUILDERS)}", root)
        return library.load_dataset(BUILDERS[path.suffix], data_files=str(path), split="train", cache_dir=cache)
    if path.is_dir():
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return library.load_from_disk(str(path))
        found = {file.suffix.lower() for file in path.rglob("*") if file.is_file()}
        builder = "imagefolder" if found & set(EXTENSIONS) else next((BUILDERS[s] for s in BUILDERS if s in found), "")
        expect(bool(builder), "data.root", f"files {' '.join(BUILDERS)}, images, or what save_to_disk wrote",
               f"{path} with {' '.join(sorted(found)) or 'nothing'}")  # fmt: skip
        return library.load_dataset(builder, data_dir=str(path), cache_dir=cache)
    expect(bool(_HUB.fullmatch(root)) and not root.startswith("."), "data.root", "a folder, a file, or NAME of the hub",
           f"{root}, which does not exist", FileNotFoundError)  # fmt: skip
    name, _, config = root.partition(":")
    try:
        return library.load_dataset(name, config or None, cache_dir=cache)
    except (ConnectionError, FileNotFoundError) as error:
        raise FileNotFoundError(
            f"data.root: expected a folder, a file, or a dataset on the hub, received {root}, which is neither here "
            f"nor can be had from the hub: {error}"
        ) from error


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError('data.source "hf" needs the library datasets: pip install "nearfar[hf]"') from error
    return datasets
