"""Bags of words: the vocabulary of a corpus, and counts of its words in a document.

Legend: B documents, V words.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from nearfar.checks import expect

WORD = re.compile(r"[^\W\d_][\w'’-]*")
DESCRIPTION = "nearfar bag of words"
_COMMON = """
a about above after again all also although am among an and another any are as at be because been before being below
between both but by can cannot could did do does doing done down during each either else etc even ever every few for
from further get given had has have having he her here hers him his how however i if in instead into is it its itself
just least less let like made make many may me might more most much must my neither no nor not now of off often on
once one only onto or other others our out over own per rather same see shall she should since so some still such than
that the their them then there therefore these they this those though through thus to too two under until up upon us
use used uses using very via was we well were what when where whether which while who whom whose why will with within
without would yet you your
"""
COMMON = frozenset(_COMMON.split())
"""words of English that no topic is about"""


def words_in(text: str) -> list[str]:
    """The words of a text in lower case, from a letter on; numbers and punctuation are passed over."""
    return WORD.findall(text.lower())


class BagOfWords(nn.Module):
    """Counts of known words.

    Attributes:
        words: the vocabulary.
        feature_dim: V.

    Args:
        words: each once.
        num_documents: of the corpus.
        frequency: documents of the corpus that have each word [V].

    Notes:
        Everything travels in the module's state, so that a checkpoint stands alone.
    """

    description: Tensor

    def __init__(self, words: Sequence[str], num_documents: int, frequency: Sequence[int]) -> None:
        super().__init__()
        expect(len(words) == len(frequency), "frequency", f"one a word, {len(words)}", len(frequency))
        self.words, self.num_documents = tuple(words), num_documents
        self._number = {word: i for i, word in enumerate(self.words)}
        self.feature_dim = len(self.words)
        text = json.dumps(
            {"kind": DESCRIPTION, "words": self.words, "documents": num_documents, "frequency": list(frequency)}
        )
        self.register_buffer("description", torch.from_numpy(np.frombuffer(text.encode(), dtype=np.uint8).copy()))
        inverse = np.log(num_documents / np.maximum(np.asarray(frequency, dtype=np.float64), 1))
        self.register_buffer("inverse_frequency", torch.from_numpy(inverse).float(), persistent=False)

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Counts [B, V] float32 of every document, on the CPU; a document without a known word has none.

        Raises:
            ValueError: an empty text; names it.
        """
        places: list[int] = []
        for row, text in enumerate(texts):
            expect(bool(text.strip()), f"text {row}", "a document", repr(text))
            start = row * self.feature_dim
            found = (self._number.get(word) for word in words_in(text))
            places += [start + place for place in found if place is not None]
        size = len(texts) * self.feature_dim
        counts = torch.bincount(torch.tensor(places, dtype=torch.int64), minlength=size)
        return counts.view(len(texts), -1).float()


def read_bag(
    texts: Sequence[str],
    *,
    vocabulary: int = 2000,
    min_documents: int = 3,
    max_share: float = 0.5,
    common: frozenset[str] = COMMON,
) -> BagOfWords:
    """The bag of a corpus: its frequent words, but for those of nearly every document.

    Args:
        texts: documents.
        vocabulary: words at most, the most frequent ones.
        min_documents: a word that fewer have is left out.
        max_share: so is a word that a larger share of documents has.
        common: and so are these.

    Raises:
        ValueError: fewer than two words are left.
    """
    expect(len(texts) > 0, "texts", "documents", "none")
    frequency = Counter(word for text in texts for word in set(words_in(text)) - common)
    most = max_share * len(texts)
    kept = [(word, num) for word, num in frequency.items() if min_documents <= num <= most]
    kept = sorted(kept, key=lambda item: (-item[1], item[0]))[:vocabulary]
    expect(
        len(kept) >= 2, "vocabulary",
        f"two words or more that {min_documents} to {int(most)} of the {len(texts)} documents have", len(kept),
    )  # fmt: skip
    words, counts = zip(*sorted(kept), strict=True)
    return BagOfWords(words, len(texts), counts)


def restore_bag(description: bytes) -> BagOfWords:
    """The bag of a checkpoint's description."""
    found = json.loads(description)
    expect(found.get("kind") == DESCRIPTION, "checkpoint", "one of a topic model", "one of a sentence encoder")
    return BagOfWords(found["words"], found["documents"], found["frequency"])
