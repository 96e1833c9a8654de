"""Changes of a sentence's words, or of its tokens: deletion, deletion of spans, reordering, substitution.

Each takes the words of a sentence and numpy's generator, which alone decides, and returns new ones. Deleted words leave
one mark a run behind.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from nearfar.checks import expect
from nearfar_sentences.config import AugmentConfig

if TYPE_CHECKING:
    from torch import Tensor

    from nearfar.rng import Rng

T = TypeVar("T")
Table = Mapping[str, Sequence[str]] | Callable[[str], Sequence[str]]
"""substitutes of a lower-case word, none for one that is not known"""
DELETE = "[DEL]"


def delete_words(words: Sequence[T], ratio: float, rng: np.random.Generator, *, mark: T = DELETE) -> list[T]:
    """Words without a share of them, drawn evenly; each run of deleted ones becomes one mark.

    Args:
        words: of one sentence, or its tokens' ids.
        ratio: round(ratio n) of n words go; one at least stays.
        rng: what draws.
        mark: stands for a run of deleted words.

    Raises:
        ValueError: no words, or a ratio outside [0, 1].
    """
    num = _expect(words)
    expect(0 <= ratio <= 1, "ratio", "a share in [0, 1]", ratio)
    drop = np.zeros(num, dtype=bool)
    drop[rng.choice(num, min(round(ratio * num), num - 1), replace=False)] = True
    return _without(words, drop, rng, mark)


def delete_spans(
    words: Sequence[T], num_spans: int, span: float, rng: np.random.Generator, *, mark: T = DELETE
) -> list[T]:
    """Words without disjoint spans; each, or several that touch, becomes one mark.

    Args:
        words: of one sentence, or its tokens' ids.
        num_spans: fewer in a sentence that would not keep a word.
        span: length of each: max(1, round(span n)) of n words; 0 deletes nothing.
        rng: what draws.
        mark: stands for deleted words.

    Raises:
        ValueError: no words, a negative number, or a share outside [0, 1].
    """
    num = _expect(words)
    length = _length(num, num_spans, span)
    drop = np.zeros(num, dtype=bool)
    for start in _starts(num, min(num_spans, (num - 1) // length) if length else 0, length, rng):
        drop[start : start + length] = True
    return _without(words, drop, rng, mark)


def reorder(words: Sequence[T], num_swaps: int, span: float, rng: np.random.Generator) -> list[T]:
    """Words of which pairs of disjoint spans have changed places.

    Args:
        words: of one sentence, or its tokens' ids.
        num_swaps: pairs; fewer in a sentence that is too short for so many.
        span: length of each span: max(1, round(span n)) of n words; 0 changes nothing.
        rng: what draws.

    Raises:
        ValueError: no words, a negative number, or a share outside [0, 1].
    """
    num = _expect(words)
    length = _length(num, num_swaps, span)
    pairs = min(num_swaps, num // (2 * length)) if length else 0
    starts = rng.permutation(_starts(num, 2 * pairs, length, rng))
    place = np.arange(num)
    for a, b in starts.reshape(pairs, 2):
        place[a : a + length], place[b : b + length] = (np.arange(x, x + length) for x in (b, a))
    return [words[i] for i in place.tolist()]


def substitute(words: Sequence[str], table: Table, ratio: float, rng: np.random.Generator) -> list[str]:
    """Words of which a share, drawn evenly, is replaced by a substitute; capitals and punctuation around stay.

    Args:
        words: of one sentence.
        table: substitutes of a lower-case word without punctuation; a drawn word that has none stays.
        ratio: round(ratio n) of n words are drawn.
        rng: what draws, first the words, then a substitute of each.

    Raises:
        ValueError: no words, or a ratio outside [0, 1].
    """
    num = _expect(words)
    expect(0 <= ratio <= 1, "ratio", "a share in [0, 1]", ratio)
    changed = list(words)
    for place in np.sort(rng.choice(num, round(ratio * num), replace=False)):
        before, core, after = parts(words[int(place)])
        others = substitutes_of(core.lower(), table)
        if others:
            other = others[int(rng.integers(len(others)))]
            changed[int(place)] = before + (other.capitalize() if core[:1].isupper() else other) + after
    return changed


class Augmenter:
    """A chain of augmentations, with the options of a config.

    Args:
        config: ratios and numbers.
        names: what is done, one after the other.
        table: of substitute.
        mark: what stands for deleted words, or the id of that token.

    Raises:
        ValueError: substitute without a table.
    """

    def __init__(
        self, config: AugmentConfig, names: Sequence[str], *, table: Table | None = None, mark: str | int = DELETE
    ) -> None:
        expect(table is not None or "substitute" not in names, "table", "substitutes of words", "none")
        self.config, self.names, self.table, self.mark = config, tuple(names), table, mark

    def __call__(self, words: Sequence[T], rng: np.random.Generator) -> list[T]:
        """The changed words of one sentence; no two marks stand side by side."""
        config, found = self.config, list(words)
        _expect(found)
        for name in self.names:
            if name == "delete_words":
                found = delete_words(found, config.deleted, rng, mark=self.mark)  # type: ignore[arg-type]
            elif name == "delete_spans":
                found = delete_spans(found, config.num_spans, config.span, rng, mark=self.mark)  # type: ignore[arg-type]
            elif name == "reorder":
                found = _merged(reorder(found, config.num_swaps, config.swap, rng), self.mark)
            else:
                assert self.table is not None
                found = substitute(found, self.table, config.substituted, rng)  # type: ignore[assignment, arg-type]
        return found  # type: ignore[return-value]

    def sentence(self, text: str, rng: np.random.Generator) -> str:
        """A changed sentence.

        Raises:
            ValueError: an empty sentence.
        """
        return " ".join(self(text.split(), rng))  # type: ignore[arg-type]


def generators(rng: Rng, index: Tensor, name: str) -> list[np.random.Generator]:
    """A generator a sample, a function of the run's randomness, the sample's index and a name alone."""
    seeds = (rng.uniform(index, name, 4).double() * 2**24).long().tolist()
    return [np.random.default_rng(seed) for seed in seeds]


def read_substitutes(path: str | Path) -> dict[str, tuple[str, ...]]:
    """The table of a file: a word and its substitutes a line, tabs between.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line without a substitute, or nothing in the file; names the line.
    """
    file = Path(path)
    expect(file.is_file(), "method.augment.substitutes", "a file", str(path), FileNotFoundError)
    found: dict[str, tuple[str, ...]] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        word, *others = (part.strip() for part in line.split("\t"))
        expect(bool(word) and bool(others) and all(others), f"{path} line {number}",
               "a word and its substitutes with tabs between", repr(line[:60]))  # fmt: skip
        found[word.lower()] = (*found.get(word.lower(), ()), *others)
    expect(bool(found), str(path), "a word or more with substitutes", "none")
    return found


def coverage(texts: Sequence[str], table: Table) -> float:
    """Share of the running words of sentences that have a substitute; warns where it is less than half."""
    cores = [parts(word)[1].lower() for text in texts for word in text.split()]
    known = {core: bool(substitutes_of(core, table)) for core in set(cores)}
    has = sum(known[core] for core in cores)
    if has < len(cores) / 2:
        warnings.warn(
            f"substitutes: {len(cores) - has} of {len(cores)} words have none and stay as they are", UserWarning,
            stacklevel=2,
        )  # fmt: skip
    return has / max(len(cores), 1)


def substitutes_of(word: str, table: Table) -> Sequence[str]:
    """The substitutes of a lower-case word."""
    return table.get(word, ()) if isinstance(table, Mapping) else table(word)


def parts(word: str) -> tuple[str, str, str]:
    """Punctuation before, the word, and punctuation after; of punctuation alone the word is all of it."""
    found = re.fullmatch(r"(\W*)(.*?)(\W*)", word, re.DOTALL)
    assert found is not None
    return ("", word, "") if not found[2] else (found[1], found[2], found[3])


def _expect(words: Sequence[T]) -> int:
    expect(len(words) > 0, "words", "a sentence of one word or more", "none")
    return len(words)


def _length(num: int, count: int, share: float) -> int:
    """Words of a span of so large a share; 0: nothing is to be done."""
    expect(count >= 0, "number of spans", "0 or more", count)
    expect(0 <= share <= 1, "span", "a share in [0, 1]", share)
    return max(1, round(share * num)) if count and share else 0


def _starts(num: int, count: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """Where `count` disjoint spans begin, all places alike; rising."""
    if not count:
        return np.zeros(0, dtype=np.int64)
    slots = rng.choice(num - count * (length - 1), count, replace=False)
    return np.sort(slots) + (length - 1) * np.arange(count)


def _without(words: Sequence[T], drop: np.ndarray, rng: np.random.Generator, mark: T) -> list[T]:
    """Words with a mark for each run of dropped ones; one word that is no mark stays, if there was one."""
    real = np.array([word != mark for word in words])
    if drop.any() and real.any() and not (real & ~drop).any():
        drop = drop.copy()
        drop[rng.choice(real.nonzero()[0])] = False
    return _merged([mark if gone else word for word, gone in zip(words, drop, strict=True)], mark)


def _merged(words: Sequence[T], mark: object) -> list[T]:
    """Words with one mark for several in a row."""
    return [word for i, word in enumerate(words) if word != mark or i == 0 or words[i - 1] != mark]
