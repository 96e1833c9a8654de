"""A queue of former embeddings: several aligned fields, one pointer, everything in buffers.

Letters: K capacity, N pushed rows, D width of a field.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nearfar.checks import expect

Field = int | tuple[int, torch.dtype]


class Queue(nn.Module):
    """The newest `size` rows of one or more aligned fields, the oldest overwritten first.

        queue = Queue(4096, key=128, label=(0, torch.long))
        loss = info_nce(query, key, extra=(queue.view("key"),)); loss.backward(); optimiser.step()
        queue.push(key=key, label=label)

    Args:
        size: capacity K in rows.
        **fields: name=D or name=(D, dtype), float32 unless named; D = 0 is a field of scalars, for ids and labels.

    Raises:
        ValueError: capacity below one, no field, a negative width, or a name that a module already uses.

    Notes:
        Rows are written in place and `view` copies nothing, so push after the backward of a loss that read the queue:
        autograd notices an earlier push and refuses the backward. Rows are stored without gradient. In several
        processes push gathered rows (`nearfar.distributed.gather(key, grad=False)`): the queues stay equal and no
        broadcast is needed. Buffers, also in the state dict: one a field, `pointer` (next row to write), `filled`.
    """

    def __init__(self, size: int, **fields: Field) -> None:
        super().__init__()
        expect(size >= 1, "size", "1 or more rows", size)
        expect(len(fields) >= 1, "fields", "at least one, as name=width", "none")
        self.size = size
        self.fields = tuple(fields)
        for name, field in fields.items():
            width, dtype = (field, torch.float32) if isinstance(field, int) else field
            free = not hasattr(self, name) and not name.startswith("_") and name not in ("pointer", "filled")
            expect(free, "fields", "names that a module does not use itself", name)
            expect(width >= 0, f"field {name!r}", "a width of 0 or more", width)
            self.register_buffer(name, torch.zeros(size, *([width] if width else []), dtype=dtype))
        for name in ("pointer", "filled"):
            self.register_buffer(name, torch.zeros((), dtype=torch.long))
        self._read_counts()

    def __len__(self) -> int:
        return self._filled

    def view(self, name: str) -> Tensor:
        """The filled rows [len(queue), D] (or [len(queue)]) of a field, in storage order; a slice, not a copy."""
        self._expect_fields({name}, {name})
        return self.get_buffer(name)[: self._filled]

    @torch.no_grad()
    def push(self, **rows: Tensor) -> None:
        """Writes N rows of every field; of more than K rows the last K stay.

        Args:
            **rows: one tensor [N, D] (or [N] for scalars) a field, of the field's dtype.

        Raises:
            ValueError: missing or unknown fields, unequal N, another width.
            TypeError: another dtype.
        """
        self._expect_fields(set(rows), set(self.fields))
        num = len(rows[self.fields[0]]) if rows[self.fields[0]].ndim else 0
        for name, new in rows.items():
            stored = self.get_buffer(name)
            expect(new.shape == (num, *stored.shape[1:]), f"push {name}",
                   f"shape {(num, *stored.shape[1:])}, N of {self.fields[0]!r}", tuple(new.shape))  # fmt: skip
            expect(new.dtype == stored.dtype, f"push {name}", str(stored.dtype), new.dtype, TypeError)
        kept = min(num, self.size)
        start = (self._pointer + num - kept) % self.size
        first = min(kept, self.size - start)
        for name, new in rows.items():
            stored, new = self.get_buffer(name), new[num - kept :]
            stored[start : start + first] = new[:first]
            if kept > first:
                stored[: kept - first] = new[first:]
        self._pointer = (start + kept) % self.size
        self._filled = min(self.size, self._filled + num)
        self.get_buffer("pointer").fill_(self._pointer)
        self.get_buffer("filled").fill_(self._filled)

    def clear(self) -> None:
        """Forgets every row."""
        self._pointer = self._filled = 0
        self.get_buffer("pointer").zero_()
        self.get_buffer("filled").zero_()

    def _expect_fields(self, received: set[str], expected: set[str]) -> None:
        known = set(self.fields)
        expect(received == expected and received <= known, "queue fields", str(sorted(self.fields)), sorted(received))

    def _read_counts(self) -> None:
        # Python numbers beside the buffers, so that neither push nor view waits for a device
        self._pointer = int(self.get_buffer("pointer"))
        self._filled = int(self.get_buffer("filled"))

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        super()._load_from_state_dict(*args, **kwargs)  # type: ignore[arg-type]
        self._read_counts()

    def extra_repr(self) -> str:
        return f"size={self.size}, filled={self._filled}, fields={list(self.fields)}"
