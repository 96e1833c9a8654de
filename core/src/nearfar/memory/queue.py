"""A queue of former embeddings: several aligned fields, one pointer, everything in buffers.

Letters: K capacity, N pushed rows, D width of a field.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nearfar.memory._fields import Field, Fields


class Queue(Fields):
    """The newest `size` rows of one or more aligned fields, the oldest overwritten first.

        queue = Queue(4096, key=128, label=(0, torch.long))
        loss = info_nce(query, key, queue.view("key")); loss.backward(); optimiser.step()
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
        super().__init__(size, fields, reserved=("pointer", "filled"))
        self.size = size
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
        num = self._check_rows("push", rows)
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

    def _read_counts(self) -> None:
        # Python numbers beside the buffers, so that neither push nor view waits for a device
        self._pointer = int(self.get_buffer("pointer"))
        self._filled = int(self.get_buffer("filled"))

    def extra_repr(self) -> str:
        return f"size={self.size}, filled={self._filled}, fields={list(self.fields)}"
