"""Weights of drawn negatives beside pytorch-metric-learning."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from nearfar.negatives import distance_weights

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("dim", [4, 64])
def test_distance_weights(monkeypatch: pytest.MonkeyPatch, dim: int) -> None:
    miners = pytest.importorskip("pytorch_metric_learning.miners")
    utils = pytest.importorskip("pytorch_metric_learning.utils.loss_and_miner_utils")
    caught = {}
    monkeypatch.setattr(utils, "get_random_triplet_indices", lambda *_, **options: caught.update(options))
    z, labels = F.normalize(torch.randn(40, dim) + 1, dim=1), torch.randint(0, 5, (40,))
    miners.DistanceWeightedMiner(cutoff=0.5, nonzero_loss_cutoff=1.3).mine(z, labels, z, labels)
    ours = distance_weights(z @ z.T, dim, nearest=0.5, farthest=1.3)
    ours = ours.masked_fill(labels[:, None] == labels, -torch.inf).softmax(dim=1)
    assert caught["weights"].sum() > 39
    assert torch.allclose(ours, caught["weights"], atol=1e-4)
