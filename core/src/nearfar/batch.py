"""The data contract: a batch is a flat dict of rows, and every function here keeps rows together.

Shapes: B samples of a batch, k dimensions of a sample, M pairs.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nearfar import distributed
from nearfar.checks import expect
from nearfar.collate import collate
from nearfar.ragged import Ragged, expect_integers

__all__ = ["Batch", "Pairs", "Ragged", "View", "by_source", "collate", "gather", "pin", "size", "split", "take", "to"]

Batch = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class View:
    """One view of every sample.

    Args:
        data: [B, ...] as an encoder takes it.
        geometry: where it came from, a `nearfar.views.Geometry`, if that is known.
        role: what a method takes it for, e.g. "global", "local", "plain".
    """

    data: Tensor
    geometry: Any = None
    role: str = "global"


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Correspondences between places in a batch; they follow their samples, and vanish when one end is left out.

    Args:
        first: int64 [M] rows of the batch, or [M, k] whose first column is that row and the others a place within it.
        second: the same, of the other end.
        weight: [M], if pairs do not all count alike.
    """

    first: Tensor
    second: Tensor
    weight: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("first", "second"):
            expect_integers(name, getattr(self, name))
            expect(getattr(self, name).ndim in (1, 2), name, "shape [M] or [M, k]", tuple(getattr(self, name).shape))
        rows = len(self.first)
        expect(len(self.second) == rows, "second", f"{rows} rows as in first", len(self.second))
        if self.weight is not None:
            expect(self.weight.shape == (rows,), "weight", f"shape [{rows}]", tuple(self.weight.shape))

    def __len__(self) -> int:
        return len(self.first)

    def _moved(self, kept: Tensor, move: Callable[[Tensor], Tensor]) -> Pairs:
        """The pairs in `kept` with `move` applied to their row numbers."""

        def end(places: Tensor) -> Tensor:
            places = places[kept]
            return move(places) if places.ndim == 1 else torch.cat([move(places[:, :1]), places[:, 1:]], dim=1)

        return Pairs(end(self.first), end(self.second), None if self.weight is None else self.weight[kept])

    def _take(self, rows: Tensor, num_rows: int) -> Pairs:
        rows = rows.to(self.first.device)
        place = torch.full((num_rows,), -1, dtype=torch.int64, device=rows.device)
        place[rows] = torch.arange(len(rows), device=rows.device)
        ends = [end if end.ndim == 1 else end[:, 0] for end in (self.first, self.second)]
        return self._moved((place[ends[0]] >= 0) & (place[ends[1]] >= 0), lambda number: place[number])

    def _gather(self, offset: int) -> Pairs:
        all_rows = torch.ones(len(self), dtype=torch.bool, device=self.first.device)
        moved = self._moved(all_rows, lambda number: number + offset)
        parts = [None if part is None else distributed.gather(part, grad=False) for part in _fields(moved).values()]
        return Pairs(*parts)  # type: ignore[arg-type]


def size(batch: Batch) -> int:
    """Samples of a batch: the length of `index`, or of the first field that has rows."""
    if "index" in batch:
        return len(batch["index"])
    found: list[int] = []
    _map(batch, lambda value, name: found.append(len(value)) if not isinstance(value, Pairs) else None, "batch")
    expect(bool(found), "batch", "a field with rows", sorted(batch))
    return found[0]


def to(batch: Batch, device: torch.device | str, non_blocking: bool = False) -> Batch:
    """The batch with every tensor on `device`."""
    return _map(batch, lambda value, _: _each_tensor(value, lambda x: x.to(device, non_blocking=non_blocking)), "batch")


def pin(batch: Batch) -> Batch:
    """The batch in page-locked memory, from where copies to a GPU overlap work; as it is on a machine without CUDA."""
    if not torch.cuda.is_available():
        return batch
    return _map(batch, lambda value, _: _each_tensor(value, Tensor.pin_memory), "batch")


def take(batch: Batch, rows: Tensor | np.ndarray | Sequence[int]) -> Batch:
    """The given rows of every field, in that order.

    Args:
        rows: numbers from 0, or a bool mask [B].

    Raises:
        ValueError: a row that the batch lacks, a field of another length, repeated rows of a batch with Pairs.
        TypeError: a value that has no rows.
    """
    num_rows = size(batch)
    rows = torch.as_tensor(rows)
    if rows.dtype == torch.bool:
        expect(rows.shape == (num_rows,), "rows", f"a mask of shape [{num_rows}]", tuple(rows.shape))
        rows = rows.nonzero()[:, 0]
    rows = rows.to(torch.int64) if rows.numel() == 0 else rows
    expect_integers("rows", rows)
    expect(rows.ndim == 1, "rows", "one dimension", tuple(rows.shape))
    if rows.numel():
        expect(
            int(rows.min()) >= 0 and int(rows.max()) < num_rows, "rows", f"numbers from 0 to {num_rows - 1}",
            [int(rows.min()), int(rows.max())],
        )  # fmt: skip

    def one(value: Any, name: str) -> Any:
        _fits(value, name, num_rows)
        if isinstance(value, Pairs):
            expect(
                len(rows.unique()) == len(rows),
                f"rows of {name}",
                "no row twice, since pairs follow rows",
                rows.tolist(),
            )
            return value._take(rows, num_rows)
        if isinstance(value, list):
            return [value[i] for i in rows.tolist()]
        if isinstance(value, Ragged):
            return value.take(rows)
        return value[rows.to(value.device)]

    return _map(batch, one, "batch")


