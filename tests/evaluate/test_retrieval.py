from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from nearfar.evaluate import retrieval


def _brute(x: np.ndarray, y: np.ndarray, k: int) -> tuple[float, float, float, int]:
    """(recall@k, mAP, MAP@R, queries), one query at a time."""
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    recall, average, average_r = [], [], []
    for i in range(len(x)):
        others = np.arange(len(x)) != i
        same = (y == y[i])[others]
        if not same.any():
            continue
        cosine = (unit @ unit[i])[others]
        ranked = same[np.argsort(-cosine, kind="stable")]
        recall.append(ranked[:k].any())
        average.append(average_precision_score(same, cosine))
        total = int(same.sum())
        precision = np.cumsum(ranked[:total]) / np.arange(1, total + 1)
        average_r.append((precision * ranked[:total]).sum() / total)
    return float(np.mean(recall)), float(np.mean(average)), float(np.mean(average_r)), len(recall)


@pytest.mark.parametrize("tile", [1, 700, 2**23])
def test_it_equals_brute_force(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[retrieval.__module__], "TILE", tile)
    rng = np.random.default_rng(0)
    y = rng.choice([3, 5, 5, 8, 8, 8], 90)
    y[0], y[1] = 100, -4  # two classes of one row
    x = rng.normal(size=(90, 6)) + 0.7 * np.eye(6)[y % 6]
    scores = retrieval(torch.from_numpy(x), torch.from_numpy(y), ks=(1, 4))
    assert list(scores) == ["recall@1", "recall@4", "map", "map@r"]
    for k in (1, 4):
        recall, average, average_r, queries = _brute(x, y, k)
        assert scores[f"recall@{k}"].value == pytest.approx(recall)
    assert scores["map"].value == pytest.approx(average)
    assert scores["map@r"].value == pytest.approx(average_r)
    assert all(score.n == queries == 88 for score in scores.values())
    assert all(score.low < score.value < score.high for score in scores.values())


def test_perfect_and_hand_values() -> None:
    x = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
    perfect = retrieval(x, torch.tensor([0, 0, 1, 1]), ks=(1,))
    assert [score.value for score in perfect.values()] == [1, 1, 1]
    crossed = retrieval(x, torch.tensor([0, 1, 0, 1]), ks=(1, 2, 3))
    # the only other member of a query's class stands at ranks 3, 2, 3 and 2
    assert [crossed[f"recall@{k}"].value for k in (1, 2, 3)] == [0, 0.5, 1]
    assert crossed["map"].value == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert crossed["map@r"].value == 0


def test_collapsed_features_score_nothing() -> None:
    scores = retrieval(torch.ones(6, 3), torch.tensor([0, 0, 0, 1, 1, 1]), ks=(1, 3))
    assert scores["recall@1"].value == 0
    assert scores["recall@3"].value == 0
    assert scores["map"].value == pytest.approx((1 / 4 + 2 / 5) / 2)


def test_order_of_rows_and_common_scale_do_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 5, generator=generator), torch.randint(0, 4, (60,), generator=generator)
    shuffled = torch.randperm(60, generator=generator)
    first, second = retrieval(x, y), retrieval(100 * x[shuffled], y[shuffled])
    assert {k: v.value for k, v in first.items()} == pytest.approx({k: v.value for k, v in second.items()})


def test_bad_input_is_named() -> None:
    x = torch.eye(4)
    with pytest.raises(ValueError, match="y: expected a class with at least 2 rows"):
        retrieval(x, torch.arange(4), ks=(1,))
    with pytest.raises(ValueError, match=r"ks: expected cuts in \[1, 3\], the other rows, received 4"):
        retrieval(x, torch.tensor([0, 0, 1, 1]), ks=(4,))
    with pytest.raises(ValueError, match="x: expected finite features, received 4 rows"):
        retrieval(x / 0, torch.tensor([0, 0, 1, 1]), ks=(1,))
