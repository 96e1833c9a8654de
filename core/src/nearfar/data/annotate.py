"""Samples that carry more than an image and a label: a number to be told, a path of labels from coarse to fine.

Legend: N samples, H levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from nearfar.batch import Batch
from nearfar.checks import expect
from nearfar.config import DataConfig
from nearfar.data.source import Data, Source, check_labels, column, digest, whole


class Annotated:
    """A source whose samples also have `target`, a number, or `path`, labels on several levels, coarsest first.

    With `path` the label is that of the finest level: samples of equal paths are of one class.

    Args:
        source: where samples come from.
        target: numbers [N].
        path: integers [N, H] of 0 or more; an id of one level always has the same id on the coarser ones, see
            `unique_paths`.
        class_names: one an id of the finest level.

    Attributes:
        target: float64 [N], or None.
        path_ids: int64 [N, H], or None.

    Raises:
        ValueError: another number of rows, targets that are not finite, an id with two parents, names that do not fit.
    """

    def __init__(
        self, source: Source, *, target: ArrayLike | None = None, path: ArrayLike | None = None,
        class_names: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.source, self.name, self.shape = source, source.name, source.shape
        self.labels, self.num_classes, self.class_names = source.labels, source.num_classes, source.class_names
        self.target: np.ndarray | None = None
        self.path_ids: np.ndarray | None = None
        num = len(source)
        if target is not None:
            self.target = np.asarray(target, dtype=np.float64)
            expect(self.target.shape == (num,), "target", f"shape ({num},), a number a sample", self.target.shape)
            bad = np.flatnonzero(~np.isfinite(self.target))
            expect(len(bad) == 0, "target", "finite numbers",
                   f"{len(bad)} others, the first for {source.path(int(bad[0])) if len(bad) else ''}")  # fmt: skip
        if path is not None:
            ids = np.asarray(path)
            whole_numbers = ids.ndim == 2 and ids.shape[1] >= 1 and ids.dtype.kind in "iu"
            expect(whole_numbers and len(ids) == num, "path", f"integers of shape ({num}, H), H >= 1",
                   f"{ids.dtype} {ids.shape}")  # fmt: skip
            for h in range(1, ids.shape[1]):
                pairs, nodes = np.unique(ids[:, h - 1 : h + 1], axis=0), np.unique(ids[:, h])
                expect(len(pairs) == len(nodes), "path", f"one parent for every id of level {h} (see unique_paths)",
                       f"{len(pairs) - len(nodes)} with another")  # fmt: skip
            self.path_ids = ids.astype(np.int64)
            self.class_names = tuple(class_names)
            self.labels, self.num_classes = check_labels(self.path_ids[:, -1], num, self.class_names)
        if hasattr(source, "batch"):
            self.batch = self._batch

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> dict[str, Any]:
        sample = dict(self.source[i])
        if self.target is not None:
            sample["target"] = float(self.target[i])
        if self.path_ids is not None:
            sample |= {"path": self.path_ids[i].copy(), "label": int(self.path_ids[i, -1])}
        return sample

    def _batch(self, positions: np.ndarray) -> Batch:
        """Many samples at once, of a source that can."""
        batch = dict(self.source.batch(positions))  # type: ignore[attr-defined]
        if self.target is not None:
            batch["target"] = torch.from_numpy(self.target[positions].astype(np.float32))
        if self.path_ids is not None:
            batch["path"] = torch.from_numpy(self.path_ids[positions])
            batch["label"] = batch["path"][:, -1].clone()
        return batch

    def column(self, name: str) -> np.ndarray | None:
        """ "target", "path", or a column of the source."""
        found = {"target": self.target, "path": self.path_ids}.get(name)
        return found if found is not None else getattr(self.source, "column", lambda _: None)(name)

    def path(self, i: int) -> str:
        """Where sample i lies."""
        return self.source.path(i)

    def fingerprint(self) -> str:
        """Hash of the source's and of what was added."""
        none = np.zeros(0)
        target, path = (none if part is None else part for part in (self.target, self.path_ids))
        return digest("annotated-1", self.source.fingerprint(), target, path, "\0".join(self.class_names))


def targets_of(train: Source, train_index: Tensor, test: Source, test_index: Tensor) -> tuple[Tensor, Tensor] | None:
    """Targets of the samples that were delivered, by their `index`; None unless both sources have them."""
    found = [getattr(whole(source), "target", None) for source in (train, test)]
    if any(part is None for part in found):
        return None
    first, second = (
        torch.from_numpy(part)[index] for part, index in zip(found, (train_index, test_index), strict=True)
    )
    return first, second


def annotate(data: Data | Source, config: DataConfig) -> Data | Source:
    """Data with `config.target` and `config.levels`, columns of its sources; ids of levels agree among its parts.

    Raises:
        ValueError: a source without such a column, texts where numbers are needed, samples without a value.
    """
    if not config.target and not config.levels:
        return data
    parts = [data.train, data.test] if isinstance(data, Data) else [data]
    added: list[dict[str, Any]] = [{} for _ in parts]
    if config.levels:
        texts = [np.concatenate([_texts(part, name) for part in parts]) for name in config.levels]
        ids = unique_paths(np.stack([np.unique(level, return_inverse=True)[1] for level in texts], 1))
        first = np.unique(ids[:, -1], return_index=True)[1]
        names = ["/".join(str(level[i]) for level in texts) for i in first.tolist()]
        ends = np.cumsum([len(part) for part in parts])
        for options, part, end in zip(added, parts, ends, strict=True):
            options |= {"path": ids[end - len(part) : end], "class_names": names}
    if config.target:
        for options, part in zip(added, parts, strict=True):
            options["target"] = _numbers(part, config.target)
    made = [Annotated(part, **options) for part, options in zip(parts, added, strict=True)]
    return Data(made[0], made[1], data.holdout) if isinstance(data, Data) else made[0]


def unique_paths(ids: np.ndarray) -> np.ndarray:
    """Ids of the paths down to every level, int64 [N, H]: children of different parents never share one."""
    columns = [np.unique(ids[:, : h + 1], axis=0, return_inverse=True)[1].reshape(-1) for h in range(ids.shape[1])]
    return np.stack(columns, 1).astype(np.int64)


def _column(source: Source, name: str, option: str) -> np.ndarray:
    """A column, named by the option that asks for it where there is none."""
    known = getattr(whole(source), "column", lambda _: None)(name)
    expect(name == "label" or known is not None, option, f"a column of {source.name}", repr(name))
    return column(source, name)


def _numbers(source: Source, name: str) -> np.ndarray:
    values = _column(source, name, "data.target")
    expect(values.dtype.kind in "iuf", "data.target", f"a column of numbers of {source.name}",
           f"{name!r}, e.g. {values[0] if len(values) else None!r}")  # fmt: skip
    return values.astype(np.float64)


def _texts(source: Source, name: str) -> np.ndarray:
    values = _column(source, name, "data.levels")
    if name == "label" and source.class_names:
        values = np.array(source.class_names)[values]
    expect(values.ndim == 1, "data.levels", "a value a sample", f"{name!r} of shape {values.shape}")
    return values.astype(str)
