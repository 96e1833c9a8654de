"""Parts of the tiled engine: which pairs a tile leaves out, running sums of exponentials, and a tile's gradient.

Legend: B anchors, N candidates, r x w one tile.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nearfar._products import by_onednn

MINUS_INF = float("-inf")
BOUND = 60.0
"""largest |logit| whose exponentials may be summed without a shift: exp(+-60) and any realistic sum stay in fp32"""
STRIP = 1 << 22
"""entries of one strip of rows (16 MB in fp32)"""

CACHED = 1 << 17
"""numbers that a core's cache keeps between two sweeps"""


def edge(device: torch.device) -> int:
    """Side of a tile: on the CPU near a core's cache, elsewhere enough to fill the device."""
    return 768 if device.type == "cpu" else 4096


def block(a: Tensor, tile: int | None = None) -> tuple[int, int]:
    """Rows and columns of a tile of a grid: square, but wide where the product packs its columns."""
    if tile:
        return tile, tile
    side = edge(a.device)
    return (1024, 1536) if by_onednn(a) else (side, side)


def rows_at_once(tile: Tensor) -> int:
    """Rows of a tile whose entries are worked on together: on the CPU what stays in a core's cache."""
    return max(1, CACHED // max(1, tile.shape[1])) if tile.device.type == "cpu" else max(1, len(tile))


def spans(num: int, size: int) -> Iterator[tuple[int, int]]:
    """Consecutive ranges of at most `size`."""
    for start in range(0, num, size):
        yield start, min(start + size, num)


def no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Sums of exponentials need full precision whatever the surrounding autocast wants."""
    return torch.autocast(device.type, enabled=False)


def _ranges(ids: Tensor, size: int) -> list[tuple[int, int]]:
    """Smallest and largest id of every block; one transfer to the host."""
    lows = torch.stack([part.amin() for part in ids.split(size)])
    highs = torch.stack([part.amax() for part in ids.split(size)])
    return list(zip(lows.tolist(), highs.tolist(), strict=True))


@dataclass
class Mask:
    """Pairs (i, j) that are left out, told by integers per row and column instead of a B x N matrix.

    Args:
        exclude: index tensors [B]; anchor i never meets candidate exclude[i] (-1: none).
        same: pairs of id tensors ([B], [N]); only equal ids meet.
        differ: pairs of id tensors ([B], [N]); equal ids never meet.
    """

    exclude: tuple[Tensor, ...] = ()
    same: tuple[tuple[Tensor, Tensor], ...] = ()
    differ: tuple[tuple[Tensor, Tensor], ...] = ()
    _cache: dict[tuple[int, int], list[tuple[int, int]]] = field(default_factory=dict)
    _ascending: dict[int, bool] = field(default_factory=dict)

    def _range(self, ids: Tensor, size: int, start: int) -> tuple[int, int]:
        key = (id(ids), size)
        if key not in self._cache:
            self._cache[key] = _ranges(ids, size)
        return self._cache[key][start // size]

    def hide_(self, logits: Tensor, rows: tuple[int, int], columns: tuple[int, int], size: tuple[int, int]) -> bool:
        """Sets left-out entries of a tile to -inf; False when nothing of the tile remains.

        `size` is the grid's pitch, so that whole blocks are judged by their smallest and largest id.
        """
        (i0, i1), (j0, j1) = rows, columns
        for x, y in self.same:
            low, high = self._range(x, size[0], i0)
            first, last = self._range(y, size[1], j0)
            if low > last or first > high:
                return False
            if not low == high == first == last:
                logits.masked_fill_(x[i0:i1, None] != y[None, j0:j1], MINUS_INF)
        for x, y in self.differ:
            low, high = self._range(x, size[0], i0)
            first, last = self._range(y, size[1], j0)
            if low <= last and first <= high:
                logits.masked_fill_(x[i0:i1, None] == y[None, j0:j1], MINUS_INF)
        for index in self.exclude:
            low, high = self._range(index, size[0], i0)
            if low < j1 and high >= j0:
                _hide_index(logits, index[i0:i1] - j0)
        return True

    def hide_all_(self, logits: Tensor, rows: tuple[int, int], columns: tuple[int, int]) -> None:
        """The same for a strip of any extent."""
        (i0, i1), (j0, j1) = rows, columns
        if not logits.numel():
            return
        for x, y in self.same:
            logits.masked_fill_(x[i0:i1, None] != y[None, j0:j1], MINUS_INF)
        for x, y in self.differ:
            logits.masked_fill_(x[i0:i1, None] == y[None, j0:j1], MINUS_INF)
        for index in self.exclude:
            _hide_index(logits, index[i0:i1] - j0)

    def reach(self, rows: tuple[int, int], num: int) -> tuple[int, int]:
        """Columns from the first to the last that rows can meet, of `num`; narrow where columns are sorted by group."""
        start, end = 0, num
        for x, y in self.same:
            if id(y) not in self._ascending:
                self._ascending[id(y)] = bool((y[1:] >= y[:-1]).all())
            if self._ascending[id(y)]:
                ends = torch.stack(torch.aminmax(x[rows[0] : rows[1]]))
                start = max(start, int(torch.searchsorted(y, ends[0])))
                end = min(end, int(torch.searchsorted(y, ends[1], right=True)))
        return min(start, end), end

    def skips(self, rows: tuple[int, int], columns: tuple[int, int], size: tuple[int, int]) -> bool:
        """Whether a tile has no pair at all, known before its product is computed."""
        for x, y in self.same:
            low, high = self._range(x, size[0], rows[0])
            first, last = self._range(y, size[1], columns[0])
            if low > last or first > high:
                return True
        return False


def _hide_index(logits: Tensor, local: Tensor) -> None:
    """Sets entry local[i] of row i to -inf, where it lies in the tile."""
    width = logits.shape[1]
    inside = (local >= 0) & (local < width)
    local = local.clamp(0, width - 1).unsqueeze(1)
    kept = logits.gather(1, local)
    logits.scatter_(1, local, kept.masked_fill_(inside.unsqueeze(1), MINUS_INF))


class Buffer:
    """Memory of one tile, taken when first used and used for every tile; a view is contiguous."""

    def __init__(self, entries: int, like: Tensor) -> None:
        self._entries, self._like = entries, like

    @functools.cached_property
    def _flat(self) -> Tensor:
        return self._like.new_empty(self._entries)

    def view(self, rows: int, columns: int) -> Tensor:
        return self._flat[: rows * columns].view(rows, columns)


class Running:
    """log sum exp over tiles: plain sums for bounded logits, else an exact running maximum beside rescaled sums."""

    def __init__(self, num: int, like: Tensor, bounded: bool) -> None:
        self.total = like.new_zeros(num)
        self.peak = None if bounded else like.new_full((num,), MINUS_INF)

    def add(self, tile: Tensor, span: tuple[int, int], dim: int, scratch: Buffer | None) -> None:
        """Adds a tile along `dim`: exponentials when bounded, else logits."""
        total = self.total[span[0] : span[1]]
        if self.peak is None:
            total += tile.sum(dim)
            return
        peak = self.peak[span[0] : span[1]]
        new = torch.maximum(peak, tile.amax(dim))
        shift = new.masked_fill(new == MINUS_INF, 0.0)
        out = scratch.view(*tile.shape)  # type: ignore[union-attr]
        torch.sub(tile, shift.unsqueeze(dim), out=out).exp_()
        total.mul_(torch.exp(peak - shift)).add_(out.sum(dim))
        peak.copy_(new)

    def result(self) -> Tensor:
        """The log sums; -inf where nothing was added."""
        return self.total.log() if self.peak is None else self.total.log().add_(self.peak)


class Share:
    """What one anchor's upstream gradient g makes of a tile: g * softmax, from the known log sums."""

    def __init__(self, log_sum: Tensor, grad: Tensor, bounded: bool) -> None:
        empty = log_sum == MINUS_INF
        self.log_sum = log_sum.masked_fill(empty, 0.0)
        self.grad = grad.masked_fill(empty, 0.0)
        self.factor = self.grad * torch.exp(-self.log_sum) if bounded else None


def gradient_(
    logits: Tensor, rows: tuple[int, int], columns: tuple[int, int],
    row_share: Share, column_share: Share | None, scratch: Buffer,
) -> Tensor:  # fmt: skip
    """The gradient of sum(g * log sum exp) with respect to a tile's logits, in the tile's own memory where possible."""
    (i0, i1), (j0, j1) = rows, columns
    if row_share.factor is not None:
        if column_share is None:
            return logits.exp_().mul_(row_share.factor[i0:i1, None])
        of_columns = column_share.factor[None, j0:j1]  # type: ignore[index]
        for k0, k1 in spans(i1 - i0, rows_at_once(logits)):
            both = scratch.view(k1 - k0, j1 - j0)
            torch.add(row_share.factor[i0 + k0 : i0 + k1, None], of_columns, out=both)
            logits[k0:k1].exp_().mul_(both)
        return logits
    out = scratch.view(*logits.shape)
    torch.sub(logits, row_share.log_sum[i0:i1, None], out=out).exp_().mul_(row_share.grad[i0:i1, None])
    if column_share is not None:
        logits.sub_(column_share.log_sum[None, j0:j1]).exp_().mul_(column_share.grad[None, j0:j1])
        out.add_(logits)
    return out
