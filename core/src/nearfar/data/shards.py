"""WebDataset shards, tar files of samples, read by the place of each sample."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nearfar.caches import cache_folder
from nearfar.checks import expect
from nearfar.data import archive, fields
from nearfar.data.decode import EXTENSIONS, decode
from nearfar.data.fields import Labels, as_column, read_labels
from nearfar.data.kept import kept
from nearfar.data.patterns import archives, split
from nearfar.data.places import Places, protocol
from nearfar.data.source import BadSample, Data, Fault, TooManyFaults, allowed_faults, digest
from nearfar.data.tars import Index, group, members

IMAGES = tuple(extension[1:] for extension in EXTENSIONS)


class TarShards:
    """Samples of WebDataset shards: members of a tar file that share the name before the first dot.

    Headers are read once and kept in the cache; from then on any sample is one read at its place, so that order,
    resuming and sharing among processes are those of every other source. Nothing is extracted, links are not followed,
    and members that only Python's pickle can read are refused.

    Args:
        shards: tar files without compression, or addresses of such (see Places); their order is that of the samples.
        name: for people; empty: of the first shard.
        image: extension of the image, e.g. "jpg"; empty: the one of each sample; samples without any are bad.
        label: extension or `json.FIELD` of the label; empty: "cls" where there are any; "none": no labels.
        columns: further fields of a sample by extension or `json.FIELD`, e.g. "txt" for captions.
        class_names: classes known beforehand, of the training split.
        channels: 1 or 3.
        shorter: larger images are reduced to this shorter side; 0: none.
        cache: folder of the indices and of copies; empty: nearfar's in the user's cache.
        cache_gb: cap of the copies of shards on other machines, in 10^9 bytes.

    Integers are class numbers; texts are class names, numbered in natural order. A sample without a label, or with
    another one than a class, is bad: a loader replaces and counts it.

    Raises:
        ValueError: shards that are compressed, cut off or no tar files, all named; no image; a column that is none.
    """

    def __init__(
        self,
        shards: Sequence[Path | str],
        *,
        name: str = "",
        image: str = "",
        label: str = "",
        columns: Sequence[str] = (),
        class_names: Sequence[str] = (),
        channels: int = 3,
        shorter: int = 0,
        cache: str = "",
        cache_gb: float = 50.0,
    ) -> None:
        expect(len(shards) > 0, "shards", "one or more", "none")
        expect(channels in (1, 3), "channels", "1 or 3", channels)
        self._places = Places(shards, cache_folder(cache) / "shard-files", cache_gb * 1e9)
        self.shards, self.columns = self._places.shards, tuple(columns)
        self.name, self.channels, self.shorter = name or self._places.name(0), channels, shorter
        self.shape: tuple[int, ...] = ()
        self._cache = cache_folder(cache) / "shards"
        self._join(self._indices(label))
        expect(len(self) > 0, self.name, "samples, files KEY.EXTENSION in tar files", "none")
        self._image = self._choose_image(image)
        for column in self.columns:
            self._check("data.columns", column)
        self.bad: dict[int, Fault] = {}
        if self._image is not None:
            for i in np.flatnonzero(self._image < 0).tolist():
                self.bad[i] = Fault(i, self.path(i), f"no image among {', '.join(self._all.extensions_of(i))}")
        self._label(label, tuple(class_names))

    def _indices(self, label: str) -> list[Index]:
        """The index of every shard; while one is at hand its labels are kept too."""
        broken: list[str] = []
        numbers = {shard: number for number, shard in enumerate(self.shards)}

        def work(shard: Path | str) -> Index | None:
            try:
                index = self._index(numbers[shard])
                column = label or ("cls" if "cls" in index.extensions else "none")
                if protocol(shard) and column != "none" and fields.locate(column, index.extensions):
                    self._column(numbers[shard], column, index)
                return index
            except ValueError as error:
                broken.append(f"{shard}: {error}")
                return None

        found = self._places.each(work)
        broken.sort()
        more = f"; and {len(broken) - 5} more" if len(broken) > 5 else ""
        expect(not broken, "data.root", f"{len(self.shards)} whole tar files", f"{len(broken)} that are not: "
               f"{'; '.join(broken[:5])}{more}")  # fmt: skip
        return [index for index in found if index is not None]

    def _index(self, number: int) -> Index:
        def make() -> Index:
            with self._places.opened(number) as file:
                return group(members(file, self._places.stamps[number][0]))

        return kept(self._cache / f"{self._places.digest(number)}.safetensors", archive.load, make, archive.save)

    def _column(self, number: int, column: str, index: Index | None = None) -> list[Any]:
        """A column of one shard, {"fault": why} where a value cannot be read."""

        def make() -> list[Any]:
            found = index or self._index(number)
            with self._places.opened(number) as file:
                return [self._value(found, row, column, file) for row in range(len(found.keys))]

        return kept(self._cache / f"{self._places.digest(number, column)}.json", _load_json, make, _save_json)

    def _value(self, index: Index, row: int, column: str, file: int) -> Any:
        try:
            value = self._field(index, row, column, file)
        except Exception as error:  # decoders raise nearly anything on broken content
            return {"fault": str(error)}
        scalar = isinstance(value, (bool, int, float, str))
        return value if scalar else {"fault": f"{column} is {type(value).__name__}, no number or text"}

    def _field(self, index: Index, row: int, column: str, file: int) -> Any:
        extension, field = fields.locate(column, index.extensions) or (column.split(".")[0], "")
        have = index.extensions_of(row)
        if extension not in have:
            raise ValueError(f"expected a member .{extension}, received {', '.join(have)} alone")
        member = int(index.first[row]) + have.index(extension)
        return fields.read(extension, field, index.content(member, file), self.channels, self.shorter)

    def _join(self, indices: Sequence[Index]) -> None:
        """All shards' arrays one after another."""
        self._all = Index.joined(indices)
        self.extensions = self._all.extensions
        self._shard = np.repeat(np.arange(len(indices)), [len(index.keys) for index in indices])
        self.skipped = [
            Fault(-1, f"{shard}/{name!r}", reason)
            for shard, index in zip(self.shards, indices, strict=True)
            for name, reason in index.skipped
        ]

    def _choose_image(self, image: str) -> np.ndarray | None:
        """The member of every sample's image, -1 where there is none; None: there are only columns."""
        present = [name for name in self.extensions if name in IMAGES] if not image else [image]
        expect(not image or image in self.extensions, "data.image_column", f"an extension of {self._known()}", image)
        if not present:
            expect(bool(self.columns), self.name, f"images ({', '.join(IMAGES)})", f"samples of {self._known()}; name "
                   "the image's extension with data.image_column")  # fmt: skip
            return None
        rows = np.flatnonzero(np.isin(self._all.extension, [self.extensions.index(name) for name in present]))
        sample = np.searchsorted(self._all.first, rows, side="right") - 1
        twice = sample[:-1][sample[:-1] == sample[1:]]
        if len(twice):
            several = ", ".join(name for name in self._all.extensions_of(int(twice[0])) if name in present)
            expect(False, "data.image_column", f"which of {several} is the image, e.g. in {self.path(int(twice[0]))}",
                   "nothing")  # fmt: skip
        member = np.full(len(self), -1, dtype=np.int64)
        member[sample] = rows
        return member

    def _label(self, label: str, class_names: tuple[str, ...]) -> None:
        self.labels: np.ndarray | None = None
        self.class_names, self.num_classes = class_names, len(class_names)
        column = label or ("cls" if "cls" in self.extensions else "none")
        self.label = column
        if column == "none":
            return
        self._check("data.label_column", column)
        values = self._values(column)
        found: Labels = read_labels(values, column, class_names)
        why = next((value["fault"] for value in values if isinstance(value, dict)), "none")
        expect(found.labels is not None, f"data.label_column {column}", "class numbers or names", why)
        self.labels, self.class_names, self.num_classes = found.labels, found.class_names, found.num_classes
        for i, reason in found.bad.items():
            self.bad.setdefault(i, Fault(i, self.path(i), reason))

    def __len__(self) -> int:
        return len(self._all.keys)

    def __getitem__(self, i: int) -> dict[str, Any]:
        if i in self.bad:
            raise BadSample(self.bad[i])
        sample: dict[str, Any] = {"index": i}
        try:
            with self._places.opened(int(self._shard[i])) as file:
                if self._image is not None:
                    raw = io.BytesIO(self._all.content(int(self._image[i]), file))
                    sample["image"] = decode(raw, channels=self.channels, shorter=self.shorter)
                for column in self.columns:
                    sample[column] = self._field(self._all, i, column, file)
        except Exception as error:  # decoders raise nearly anything on broken content
            raise BadSample(Fault(i, self.path(i), f"{type(error).__name__}: {error}")) from error
        return sample if self.labels is None else {**sample, "label": int(self.labels[i])}

    def _within(self, column: str) -> tuple[str, str] | None:
        """The extension that holds a column, and the field within it."""
        return fields.locate(column, self.extensions)

    def _check(self, option: str, column: str) -> None:
        extension, field = self._within(column) or ("", "")
        known = ", ".join(name for name in self.extensions if fields.readable(name))
        expect(fields.readable(extension) and (field != "" or fields.kind(extension) != "json"), option,
               f"one of {known}, of json a field json.FIELD", f"{column!r}{fields.danger(column)}")  # fmt: skip

    def _values(self, column: str) -> list[Any]:
        """A column's values, {"fault": why} where one cannot be read; kept for every shard."""
        return list(itertools.chain.from_iterable(self._column(number, column) for number in range(len(self.shards))))

    def column(self, name: str) -> np.ndarray | None:
        """A value a sample: "key", "shard" (its number), an extension or `json.FIELD`; None: there is no such column.

        Raises:
            ValueError: samples without it, or values of several types.
        """
        if name == "shard":
            return self._shard
        if name == "key":
            return as_column(list(self._all.keys), name, self.name)
        return None if self._within(name) is None else as_column(self._values(name), name, self.name)

    def _known(self) -> str:
        return ", ".join(self.extensions[:20])

    def path(self, i: int) -> str:
        """The shard, and the sample's name in it."""
        return f"{self.shards[self._shard[i]]}/{self._all.keys[i]}"

    def fingerprint(self) -> str:
        """Hash of the shards' names, sizes and times, the place of every sample, labels and how they are read."""
        labels = np.zeros(0, dtype=np.int64) if self.labels is None else self.labels
        image = np.zeros(0, dtype=np.int64) if self._image is None else self._image
        how = f"{self.channels} {self.label} {' '.join(self.columns)}"
        names = [f"{self._places.name(i)} {size} {stamp}" for i, (size, stamp) in enumerate(self._places.stamps)]
        return digest("shards-1", how, "\0".join(names), self._all.offset, image, labels)


