"""Word pieces learnt from a corpus, the same for the same sentences.

The trainer of the library `tokenizers` breaks ties and numbers its pieces by hash maps seeded anew each time, so that
two runs with one seed would not be one run. Its models read what is learnt here.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import pairwise

INNER = "##"
"""before a piece that does not begin a word"""


def learn_pieces(words: Iterable[str], size: int, special: Iterable[str] = ()) -> list[str]:
    """A vocabulary of pieces: special tokens, single characters, and the most frequent joins of neighbours (BPE).

    Args:
        words: every word of the corpus, as often as it stands there.
        size: pieces at most; single characters are kept beyond it.
        special: tokens that come first.

    Returns:
        Pieces in the order of their numbers. Joins by falling count, ties by the pieces' names.
    """
    counts = Counter(words)
    split = [[word[0], *(INNER + letter for letter in word[1:])] for word in counts]
    weight = list(counts.values())
    pieces = dict.fromkeys(special)
    pieces |= dict.fromkeys(sorted({piece for parts in split for piece in parts}))
    pairs: Counter[tuple[str, str]] = Counter()
    where: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
    for number, parts in enumerate(split):
        for pair in pairwise(parts):
            pairs[pair] += weight[number]
            where[pair].add(number)
    queue = [(-count, pair) for pair, count in pairs.items()]
    heapq.heapify(queue)
    while queue and len(pieces) < size:
        count, pair = heapq.heappop(queue)
        if -count != pairs[pair]:  # it has changed since it was queued, and is queued again below
            continue
        if count == 0:
            break
        joined = pair[0] + pair[1].removeprefix(INNER)
        pieces.setdefault(joined)
        changed: set[tuple[str, str]] = set()
        for number in sorted(where.pop(pair)):
            before = split[number]
            after = _join(before, pair, joined)
            split[number] = after
            for sign, parts in ((-1, before), (1, after)):
                for other in pairwise(parts):
                    pairs[other] += sign * weight[number]
                    changed.add(other)
                    if sign > 0:
                        where[other].add(number)
        for other in changed:
            if pairs[other] > 0 and other != pair:
                heapq.heappush(queue, (-pairs[other], other))
    return list(pieces)


def _join(parts: list[str], pair: tuple[str, str], joined: str) -> list[str]:
    """The parts of a word with every such pair of neighbours made one."""
    out, i = [], 0
    while i < len(parts):
        if parts[i : i + 2] == list(pair):
            out.append(joined)
            i += 2
        else:
            out.append(parts[i])
            i += 1
    return out
