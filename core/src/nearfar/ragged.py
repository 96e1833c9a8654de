"""Rows of several lengths, such as photographs of several sizes, in one tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nearfar.checks import expect


@dataclass(frozen=True)
class Ragged:
    """Rows of several lengths in one tensor.

    Args:
        values: the items one after another, along the first dimension.
        offsets: int64 [B + 1]; item i is values[offsets[i]:offsets[i + 1]].
        shapes: int64 [B, k], the shape of every item when `values` is flat, e.g. [C, H, W] of photographs.
    """

    values: Tensor
    offsets: Tensor
    shapes: Tensor | None = None

    def __post_init__(self) -> None:
        expect_integers("offsets", self.offsets)
        expect(self.offsets.ndim == 1 and len(self.offsets) > 0, "offsets", "shape [B + 1]", tuple(self.offsets.shape))
        if self.shapes is not None:
            expect_integers("shapes", self.shapes)
            expect(
                self.shapes.ndim == 2 and len(self.shapes) == len(self), "shapes",
                f"shape [{len(self)}, k]", tuple(self.shapes.shape),
            )  # fmt: skip

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> Tensor:
        """Item i, reshaped by shapes[i] if given; shares memory with `values`."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"item: expected a number below {len(self)}, received {i}")
        i %= len(self)
        item = self.values[int(self.offsets[i]) : int(self.offsets[i + 1])]
        return item if self.shapes is None else item.view(self.shapes[i].tolist())

    @property
    def lengths(self) -> Tensor:
        """int64 [B], entries of `values` that each item takes."""
        return self.offsets.diff()

    @classmethod
    def of(cls, items: Sequence[Tensor], *, rows: bool = False) -> Ragged:
        """Items of several shapes as one; flat with `shapes`, or with rows=True as rows [sum of n_i, ...] without.

        Args:
            items: tensors of one dtype and number of dimensions; with rows=True they agree but for the first one.
        """
        expect(len(items) > 0, "items", "at least one tensor", "none")
        first = items[0]
        for i, item in enumerate(items):
            expect(item.dtype == first.dtype, f"items[{i}]", f"{first.dtype} as items[0]", item.dtype)
            expect(item.ndim == first.ndim > 0, f"items[{i}]", f"{max(first.ndim, 1)} dimensions", item.ndim)
            expect(
                not rows or item.shape[1:] == first.shape[1:], f"items[{i}]",
                f"rows of shape {tuple(first.shape[1:])}", tuple(item.shape[1:]),
            )  # fmt: skip
        plain = rows or first.ndim == 1
        values = torch.cat([item if plain else item.reshape(-1) for item in items])
        lengths = torch.tensor([len(item) if plain else item.numel() for item in items], dtype=torch.int64)
        shapes = None if plain else torch.tensor([list(item.shape) for item in items], device=values.device)
        return cls.from_lengths(values, lengths.to(values.device), shapes)

    @classmethod
    def from_lengths(cls, values: Tensor, lengths: Tensor, shapes: Tensor | None = None) -> Ragged:
        """Items that take `lengths` [B] entries of `values` each."""
        return cls(values, torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]), shapes)

    def take(self, rows: Tensor) -> Ragged:
        """The items of these numbers, in that order; a copy."""
        rows = rows.to(self.offsets.device)
        starts, lengths = self.offsets[:-1][rows], self.lengths[rows]
        # Entry j of the result belongs to the item it falls into, moved there from that item's old start.
        shift = torch.repeat_interleave(starts - (lengths.cumsum(0) - lengths), lengths)
        entries = torch.arange(len(shift), device=shift.device) + shift
        return Ragged.from_lengths(self.values[entries], lengths, None if self.shapes is None else self.shapes[rows])

    def part(self, start: int, stop: int) -> Ragged:
        """Items from `start` to before `stop`; `values` share memory."""
        offsets = self.offsets[start : stop + 1]
        values = self.values[int(offsets[0]) : int(offsets[-1])]
        return Ragged(values, offsets - offsets[0], None if self.shapes is None else self.shapes[start:stop])


def expect_integers(name: str, value: Tensor) -> None:
    """Raises TypeError unless a tensor holds integers."""
    whole = not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
    expect(whole, name, "integers", value.dtype, TypeError)
