"""A bank with one row for every sample of the data.

Letters: M samples, N written or read rows, D width of a field.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from nearfar.checks import expect
from nearfar.memory._fields import Field, Fields, check_index


class Bank(Fields):
    """What was last known of every sample, by its index.

        bank = Bank(num_samples, feature=128, label=(0, torch.long))
        bank.write(batch["index"], momentum=0.5, normalize=True, feature=key, label=label)
        others = bank.read("feature", neighbours)

    Args:
        num_samples: M; a sample's index is from 0 to M - 1.
        **fields: name=D or name=(D, dtype), float32 unless named; D = 0 is a field of scalars.

    Raises:
        ValueError: no sample, or fields as `Queue` refuses them.

    Notes:
        Rows are stored without gradient; write after the backward of a loss that read a view. In several processes
        write gathered rows. Buffers, also in the state dict: one a field [M, D], and `seen` [M], whether a row was ever
        written.
    """

    seen: Tensor

    def __init__(self, num_samples: int, **fields: Field) -> None:
        expect(num_samples >= 1, "num_samples", "1 or more", num_samples)
        super().__init__(num_samples, fields, reserved=("index", "momentum", "normalize", "seen"))
        self.num_samples = num_samples
        self.register_buffer("seen", torch.zeros(num_samples, dtype=torch.bool))

    def view(self, name: str) -> Tensor:
        """All rows [M, D] of a field, those never written zero (see `seen`); the buffer itself, not a copy."""
        self._expect_fields({name}, {name})
        return self.get_buffer(name)

    def read(self, name: str, index: Tensor) -> Tensor:
        """Rows [..., D] of the samples with these indices, of any shape; a copy.

        Raises:
            ValueError: an index outside the bank.
        """
        self._expect_fields({name}, {name})
        check_index("index", index.flatten(), self.num_samples)
        return self.get_buffer(name)[index]

    @torch.no_grad()
    def write(self, index: Tensor, *, momentum: float = 0.0, normalize: bool = False, **rows: Tensor) -> None:
        """Stores rows of N samples; of several rows of one sample the last counts.

        row <- momentum * row + (1 - momentum) * new, for floating fields of samples seen before; otherwise row <- new.

        Args:
            index: integers [N].
            momentum: share of the old row, in [0, 1).
            normalize: floating fields with a width are scaled to unit length afterwards.
            **rows: one tensor [N, D] (or [N] for scalars) a field, of the field's dtype.

        Raises:
            ValueError: an index outside the bank; missing or unknown fields, unequal N, another width.
            TypeError: another dtype.
        """
        expect(0 <= momentum < 1, "momentum", "a number in [0, 1)", momentum)
        num = self._check_rows("write", rows)
        check_index("index", index, self.num_samples, num)
        if num == 0:
            return
        ordered, order = index.sort(stable=True)
        last = torch.searchsorted(ordered, ordered, right=True) - 1
        # All rows of a sample write its last one, so that no order of writes matters.
        source = order[last]
        known = self.seen[ordered]
        for name, new in rows.items():
            stored, new = self.get_buffer(name), new[source]
            if new.is_floating_point():
                if momentum:
                    old = stored[ordered]
                    mixed = old * momentum + new * (1 - momentum)
                    new = torch.where(known.view(-1, *[1] * (new.ndim - 1)), mixed, new)
                if normalize and new.ndim > 1:
                    new = F.normalize(new, dim=1)
            stored[ordered] = new
        self.seen[ordered] = True

    def snapshot(self) -> dict[str, Tensor]:
        """A copy of every field and of `seen`, which later writes do not change."""
        return {name: self.get_buffer(name).clone() for name in (*self.fields, "seen")}

    def clear(self) -> None:
        """Forgets every row."""
        for name in (*self.fields, "seen"):
            self.get_buffer(name).zero_()

    def extra_repr(self) -> str:
        return f"num_samples={self.num_samples}, fields={list(self.fields)}"
