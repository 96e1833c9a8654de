"""Word pieces against a plain recount of pairs after every join."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

from nearfar_sentences import templates
from nearfar_sentences.pieces import INNER, learn_pieces

WORDS = [word for text in templates.corpus(80, 1)[0] for word in text.split()]


def recounted(words: list[str], size: int) -> list[str]:
    counts = Counter(words)
    split = {word: [word[0], *(INNER + letter for letter in word[1:])] for word in counts}
    pieces = sorted({piece for parts in split.values() for piece in parts})
    while len(pieces) < size:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in split.items():
            for pair in pairwise(parts):
                pairs[pair] += counts[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        joined = best[0] + best[1].removeprefix(INNER)
        if joined not in pieces:
            pieces.append(joined)
        for word, parts in split.items():
            out: list[str] = []
            while parts:
                take = 2 if tuple(parts[:2]) == best else 1
                out.append(joined if take == 2 else parts[0])
                parts = parts[take:]
            split[word] = out
    return pieces


def test_joins_are_those_of_a_recount() -> None:
    for size in (40, 90, 150, 10_000):
        assert learn_pieces(WORDS, size) == recounted(WORDS, size)


def test_a_repeated_letter_joins_from_the_left() -> None:
    assert learn_pieces(["aaaa"] * 3, 10) == recounted(["aaaa"] * 3, 10)


def test_order_changes_nothing_and_special_tokens_come_first() -> None:
    assert learn_pieces(WORDS[::-1], 120, ["[PAD]"]) == learn_pieces(WORDS, 120, ["[PAD]"])
    assert learn_pieces(WORDS, 120, ["[PAD]"])[0] == "[PAD]"


def test_every_word_is_whole_when_there_is_room() -> None:
    assert set(WORDS) <= set(learn_pieces(WORDS, 10_000))
