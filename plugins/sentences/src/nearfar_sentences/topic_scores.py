"""What topics are worth: whether their words meet, whether they differ, and what held-out words cost.

Legend: B documents, V words.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from torch import Tensor

from nearfar.checks import expect


def npmi(top_words: Sequence[Sequence[int]], counts_BV: Tensor) -> list[float]:
    """Coherence of every topic: how often its words meet in documents, beyond chance.

    NPMI(v, w) = log [ P(v, w) / (P(v) P(w)) ] / -log P(v, w), the mean over pairs of a topic's words; -1 for words that
    never meet, 1 for words that are in every document.

    Args:
        top_words: numbers of two words or more of each topic.
        counts_BV: of words in documents; a document has a word or not.

    Raises:
        ValueError: a topic of fewer than two words, or no documents.

    Source: Lau, Newman, Baldwin, "Machine Reading Tea Leaves", EACL 2014.
    """
    expect(len(counts_BV) > 0, "counts", "documents", "none")
    present = (counts_BV > 0).double()
    found = []
    for number, words in enumerate(top_words):
        expect(len(words) >= 2, f"topic {number}", "two words or more", len(words))
        own = present[:, list(words)]
        both = own.t() @ own / len(present)
        pairs = [_npmi(both, i, j) for i, j in itertools.combinations(range(len(words)), 2)]
        found.append(sum(pairs) / len(pairs))
    return found


def _npmi(both: Tensor, i: int, j: int) -> float:
    together = float(both[i, j])
    if together == 0:
        return -1.0
    if together >= 1:
        return 1.0
    return math.log(together / float(both[i, i] * both[j, j])) / -math.log(together)


def diversity(top_words: Sequence[Sequence[int]]) -> float:
    """Share of different words among all topics' words: 1 where no two topics share a word.

    Raises:
        ValueError: no words.

    Source: Dieng, Ruiz, Blei, "Topic Modeling in Embedding Spaces", TACL 2020.
    """
    words = [word for topic in top_words for word in topic]
    expect(bool(words), "top_words", "words of topics", "none")
    return len(set(words)) / len(words)


def perplexity(log_words_BV: Tensor, counts_BV: Tensor, kl_B: Tensor | None = None) -> float:
    """exp of the mean cost of a word: [ -sum_bv x_bv log p_bv + sum_b KL_b ] / sum_bv x_bv; with KL an upper bound.

    Raises:
        ValueError: documents without any words.
    """
    total = float(counts_BV.sum())
    expect(total > 0, "counts", "words", "none")
    cost = -(counts_BV.double() * log_words_BV.double()).sum()
    cost = cost + (0.0 if kl_B is None else kl_B.double().sum())
    return math.exp(float(cost) / total)
