"""Nearest sentences and mined negatives against loops."""

from __future__ import annotations

import pytest
import torch

from nearfar_sentences.search import mine, nearest


def test_nearest_are_those_of_a_full_sort() -> None:
    query, features = torch.randn(7, 5), torch.randn(30, 5)
    places, cosines = nearest(query, features, 4, block=3)
    full = torch.cosine_similarity(query[:, None], features[None], 2)
    torch.testing.assert_close(cosines, full.topk(4).values)
    torch.testing.assert_close(full.gather(1, places), cosines)
    assert nearest(query, features, 100)[0].shape == (7, 30)
    with pytest.raises(ValueError, match="k: expected 1 or more"):
        nearest(query, features, 0)


def test_mined_negatives_keep_their_distance() -> None:
    torch.manual_seed(1)
    num = 40
    texts = [f"t{i // 2}" for i in range(num)]  # every text stands in two pairs
    positives = [f"p{i % 13}" for i in range(num)]
    a, p = torch.randn(num, 4), torch.randn(num, 4)
    found = mine(texts, positives, a, p, num=2, margin=0.1, ceiling=0.7, reach=num)
    cosine = torch.cosine_similarity(a[:, None], p[None], 2)
    for i in range(num):
        bound = min(float(cosine[i, i]) - 0.1, 0.7)
        allowed = [
            j for j in cosine[i].argsort(descending=True).tolist()
            if float(cosine[i, j]) <= bound and positives[j] != positives[i] and texts[j] != texts[i]
        ]  # fmt: skip
        assert [j for k, j in found if k == i] == allowed[:2]
    skipped = mine(texts, positives, a, p, num=1, skip=1, margin=0.1, ceiling=0.7, reach=num)
    assert set(skipped) <= set(found)


def test_pairs_must_fit() -> None:
    with pytest.raises(ValueError, match="pairs: expected as many texts, positives and features"):
        mine(["a"], ["b", "c"], torch.ones(1, 2), torch.ones(1, 2))
