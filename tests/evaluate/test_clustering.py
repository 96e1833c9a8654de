from __future__ import annotations

import pytest
import torch
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from nearfar.config import EvaluateConfig
from nearfar.evaluate import clustering, evaluate_embedding
from nearfar.prototypes import kmeans


def blobs(num: int = 60, spread: float = 0.05) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(num) % 3
    return torch.eye(3, 8)[y] + spread * torch.randn(num, 8, generator=generator), y


def test_clusters_that_are_the_classes_score_one():
    x, y = blobs()
    found = clustering(x, y)
    assert found["nmi"].value == pytest.approx(1)
    assert found["ari"].value == pytest.approx(1)
    assert found["nmi"].n == 3


def test_equals_scikit_learn_on_the_same_partition():
    x, y = blobs(spread=0.8)
    label = kmeans(x, 3, seed=7).label
    found = clustering(x, y, draws=1, seed=7)
    assert found["nmi"].value == pytest.approx(normalized_mutual_info_score(y, label))
    assert found["ari"].value == pytest.approx(adjusted_rand_score(y, label))
    assert found["ari"].low == found["ari"].high


def test_labels_that_mean_nothing_score_about_zero():
    x, _ = blobs(300)
    y = torch.randint(3, (300,), generator=torch.Generator().manual_seed(1))
    found = clustering(x, y)
    assert abs(found["ari"].value) < 0.03


def test_is_one_of_the_scores_where_asked_for():
    x, y = blobs()
    assert "nmi" not in evaluate_embedding(x, y, x, y)
    scores = evaluate_embedding(x, y, x, y, EvaluateConfig(clusterings=2))
    assert scores["nmi"].value == pytest.approx(1)


def test_complaints():
    x, y = blobs()
    with pytest.raises(ValueError, match="labels of at least 2 classes"):
        clustering(x, torch.zeros(60, dtype=torch.long))
    with pytest.raises(ValueError, match="num_clusters: expected 2 to the 60 rows, received 61"):
        clustering(x, y, num_clusters=61)
    with pytest.raises(ValueError, match="draws"):
        clustering(x, y, draws=0)