def split(batch: Batch, sizes: int | Sequence[int]) -> list[Batch]:
    """Consecutive parts of a batch; tensors share memory with it, Pairs across parts are left out.

    Args:
        sizes: rows of every part, the last one may have fewer; or the rows of each, summing to the batch.
    """
    num_rows = size(batch)
    if isinstance(sizes, int):
        expect(sizes >= 1, "sizes", "1 or more", sizes)
        sizes = [min(sizes, num_rows - start) for start in range(0, num_rows, sizes)]
    expect(sum(sizes) == num_rows and min(sizes, default=0) >= 0, "sizes", f"parts that sum to {num_rows}", list(sizes))
    bounds = [0, *np.cumsum(sizes).tolist()]

    def part(start: int, stop: int) -> Batch:
        def one(value: Any, name: str) -> Any:
            _fits(value, name, num_rows)
            if isinstance(value, Pairs):
                return value._take(torch.arange(start, stop), num_rows)
            if isinstance(value, Ragged):
                return value.part(start, stop)
            return value[start:stop]

        return _map(batch, one, "batch")

    return [part(start, stop) for start, stop in itertools.pairwise(bounds)]


def by_source(batch: Batch) -> dict[str, Batch]:
    """The rows of every source of a `nearfar.data.Concat`, under its name, in the order they stand in.

    A part is a copy. It lacks the fields that all its rows lack, and `present.FIELD` of those that all its rows have.
    Every name is there, in each process and each part of a batch; a part without rows keeps all fields, so that shapes
    are known.

    Raises:
        ValueError: a batch without sources.
    """
    expect("sources" in batch and "group" in batch, "batch", "fields group and sources, as Concat gives", sorted(batch))
    parts = {}
    for number, name in enumerate(batch["sources"]):
        part = take(batch, batch["group"] == number)
        masks = {field: part[field] for field in part if field.startswith("present.")} if size(part) else {}
        absent = {field.removeprefix("present.") for field, mask in masks.items() if not mask.any()}
        settled = {field for field, mask in masks.items() if mask.all() or not mask.any()}
        parts[name] = {field: value for field, value in part.items() if field not in absent | settled}
    return parts


def gather(batch: Batch) -> Batch:
    """The rows of all processes in rank order, without gradient; the batch itself in one process.

    Every process calls it with the same fields; their numbers of rows may differ. Constants stay this process's.
    """
    if distributed.world() == 1:
        return batch
    num_rows = size(batch)
    offset = distributed.offset(num_rows)

    def one(value: Any, name: str) -> Any:
        _fits(value, name, num_rows)
        if isinstance(value, Pairs):
            return value._gather(offset)
        if isinstance(value, list):
            return _gather_strings(value, batch)
        if isinstance(value, Ragged):
            shapes = None if value.shapes is None else distributed.gather(value.shapes, grad=False)
            values = distributed.gather(value.values, grad=False)
            return Ragged.from_lengths(values, distributed.gather(value.lengths, grad=False), shapes)
        return distributed.gather(value, grad=False)

    return _map(batch, one, "batch")


def _gather_strings(strings: list[str], batch: Batch) -> list[str]:
    """Strings travel as bytes, so that no process unpickles what another sent."""
    device = batch["index"].device if "index" in batch else torch.device("cpu")
    raw = [text.encode() for text in strings]
    flat = np.frombuffer(b"".join(raw), dtype=np.uint8).copy()
    lengths = torch.tensor([len(text) for text in raw], dtype=torch.int64, device=device)
    joined = Ragged.from_lengths(
        distributed.gather(torch.from_numpy(flat).to(device), grad=False), distributed.gather(lengths, grad=False)
    )
    return [bytes(joined[i].tolist()).decode() for i in range(len(joined))]


def _map(value: Any, one: Callable[[Any, str], Any], name: str) -> Any:
    """Applies `one` to everything that has rows; dicts, lists, tuples and dataclasses are walked, constants kept."""
    if isinstance(value, (Tensor, Ragged, Pairs)):
        return one(value, name)
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return one(value, name)
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device)):
        return value
    if isinstance(value, dict):
        # Sorted, so that processes that gather meet in the same order.
        new = {key: _map(value[key], one, f"{name}.{key}") for key in sorted(value)}
        return {key: new[key] for key in value}
    if isinstance(value, (list, tuple)):
        for i, item in enumerate(value if isinstance(value, list) else ()):
            if isinstance(item, (bool, int, float)):
                raise TypeError(f"{name}[{i}]: expected rows in a tensor, received a list of {type(item).__name__}")
        parts = [_map(item, one, f"{name}[{i}]") for i, item in enumerate(value)]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **{key: _map(v, one, f"{name}.{key}") for key, v in _fields(value).items()})
    known = "a tensor, Ragged, Pairs, list of str, constant, or a dict, list, tuple or dataclass of them"
    raise TypeError(f"{name}: expected {known}, received {type(value).__name__}")


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}


def _each_tensor(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, list):
        return value
    return type(value)(*(None if part is None else function(part) for part in _fields(value).values()))


def _fits(value: Any, name: str, num_rows: int) -> None:
    """Raises unless a leaf has one row a sample; pairs have rows of their own."""
    if isinstance(value, Pairs):
        return
    rows = len(value) if not isinstance(value, Tensor) or value.ndim else "a scalar tensor"
    expect(rows == num_rows, name, f"{num_rows} rows", rows)
