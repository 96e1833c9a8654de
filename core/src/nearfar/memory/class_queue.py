"""A queue for each class, domain or pair of both, in one block of memory.

Letters: C classes, K slots of all classes together, N pushed rows, D width of a field.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nearfar.checks import expect
from nearfar.memory._fields import Field, Fields, check_index


def class_slots(counts: Sequence[int], total: int, least: int = 1) -> list[int]:
    """Slots of every class: `least` each, and the rest in proportion to the classes' samples.

    s_c = least + ceil(R n_1..c / n) - ceil(R n_1..(c-1) / n),  R = total - C least

    Args:
        counts: n_c, samples of each class.
        total: slots of all.
        least: 1 or more.

    Raises:
        ValueError: fewer slots in all than `least` for every class; no samples.
    """
    expect(least >= 1, "least", "1 or more", least)
    expect(len(counts) * least <= total, "total", f"{len(counts)} x {least} slots or more", total)
    num, rest = sum(counts), total - len(counts) * least
    expect(num > 0 and min(counts) >= 0, "counts", "numbers of samples, not all 0", list(counts))
    ends = [-(-rest * sum(counts[: c + 1]) // num) for c in range(len(counts))]
    return [least + end - start for start, end in zip([0, *ends], ends, strict=False)]


class ClassQueue(Fields):
    """The newest rows of every class, in a ring of its own.

        queue = ClassQueue(num_classes=19, size=200, feature=256)
        queue.push(label, feature=mean)
        stored = queue.labels()    # -1 for empty slots, which `group` leaves out of every pair
        group = torch.zeros_like(target), (stored < 0).long()
        loss = contrast(anchor, queue.flat("feature"), labels=(target, stored), group=group)

    Args:
        num_classes: C; for classes of several domains number them domain * num_classes + class.
        size: slots of every class, or C numbers of slots.
        **fields: name=D or name=(D, dtype), float32 unless named; D = 0 is a field of scalars. The label needs no
            field.

    Raises:
        ValueError: no class, a class without a slot, or fields as `Queue` refuses them.

    Notes:
        A push costs one sort of N labels on the CPU and one indexed write a field; it waits for the device once, to
        read the labels. Rows are stored without gradient; push after the backward of a loss that read a view. In
        several processes push gathered rows and labels. Buffers, also in the state dict: one a field [K, D], classes
        one after another, `slots` [C], `pointer` [C] (next slot in the class) and `filled` [C]; a
        state with other slots is refused.
    """

    def __init__(self, num_classes: int, size: int | Sequence[int], **fields: Field) -> None:
        expect(num_classes >= 1, "num_classes", "1 or more", num_classes)
        sizes = [size] * num_classes if isinstance(size, int) else [int(n) for n in size]
        expect(len(sizes) == num_classes and min(sizes) >= 1, "size", f"1 or more slots, or {num_classes} such numbers",
               size)  # fmt: skip
        super().__init__(sum(sizes), fields, reserved=("label", "slots", "pointer", "filled"))
        self.num_classes = num_classes
        self._sizes = torch.tensor(sizes)
        self._starts = self._sizes.cumsum(0) - self._sizes
        classes = torch.arange(num_classes).repeat_interleave(self._sizes)
        self.register_buffer("slots", self._sizes.clone())
        for name in ("pointer", "filled"):
            self.register_buffer(name, torch.zeros(num_classes, dtype=torch.long))
        # Where the buffers are, for labels and draws.
        self.register_buffer("_start", self._starts.clone(), persistent=False)
        self.register_buffer("_class", classes, persistent=False)
        self.register_buffer("_place", torch.arange(len(classes)) - self._starts[classes], persistent=False)
        self._read_counts()

    def __len__(self) -> int:
        return int(self._filled.sum())

    def view(self, name: str, label: int) -> Tensor:
        """The filled rows [n, D] of one class, in storage order; a slice, not a copy."""
        self._expect_fields({name}, {name})
        expect(0 <= label < self.num_classes, "label", f"a class from 0 to {self.num_classes - 1}", label)
        start = int(self._starts[label])
        return self.get_buffer(name)[start : start + int(self._filled[label])]

    def flat(self, name: str) -> Tensor:
        """All slots [K, D] of a field, classes one after another; the buffer itself, not a copy. See `labels`."""
        self._expect_fields({name}, {name})
        return self.get_buffer(name)

    def labels(self) -> Tensor:
        """The class of every slot, int64 [K]; -1 where nothing was stored yet."""
        classes = self.get_buffer("_class")
        return torch.where(self.get_buffer("_place") < self.get_buffer("filled")[classes], classes, -1)

    @torch.no_grad()
    def push(self, label: Tensor, **rows: Tensor) -> None:
        """Writes N rows, each to the ring of its class; of more rows than a class has slots the last stay.

        Args:
            label: integers [N], from 0 to C - 1.
            **rows: one tensor [N, D] (or [N] for scalars) a field, of the field's dtype.

        Raises:
            ValueError: labels outside the classes; missing or unknown fields, unequal N, another width.
            TypeError: another dtype.
        """
        num = self._check_rows("push", rows)
        label = label.detach().cpu()
        check_index("label", label, self.num_classes, num)
        if num == 0:
            return
        counts = torch.bincount(label, minlength=self.num_classes)
        order = label.argsort(stable=True)
        rank = torch.empty_like(order)  # of a row among those of its class
        rank[order] = torch.arange(num) - (counts.cumsum(0) - counts)[label[order]]
        size = self._sizes[label]
        kept = (rank >= counts[label] - size).nonzero().flatten()
        slot = (self._starts[label] + (self._pointer[label] + rank) % size)[kept]
        for name, new in rows.items():
            stored = self.get_buffer(name)
            stored[slot.to(stored.device)] = new[kept.to(new.device)]
        self._pointer = (self._pointer + counts) % self._sizes
        self._filled = torch.minimum(self._filled + counts, self._sizes)
        self.get_buffer("pointer").copy_(self._pointer)
        self.get_buffer("filled").copy_(self._filled)

    def sample(self, num: int, generator: torch.Generator | None = None) -> Tensor:
        """`num` different slots of every class at random.

        Args:
            num: at most the slots of the smallest class.
            generator: of the draws, on the device of the buffers.

        Returns:
            Rows of `flat`, int64 [C, num]; -1 at the end of a class that holds fewer.
        """
        least = int(self._sizes.min())
        expect(1 <= num <= least, "num", f"a number from 1 to {least}", num)
        filled, start, classes = self.get_buffer("filled"), self.get_buffer("_start"), self.get_buffer("_class")
        draw = torch.rand(len(classes), generator=generator, device=start.device, dtype=torch.float64)
        empty = self.get_buffer("_place") >= filled[classes]
        order = (draw + classes * 2 + empty).argsort()  # by class, empty slots last, at random
        place = torch.arange(num, device=start.device)
        return torch.where(place < filled[:, None], order[start[:, None] + place], -1)

    def draw(self, label: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One slot at random for every label given, independently.

        Args:
            label: classes of any shape, from 0 to C - 1.
            generator: of the draws, on the device of the buffers.

        Returns:
            Rows of `flat`, int64 of the shape of `label`; -1 for a class that holds nothing.
        """
        check_index("label", label.flatten(), self.num_classes)
        filled = self.get_buffer("filled")[label]
        draw = torch.rand(label.shape, generator=generator, device=filled.device, dtype=torch.float64)
        return torch.where(filled > 0, self.get_buffer("_start")[label] + (draw * filled).long(), -1)

    def clear(self) -> None:
        """Forgets every row."""
        self.get_buffer("pointer").zero_()
        self.get_buffer("filled").zero_()
        self._read_counts()

    def _read_counts(self) -> None:
        slots = self.get_buffer("slots").cpu()
        expect(torch.equal(slots, self._sizes), "state: slots", str(self._sizes.tolist()), slots.tolist())
        # Beside the buffers on the CPU, so that views do not wait for a device
        self._pointer, self._filled = (self.get_buffer(name).cpu().clone() for name in ("pointer", "filled"))

    def extra_repr(self) -> str:
        slots = int(self._sizes.sum())
        return f"num_classes={self.num_classes}, slots={slots}, filled={len(self)}, fields={list(self.fields)}"
