"""Word vectors of a small corpus by the company that words keep, and the nearest words of each.

Legend: W words, D dimensions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from nearfar.checks import expect
from nearfar_sentences.augment import parts

BLOCK = 2048


def word_vectors(
    texts: Sequence[str], *, dim: int = 50, window: int = 3, min_count: int = 2, most: int = 20_000
) -> tuple[list[str], np.ndarray]:
    """Words of a corpus and vectors [W, D] of unit length: the leading part of their positive mutual information.

    PPMI(v, w) = max(0, log [ n(v, w) n / (n(v) n(w)) ]), n(v, w) counting how often w stands within `window` words of
    v; the vectors are its singular vectors, each times the root of its singular value.

    Args:
        texts: sentences.
        dim: D, less where there are few words.
        window: words on either side.
        min_count: words that occur less often are left out.
        most: words that are kept, the frequent ones.

    Raises:
        ValueError: fewer than two words that occur so often.

    Notes:
        Memory and time in proportion to running words times the window; no random numbers.

    Source: Levy, Goldberg, Dagan, "Improving Distributional Similarity with Lessons Learned from Word Embeddings",
    TACL 2015.
    """
    from scipy.sparse import coo_array

    rows = [[core.lower() for core in (parts(word)[1] for word in text.split())] for text in texts]
    counts = Counter(word for row in rows for word in row)
    often = [(word, count) for word, count in counts.items() if count >= min_count and any(map(str.isalnum, word))]
    words = [word for word, _ in sorted(often, key=lambda item: (-item[1], item[0]))[:most]]
    expect(len(words) >= 2, "texts", f"two words or more that occur {min_count} times", len(words))
    number = {word: i for i, word in enumerate(words)}
    first: list[int] = []
    second: list[int] = []
    for row in rows:
        ids = [number.get(word, -1) for word in row]
        for i, v in enumerate(ids):
            near = [w for w in ids[i + 1 : i + 1 + window] if w >= 0] if v >= 0 else []
            first += [*[v] * len(near), *near]
            second += [*near, *[v] * len(near)]
    expect(bool(first), "texts", "sentences of two words or more", "none")
    shape = (len(words), len(words))
    matrix = coo_array((np.ones(len(first)), (first, second)), shape=shape).tocsr()
    matrix.sum_duplicates()
    total = np.asarray(matrix.sum(1)).ravel()
    table = matrix.tocoo()
    information = np.log(table.data * total.sum() / (total[table.coords[0]] * total[table.coords[1]]))
    kept = information > 0
    ppmi = coo_array((information[kept], tuple(c[kept] for c in table.coords)), shape=shape).tocsr()
    vectors = _leading(ppmi, min(dim, len(words)))
    return words, vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def neighbours(words: Sequence[str], vectors: np.ndarray, num: int = 5) -> dict[str, tuple[str, ...]]:
    """The words of the largest cosines with each word, without itself.

    Args:
        words: W.
        vectors: [W, D] of unit length.
        num: of each, at most.
    """
    expect(len(words) == len(vectors), "vectors", f"one a word, {len(words)}", len(vectors))
    expect(num >= 1, "num", "1 or more", num)
    num = min(num, len(words) - 1)
    found: dict[str, tuple[str, ...]] = {}
    for start in range(0, len(words), BLOCK):
        cosines = vectors[start : start + BLOCK] @ vectors.T
        cosines[np.arange(len(cosines)), start + np.arange(len(cosines))] = -np.inf
        # a stable sort, so that ties do not depend on the machine
        nearest = np.argsort(-cosines.round(9), axis=1, kind="stable")[:, :num]
        for row, places in enumerate(nearest):
            found[words[start + row]] = tuple(words[int(place)] for place in places)
    return found


def _leading(matrix: Any, dim: int) -> np.ndarray:
    """Singular vectors of a symmetric matrix times the roots of their singular values, the leading ones."""
    from scipy.sparse.linalg import svds

    num = matrix.shape[0]
    if dim >= num - 1 or num <= 500:
        left, values, _ = np.linalg.svd(matrix.toarray())
        return left[:, :dim] * np.sqrt(values[:dim])
    left, values, _ = svds(matrix, k=dim, v0=np.ones(num))
    return left * np.sqrt(values)
