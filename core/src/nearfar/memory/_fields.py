"""Aligned fields as buffers of a module, and the checks of rows that are written to them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nearfar.checks import expect

Field = int | tuple[int, torch.dtype]


class Fields(nn.Module):
    """A module with one buffer [size, D] (or [size]) a field, and further buffers for its counts.

    Args:
        size: rows.
        fields: name=D or name=(D, dtype).
        reserved: names that a field may not have.
    """

    def __init__(self, size: int, fields: Mapping[str, Field], reserved: tuple[str, ...]) -> None:
        super().__init__()
        expect(size >= 1, "size", "1 or more rows", size)
        expect(len(fields) >= 1, "fields", "at least one, as name=width", "none")
        self.fields = tuple(fields)
        for name, field in fields.items():
            width, dtype = (field, torch.float32) if isinstance(field, int) else field
            free = not hasattr(self, name) and not name.startswith("_") and name not in reserved
            expect(free, "fields", "names that a module does not use itself", name)
            expect(width >= 0, f"field {name!r}", "a width of 0 or more", width)
            self.register_buffer(name, torch.zeros(size, *([width] if width else []), dtype=dtype))

    def _check_rows(self, verb: str, rows: Mapping[str, Tensor]) -> int:
        """The number of rows N; complains when fields are missing or have another shape or dtype."""
        self._expect_fields(set(rows), set(self.fields))
        num = len(rows[self.fields[0]]) if rows[self.fields[0]].ndim else 0
        for name, new in rows.items():
            stored = self.get_buffer(name)
            expect(new.shape == (num, *stored.shape[1:]), f"{verb} {name}",
                   f"shape {(num, *stored.shape[1:])}, N of {self.fields[0]!r}", tuple(new.shape))  # fmt: skip
            expect(new.dtype == stored.dtype, f"{verb} {name}", str(stored.dtype), new.dtype, TypeError)
        return num

    def _expect_fields(self, received: set[str], expected: set[str]) -> None:
        known = set(self.fields)
        kind = type(self).__name__.lower()
        expect(received == expected and received <= known, f"{kind} fields", str(sorted(self.fields)), sorted(received))

    def _read_counts(self) -> None:
        """Takes up counts from the buffers."""

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        super()._load_from_state_dict(*args, **kwargs)  # type: ignore[arg-type]
        self._read_counts()


def check_index(name: str, index: Tensor, high: int, num: int | None = None) -> None:
    """Complains unless `index` holds integers [num] from 0 to high - 1; waits for the device once."""
    whole = not (index.is_floating_point() or index.is_complex() or index.dtype == torch.bool)
    expect(whole, name, "integers", index.dtype, TypeError)
    shape = "shape [N]" if num is None else f"shape {(num,)}"
    expect(index.ndim == 1 and num in (None, len(index)), name, shape, tuple(index.shape))
    if len(index):
        low, top = (int(value) for value in torch.aminmax(index))
        expect(low >= 0 and top < high, name, f"values from 0 to {high - 1}", f"{low} to {top}")
