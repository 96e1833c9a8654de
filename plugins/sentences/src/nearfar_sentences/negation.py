"""Whether an encoder sees that one word turns a sentence's meaning: sentences, their negation, and another wording."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import normalize

from nearfar_sentences import templates
from nearfar_sentences.sts import Embed


def negations(num: int, seed: int) -> tuple[list[str], list[str], list[str]]:
    """Sentences of the grammar, another wording of each, and its negation by one word."""
    rng = np.random.default_rng(seed)
    texts, others, negated = [], [], []
    verbs = {verb for pair in templates.VERB for verb in pair}
    for _ in range(num):
        scene = templates.meaning(rng)
        text = templates.say(scene, rng)
        texts.append(text)
        others.append(templates.say(scene, rng))
        negated.append(" ".join(f"never {word}" if word in verbs else word for word in text.split()))
    return texts, others, negated


def negation(embed: Embed, texts: Sequence[str], others: Sequence[str], negated: Sequence[str]) -> dict[str, float]:
    """Cosines of sentences with another wording and with their negation, and how often the other wording is nearer.

    Args:
        embed: from sentences to vectors [N, D].
        texts, others, negated: sentences, other wordings, and negations, one each.

    Returns:
        "told": share of sentences whose other wording is nearer than the negation; "same", "negated": mean cosines.
    """
    x, same, not_same = (normalize(torch.as_tensor(embed(rows)).double(), dim=1) for rows in (texts, others, negated))
    near, far = (x * same).sum(1), (x * not_same).sum(1)
    return {"told": float((near > far).double().mean()), "same": float(near.mean()), "negated": float(far.mean())}
