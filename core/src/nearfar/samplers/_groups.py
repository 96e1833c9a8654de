"""Members of groups, drawn so that each comes once before any comes again.

Legend: N positions, G groups, S rows drawn.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from nearfar.checks import expect
from nearfar.samplers.base import check_ids


class Groups:
    """Positions sorted by group.

    Args:
        name: what the ids are called in complaints.
        ids: integers [N]; a position with a negative id is in no group.

    Attributes:
        values: ids of the groups that have members, ascending [G].
        counts: their numbers of members [G].
        index: int64 [N], each position's place in `values`, -1 for none.
    """

    def __init__(self, name: str, ids: ArrayLike) -> None:
        array = check_ids(name, ids)
        kept = np.flatnonzero(array >= 0)
        expect(len(kept) > 0, name, "at least one id of 0 or more", f"{len(array)} negative ones")
        self.values, inverse = np.unique(array[kept], return_inverse=True)
        self.counts = np.bincount(inverse)
        self.index = np.full(len(array), -1, dtype=np.int64)
        self.index[kept] = inverse
        self.members = kept[np.argsort(inverse, kind="stable")]
        self.starts = np.cumsum(self.counts) - self.counts

    def __len__(self) -> int:
        return len(self.values)

    def draw(self, rng: np.random.Generator, takes: np.ndarray, size: int, *, short: bool = False) -> np.ndarray:
        """Rows of `size` members, `takes[g]` of them from group g; int64 [S, size], by group.

        A group is gone through in one random order after another, each cut into rows. Members that fill no row are
        left out of that pass; with `short` they make a row that ends in -1. A group with fewer members than a row
        repeats them in it (without `short`).
        """
        per_pass = -(-self.counts // size) if short else np.maximum(self.counts // size, 1)
        passes = -(-takes // per_pass)
        group = np.repeat(np.arange(len(self)), passes)  # of every pass
        length = self.counts[group]
        first = np.cumsum(length) - length  # entry at which a pass begins
        entry_pass, within = np.repeat(np.arange(len(group)), length), _within(length)
        shuffled = np.lexsort((rng.random(len(within)), entry_pass))
        entries = self.members[(self.starts[group][entry_pass] + within)[shuffled]]
        rows = np.minimum(per_pass[group], takes[group] - _within(passes) * per_pass[group])  # of every pass
        row_pass = np.repeat(np.arange(len(group)), rows)
        column = _within(rows)[:, None] * size + np.arange(size)
        end = length[row_pass][:, None]
        drawn = entries[first[row_pass][:, None] + column % end]
        return np.where(column < end, drawn, -1) if short else drawn

    def fill(self, rng: np.random.Generator, group: np.ndarray, size: int) -> np.ndarray:
        """`size` members of the group named at every place [S]; int64 [S, size]."""
        rows = np.empty((len(group), size), dtype=np.int64)
        rows[np.argsort(group, kind="stable")] = self.draw(rng, np.bincount(group, minlength=len(self)), size)
        return rows


def _within(lengths: np.ndarray) -> np.ndarray:
    """0, 1, ... lengths[0] - 1, 0, 1, ... lengths[1] - 1, and so on."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)


def apportion(total: int, weights: np.ndarray) -> np.ndarray:
    """`total` in whole numbers in proportion to the weights, those with the largest remainders rounded up."""
    exact = total * weights / weights.sum()
    counts = np.floor(exact).astype(np.int64)
    counts[np.argsort(counts - exact, kind="stable")[: total - counts.sum()]] += 1
    return counts


def interleave(counts: np.ndarray) -> np.ndarray:
    """Group numbers, counts[g] times g, every group spread evenly over the whole."""
    times = (_within(counts) + 0.5) / np.repeat(counts, counts)
    return np.repeat(np.arange(len(counts)), counts)[np.argsort(times, kind="stable")]
