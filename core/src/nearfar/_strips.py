"""Any form in memory O(operands + strip): the logits of a few anchors at a time, computed again in the backward.

The fused engine covers products whose pairs are told by ids. What is told by B x N matrices, functions, or another
similarity goes through here: the reference implementation on strips of anchors, each of which keeps nothing but its
inputs.

Legend: B anchors, N candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nearfar import _plain
from nearfar._forms import Form
from nearfar._plain import Part
from nearfar._tiles import spans

ENTRIES = 1 << 19
"""logits of one strip; about a dozen matrices of this size live at once"""


def parts(form: Form, rows: int | None) -> list[Part]:
    """Row losses, and column losses for directions='both'; `rows` anchors at a time."""
    forms = [form, form.transposed()] if form.directions == "both" else [form]
    return [_part(form, rows) for form in forms]


def _part(form: Form, rows: int | None) -> Part:
    width = form.num_columns + sum(x.shape[0] for x in form.extra)
    strips = [_strip(form, start, end) for start, end in spans(form.num_rows, rows or max(1, ENTRIES // width))]
    loss, counted, hit = (torch.cat(column) for column in zip(*strips, strict=True))
    return Part(loss, counted, hit)


def _strip(form: Form, start: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
    def run() -> tuple[Tensor, Tensor, Tensor]:
        part = _plain.row_part(form.rows(start, end))
        assert part.hit is not None
        return part.loss, part.counted, part.hit

    if not torch.is_grad_enabled():
        return run()
    return checkpoint(run, use_reentrant=False, preserve_rng_state=False)  # type: ignore[return-value]