def open_shards(
    root: str,
    *,
    image: str = "",
    label: str = "",
    columns: Sequence[str] = (),
    channels: int = 3,
    shorter: int = 0,
    cache: str = "",
    cache_gb: float = 50.0,
    max_bad_share: float = 0.01,
) -> Data | TarShards:
    """The shards of a folder, or of a pattern such as `shards-{0000..0099}.tar` or `shards-*.tar`.

    As Data when the folder's shards say by a word of their names or folders that they are `train`, and others `val`,
    `valid`, `validation` or `test`. For arguments see TarShards and `nearfar.data.patterns.archives`.

    Raises:
        TooManyFaults: more samples than max_bad_share allows have no image or no label.
    """
    folder, files, outside = archives(root)
    folders = [file for file in files if isinstance(file, Path)] if Path(root).expanduser().is_dir() else []
    train, test = split(folder, folders) if folders else (files, [])
    options: dict[str, Any] = {
        "image": image, "label": label, "columns": columns, "channels": channels, "shorter": shorter, "cache": cache,
        "cache_gb": cache_gb,
    }  # fmt: skip
    first = TarShards(train, name=Path(root).name or folder.resolve().name, **options)
    sources = [first]
    if test:
        sources.append(TarShards(test, name=f"{first.name} test", class_names=first.class_names, **options))
        for source in sources:
            source.num_classes = max(part.num_classes for part in sources)
    for source in sources:
        if len(source.bad) > allowed_faults(max_bad_share, len(source)):
            raise TooManyFaults(list(source.bad.values()), len(source), max_bad_share)
    first.skipped += [Fault(-1, str(file), "link leads out of the folder") for file in outside]
    fields.warn_skipped(first.name, [fault for source in sources for fault in source.skipped])
    return Data(sources[0], sources[1]) if test else first


def _save_json(path: Path, values: list[Any]) -> None:
    path.write_text(json.dumps(values))


def _load_json(path: Path) -> list[Any]:
    return json.loads(path.read_text())
