"""Changes of words: what they keep, what they refuse, and that the generator alone decides."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from nearfar.rng import Rng
from nearfar_sentences import augment as a
from nearfar_sentences import templates
from nearfar_sentences.config import AugmentConfig
from nearfar_sentences.neighbours import neighbours, word_vectors

WORDS = [f"w{i}" for i in range(40)]
TABLE = {word: (word + "x",) for word in WORDS}
TOTAL = {"delete_words": {"ratio": 0.7}, "delete_spans": {"num_spans": 5, "span": 0.05},
         "reorder": {"num_swaps": 5, "span": 0.05}, "substitute": {"table": TABLE, "ratio": 0.3}}  # fmt: skip


def call(name: str, words: list[str], seed: int, **changes: object) -> list[str]:
    return getattr(a, name)(words, **{**TOTAL[name], **changes}, rng=np.random.default_rng(seed))


def is_subsequence(part: list[str], whole: list[str]) -> bool:
    rest = iter(whole)
    return all(word in rest for word in part)


@pytest.mark.oracle("clear", 1)
@pytest.mark.parametrize("num", [1, 2, 3, 5, 9, 10, 40])
@pytest.mark.parametrize("seed", range(5))
def test_what_each_change_keeps(num: int, seed: int):
    words = WORDS[:num]
    assert sorted(call("reorder", words, seed)) == sorted(words)
    for name in ("delete_words", "delete_spans"):
        left = call(name, words, seed)
        kept = [word for word in left if word != a.DELETE]
        assert kept
        assert is_subsequence(kept, words)
        assert all(not (x == y == a.DELETE) for x, y in pairwise(left))
    changed = call("substitute", words, seed)
    assert len(changed) == num
    assert sum(x != y for x, y in zip(words, changed, strict=True)) == round(0.3 * num)
    for name in TOTAL:
        assert call(name, words, seed) == call(name, words, seed)


@pytest.mark.oracle("clear", 1)
def test_a_share_of_nothing_changes_nothing():
    assert call("delete_words", WORDS, 0, ratio=0.0) == WORDS
    assert call("substitute", WORDS, 0, ratio=0.0) == WORDS
    for name, count in (("delete_spans", "num_spans"), ("reorder", "num_swaps")):
        assert call(name, WORDS, 0, span=0.0) == WORDS
        assert call(name, WORDS, 0, **{count: 0}) == WORDS


def test_how_much_is_deleted_and_moved():
    left = [word for word in call("delete_words", WORDS, 1) if word != a.DELETE]
    assert len(left) == 40 - 28
    left = [word for word in call("delete_spans", WORDS, 1) if word != a.DELETE]
    assert len(left) == 40 - 5 * 2  # five spans of round(0.05 * 40) words
    moved = [x != y for x, y in zip(WORDS, call("reorder", WORDS, 1), strict=True)]
    assert sum(moved) == 2 * 5 * 2
    assert call("reorder", WORDS[:2], 1) == WORDS[1::-1]
    assert call("reorder", WORDS[:3], 0, num_swaps=9) != WORDS[:3]


def test_every_place_of_a_span_is_as_likely():
    counts = np.zeros(6)
    rng = np.random.default_rng(0)
    for _ in range(3000):
        left = a.delete_spans(WORDS[:6], 1, 2 / 6, rng)
        counts += [word not in left for word in WORDS[:6]]
    expected = 3000 * np.array([1, 2, 2, 2, 2, 1]) / 5
    assert (abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_different_seeds_differ():
    for name in TOTAL:
        assert len({tuple(call(name, WORDS, seed)) for seed in range(8)}) > 4, name


def test_ids_of_tokens_are_changed_like_words():
    left = a.delete_words(list(range(10, 20)), 0.5, np.random.default_rng(0), mark=5)
    assert len([token for token in left if token != 5]) == 5
    assert set(left) <= {5, *range(10, 20)}


def test_a_chain_never_deletes_the_last_word():
    chain = a.Augmenter(AugmentConfig(deleted=1.0), ("delete_words", "delete_spans", "delete_words"))
    for seed in range(50):
        left = chain(WORDS[:7], np.random.default_rng(seed))
        assert [word for word in left if word != a.DELETE]
        assert all(not (x == y == a.DELETE) for x, y in pairwise(left))


def test_marks_that_moved_side_by_side_become_one():
    chain = a.Augmenter(AugmentConfig(), ("delete_spans", "reorder"))
    for seed in range(50):
        left = chain(WORDS[:12], np.random.default_rng(seed))
        assert all(not (x == y == a.DELETE) for x, y in pairwise(left))


def test_substitutes_keep_capitals_and_punctuation():
    table = {"car": ("automobile",)}
    found = a.substitute(['"Car,', "car", "...", "bus"], table, 1.0, np.random.default_rng(0))
    assert found == ['"Automobile,', "automobile", "...", "bus"]
    assert a.substitute(["car"], lambda word: [word + "s"], 1.0, np.random.default_rng(0)) == ["cars"]


def test_samples_draw_for_themselves():
    index = torch.tensor([3, 8, 11])
    whole = [g.random() for g in a.generators(Rng(1, 2), index, "x")]
    assert [g.random() for g in a.generators(Rng(1, 2), index[1:], "x")] == whole[1:]
    assert len({*whole, *(g.random() for g in a.generators(Rng(1, 3), index, "x"))}) == 6


def test_a_file_of_substitutes(tmp_path: Path):
    file = tmp_path / "words.tsv"
    file.write_text("Car\tautomobile\tmotor car\n\ncar\twheels\nbus\tcoach\n")
    assert a.read_substitutes(file) == {"car": ("automobile", "motor car", "wheels"), "bus": ("coach",)}
    file.write_text("car\tautomobile\nbus\n")
    with pytest.raises(ValueError, match="line 2: expected a word and its substitutes"):
        a.read_substitutes(file)
    file.write_text("\n")
    with pytest.raises(ValueError, match="expected a word or more with substitutes, received none"):
        a.read_substitutes(file)
    with pytest.raises(FileNotFoundError, match="substitutes: expected a file"):
        a.read_substitutes(tmp_path / "nothing.tsv")


def test_few_substitutes_are_counted_in_a_warning():
    assert a.coverage(["car bus"], {"car": ("x",)}) == 0.5
    with pytest.warns(UserWarning, match="2 of 3 words have none"):
        assert a.coverage(["car bus tram"], {"car": ("x",)}) == pytest.approx(1 / 3)


def test_bad_input():
    rng = np.random.default_rng(0)
    for name in TOTAL:
        with pytest.raises(ValueError, match="words: expected a sentence of one word or more"):
            call(name, [], 0)
    with pytest.raises(ValueError, match="ratio: expected a share"):
        a.delete_words(WORDS, 1.2, rng)
    with pytest.raises(ValueError, match="span: expected a share"):
        a.delete_spans(WORDS, 2, -0.1, rng)
    with pytest.raises(ValueError, match="number of spans: expected 0 or more"):
        a.reorder(WORDS, -1, 0.1, rng)
    with pytest.raises(ValueError, match="table: expected substitutes"):
        a.Augmenter(AugmentConfig(), ("substitute",))
    with pytest.raises(ValueError, match="level: expected 'word' with substitute"):
        AugmentConfig(first=("substitute",), level="token")
    with pytest.raises(ValueError, match="augment.deleted: expected a share"):
        AugmentConfig(deleted=2.0)
    with pytest.raises(ValueError, match="augment.substitutes: expected nothing without"):
        AugmentConfig(substitutes="file.tsv")


def test_neighbours_of_a_grammar_fill_the_same_slot():
    texts, _ = templates.corpus(1500, 0)
    words, vectors = word_vectors(texts, dim=30)
    table = neighbours(words, vectors, 3)
    verbs = {word for pair in templates.VERB for word in pair}
    near = [other in verbs for verb in sorted(verbs) for other in table[verb]]
    assert np.mean(near) > 0.6, "3 of 16 verbs among 90 words would be 0.17 by chance"
    assert all(word not in others for word, others in table.items())


def test_neighbours_by_brute_force():
    texts = ["a b c", "a b d", "c a"]
    words, vectors = word_vectors(texts, dim=4, window=1, min_count=1)
    counts = np.zeros((4, 4))
    for text in texts:
        row = [words.index(word) for word in text.split()]
        for v, w in pairwise(row):
            counts[v, w] += 1
            counts[w, v] += 1
    with np.errstate(divide="ignore"):
        ppmi = np.maximum(0, np.log(counts * counts.sum() / np.outer(counts.sum(1), counts.sum(1))))
    left, values, _ = np.linalg.svd(ppmi)
    full = left * np.sqrt(values)
    cosine = full @ full.T / np.outer(np.linalg.norm(full, axis=1), np.linalg.norm(full, axis=1))
    np.testing.assert_allclose(vectors @ vectors.T, cosine, atol=1e-9)
    with pytest.raises(ValueError, match="two words or more that occur 5 times"):
        word_vectors(texts, min_count=5)
