"""What a stage of a pipeline hands to the next: typed values, written without pickles, recognised by their content."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from nearfar.checks import expect
from nearfar.train.checkpoint import file_hash
from nearfar.train.run import Run


@runtime_checkable
class Artefact(Protocol):
    """A value that a stage leaves; `save` writes into a folder that is there, `load` reads it back."""

    kind: ClassVar[str]

    def save(self, folder: Path) -> None: ...

    @classmethod
    def load(cls, folder: Path) -> Artefact: ...


def _check(name: str, value: np.ndarray, ndim: int, kinds: str) -> np.ndarray:
    array = np.asarray(value)
    expect(array.ndim == ndim, name, f"{ndim} dimension(s)", array.shape)
    expect(array.dtype.kind in kinds, name, "integers" if kinds == "iu" else "numbers", array.dtype, TypeError)
    return array


@dataclass(frozen=True)
class IndexSet:
    """Some samples of a source, by position.

    Args:
        index: int64 [M].
    """

    kind: ClassVar[str] = "index-set"
    index: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "index", _check("index", self.index, 1, "iu").astype(np.int64))

    def save(self, folder: Path) -> None:
        """Writes index.npy."""
        np.save(folder / "index.npy", self.index)

    @classmethod
    def load(cls, folder: Path) -> IndexSet:
        """Reads it back."""
        return cls(np.load(folder / "index.npy", allow_pickle=False))


@dataclass(frozen=True)
class Labels:
    """A class a sample, -1 where there is none, for instance clusters.

    Args:
        labels: int64 [N].
        names: one a class, or none.
    """

    kind: ClassVar[str] = "labels"
    labels: np.ndarray
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", _check("labels", self.labels, 1, "iu").astype(np.int64))

    def save(self, folder: Path) -> None:
        """Writes labels.npy and names.json."""
        np.save(folder / "labels.npy", self.labels)
        (folder / "names.json").write_text(json.dumps(list(self.names)))

    @classmethod
    def load(cls, folder: Path) -> Labels:
        """Reads it back."""
        return cls(
            np.load(folder / "labels.npy", allow_pickle=False), tuple(json.loads((folder / "names.json").read_text()))
        )


@dataclass(frozen=True)
class PairSet:
    """Pairs of samples that belong together, perhaps weighted.

    Args:
        first, second: int64 [M], positions.
        weight: float [M], or None.
    """

    kind: ClassVar[str] = "pairs"
    first: np.ndarray
    second: np.ndarray
    weight: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name in ("first", "second"):
            object.__setattr__(self, name, _check(name, getattr(self, name), 1, "iu").astype(np.int64))
        expect(self.first.shape == self.second.shape, "second", f"shape {self.first.shape}", self.second.shape)
        if self.weight is not None:
            object.__setattr__(self, "weight", _check("weight", self.weight, 1, "fiu"))
            expect(self.weight.shape == self.first.shape, "weight", f"shape {self.first.shape}", self.weight.shape)

    def save(self, folder: Path) -> None:
        """Writes pairs.npz."""
        more = {} if self.weight is None else {"weight": self.weight}
        np.savez(folder / "pairs.npz", first=self.first, second=self.second, **more)  # type: ignore[arg-type]

    @classmethod
    def load(cls, folder: Path) -> PairSet:
        """Reads it back."""
        with np.load(folder / "pairs.npz", allow_pickle=False) as found:
            return cls(**{name: found[name] for name in found.files})


@dataclass(frozen=True)
class Features:
    """A vector a sample.

    Args:
        x: float [N, D].
        index: int64 [N], the samples' numbers in their source.
    """

    kind: ClassVar[str] = "features"
    x: np.ndarray
    index: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "x", _check("x", self.x, 2, "f"))
        object.__setattr__(self, "index", _check("index", self.index, 1, "iu").astype(np.int64))
        expect(len(self.x) == len(self.index), "index", f"{len(self.x)} numbers, one a row", len(self.index))

    def save(self, folder: Path) -> None:
        """Writes features.npy and index.npy."""
        np.save(folder / "features.npy", self.x)
        np.save(folder / "index.npy", self.index)

    @classmethod
    def load(cls, folder: Path) -> Features:
        """Reads it back."""
        return cls(*(np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("features", "index")))


@dataclass(frozen=True)
class Arrays:
    """Numbers of any shapes, by name.

    Args:
        values: name -> array of numbers or truth values.
    """

    kind: ClassVar[str] = "arrays"
    values: dict[str, np.ndarray]

    def __post_init__(self) -> None:
        for name, value in self.values.items():
            kind = np.asarray(value).dtype
            expect(kind.kind in "biuf", f"values {name!r}", "an array of numbers", kind, TypeError)

    def save(self, folder: Path) -> None:
        """Writes arrays.npz."""
        np.savez(folder / "arrays.npz", **self.values)  # type: ignore[arg-type]

    @classmethod
    def load(cls, folder: Path) -> Arrays:
        """Reads it back."""
        with np.load(folder / "arrays.npz", allow_pickle=False) as found:
            return cls({name: found[name] for name in found.files})


@dataclass(frozen=True)
class TrainedRun:
    """A finished run folder.

    Args:
        path: of the run.
    """

    kind: ClassVar[str] = "run"
    path: Path

    @property
    def run(self) -> Run:
        """The run, for reading."""
        return Run(self.path)

    def save(self, folder: Path) -> None:
        """Writes where the run lies, beside this artefact if it can be, and the hash of its last model."""
        manifest = self.run.checkpoint("last") / "manifest.json"
        digest = file_hash(manifest)
        inside = self.path.resolve().is_relative_to(folder.parents[1].resolve())
        place = self.path.resolve().relative_to(folder.parents[1].resolve()) if inside else self.path.resolve()
        (folder / "run.json").write_text(json.dumps({"path": str(place), "manifest": digest}))

    @classmethod
    def load(cls, folder: Path) -> TrainedRun:
        """Reads it back."""
        return cls(folder.parents[1] / json.loads((folder / "run.json").read_text())["path"])


@dataclass(frozen=True)
class Values:
    """Plain values: numbers, texts, lists and objects of them, as JSON has them.

    Args:
        values: by name.
    """

    kind: ClassVar[str] = "values"
    values: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Writes values.json."""
        (folder / "values.json").write_text(json.dumps(self.values, indent=2, sort_keys=True))

    @classmethod
    def load(cls, folder: Path) -> Values:
        """Reads it back."""
        return cls(json.loads((folder / "values.json").read_text()))


KINDS: dict[str, type[Artefact]] = {
    one.kind: one for one in (IndexSet, Labels, PairSet, Features, Arrays, TrainedRun, Values)
}  # fmt: skip


def digest(folder: Path) -> str:
    """Hash of every file of an artefact's folder, by name and content."""
    files = [f"{file.name} {file_hash(file)}" for file in sorted(folder.iterdir())]
    return hashlib.sha256("\n".join(files).encode()).hexdigest()[:32]
