"""Any form in memory O(operands + strip): the logits of a few anchors at a time, computed again in the backward.

The fused engine covers products whose pairs are told by ids. What is told by B x N matrices, functions, or another
similarity goes through here: the reference implementation on strips of anchors, each of which keeps nothing but its
inputs.

Legend: B anchors, N candidates.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nearfar import _plain
from nearfar._forms import Form
from nearfar._plain import Part
from nearfar._tiles import spans
from nearfar.checks import expect

ENTRIES = 1 << 19
"""logits of one strip; about a dozen matrices of this size live at once"""


Strip = Callable[[Tensor], tuple[Tensor, ...]]
"""gives tensors of one value an anchor for the numbers [r] of r anchors that stand side by side"""


def in_strips(strip: Strip, num: int, width: int, rows: int | None, device: torch.device) -> tuple[Tensor, ...]:
    """`strip` of all `num` anchors, each of which meets `width` candidates, with the parts put together.

    Args:
        rows: anchors at a time; None chooses, 0 takes all at once and keeps their matrices.
    """
    expect(rows is None or rows >= 0, "tile", "None or 0 or more", rows)
    numbers = torch.arange(num, device=device)
    if rows == 0 or (rows is None and num * width <= ENTRIES >> 3):
        return strip(numbers)
    size = rows or max(1, ENTRIES // max(1, width))
    parts = [_again(strip, numbers[start:end]) for start, end in spans(num, size)]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def parts(form: Form, rows: int | None) -> list[Part]:
    """Row losses, and column losses for directions='both'; `rows` anchors at a time."""
    forms = [form, form.transposed()] if form.directions == "both" else [form]
    return [_part(form, rows) for form in forms]


def _part(form: Form, rows: int | None) -> Part:
    def strip(numbers: Tensor) -> tuple[Tensor, ...]:
        part = _plain.row_part(form.rows(int(numbers[0]), int(numbers[-1]) + 1))
        assert part.hit is not None
        return part.loss, part.counted, part.hit

    width = form.num_columns + sum(x.shape[0] for x in form.extra)
    return Part(*in_strips(strip, form.num_rows, width, rows, form.like.device))


def _again(strip: Strip, numbers: Tensor) -> tuple[Tensor, ...]:
    if not torch.is_grad_enabled():
        return strip(numbers)
    return checkpoint(strip, numbers, use_reentrant=False, preserve_rng_state=False)  # type: ignore[return-value]
