"""Nearest sentences, and hard negatives of pairs, by the cosine of features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from nearfar.checks import expect


def nearest(query: Tensor, features: Tensor, k: int, *, block: int = 1024) -> tuple[Tensor, Tensor]:
    """The k nearest rows of every query, a block of queries at a time.

    Args:
        query: [Q, D].
        features: [N, D].
        k: how many; at most N are returned.

    Returns:
        Rows int64 [Q, k] and cosines [Q, k], from the nearest.
    """
    expect(k >= 1, "k", "1 or more", k)
    unit = normalize(features.float(), dim=1)
    k = min(k, len(unit))
    found = [(normalize(part.float(), dim=1) @ unit.T).topk(k) for part in query.split(block)]
    return torch.cat([part.indices for part in found]), torch.cat([part.values for part in found])


def mine(
    texts: Sequence[str],
    positives: Sequence[str],
    text_features: Tensor,
    positive_features: Tensor,
    *,
    num: int = 1,
    skip: int = 0,
    margin: float = 0.05,
    ceiling: float = 0.95,
    reach: int = 100,
) -> list[tuple[int, int]]:
    """Hard negatives among the positives of other pairs.

    A candidate j of pair i counts when cos(text_i, positive_j) <= min(cos(text_i, positive_i) - margin, ceiling), it is
    no copy of text_i or positive_i, and the pair with positive_j has another text.

    Args:
        texts, positives: of the pairs.
        text_features, positive_features: [N, D].
        num: candidates kept of each pair, the nearest first.
        skip: nearest candidates left out.
        margin, ceiling: see above.
        reach: nearest candidates that are looked at.

    Returns:
        (pair, row of the positive that is its negative), by pair.

    Raises:
        ValueError: lists of different lengths; num or reach below 1.
    """
    expect(len(texts) == len(positives) == len(text_features) == len(positive_features), "pairs",
           "as many texts, positives and features", (len(texts), len(positives), len(text_features)))  # fmt: skip
    expect(num >= 1, "num", "1 or more", num)
    expect(reach >= 1, "reach", "1 or more", reach)
    expect(skip >= 0, "skip", "0 or more", skip)
    own = torch.cosine_similarity(text_features.float(), positive_features.float(), dim=1)
    places, cosines = nearest(text_features, positive_features, reach)
    found = []
    for i, (candidates, values) in enumerate(zip(places.tolist(), cosines.tolist(), strict=True)):
        bound = min(float(own[i]) - margin, ceiling)
        same = {texts[i], positives[i]}
        kept = [
            j for j, cosine in zip(candidates, values, strict=True)
            if cosine <= bound and positives[j] not in same and texts[j] != texts[i]
        ]  # fmt: skip
        found += [(i, j) for j in kept[skip : skip + num]]
    return found
