"""Metric-learning losses beside those of pytorch-metric-learning, in value and gradient.

Legend: B batch, D embedding.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nearfar.objectives import circle, multi_similarity, n_pairs, triplet

pytestmark = pytest.mark.parity
LABELS = torch.arange(12) % 4


def agree(ours: Any, theirs: Any) -> None:
    z = torch.randn(12, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    found, expected = ours(z), theirs(z)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        torch.autograd.grad(found, z), torch.autograd.grad(expected, z), rtol=1e-4, atol=1e-5
    )  # fmt: skip


def library() -> Any:
    return pytest.importorskip("pytorch_metric_learning")


@pytest.mark.parametrize("margin", [0.05, 0.5])
@pytest.mark.parametrize("average", ["active", "all"])
def test_all_triplets(average: str, margin: float) -> None:
    library()
    from pytorch_metric_learning import losses, reducers

    reducer = reducers.AvgNonZeroReducer() if average == "active" else reducers.MeanReducer()
    theirs = losses.TripletMarginLoss(margin, reducer=reducer)
    agree(lambda z: triplet(z, LABELS, margin=margin, average=average), lambda z: theirs(z, LABELS))


def test_batch_hard_triplets() -> None:
    library()
    from pytorch_metric_learning import losses, miners

    theirs, miner = losses.TripletMarginLoss(0.3), miners.BatchHardMiner()
    agree(lambda z: triplet(z, LABELS, margin=0.3, mining="hard"), lambda z: theirs(z, LABELS, miner(z, LABELS)))


def test_circle() -> None:
    library()
    from pytorch_metric_learning import losses

    theirs = losses.CircleLoss(m=0.4, gamma=80)
    agree(lambda z: circle(z, LABELS, relaxation=0.4), lambda z: theirs(z, LABELS))


@pytest.mark.parametrize("mining", [None, 0.1])
def test_multi_similarity(mining: float | None) -> None:
    library()
    from pytorch_metric_learning import losses, miners

    theirs = losses.MultiSimilarityLoss(2, 50, 0.5)
    miner = None if mining is None else miners.MultiSimilarityMiner(mining)

    def peer(z: Tensor) -> Tensor:
        return theirs(z, LABELS, None if miner is None else miner(z, LABELS))

    agree(lambda z: multi_similarity(z, LABELS, mining=mining), peer)


def test_n_pairs() -> None:
    library()
    from pytorch_metric_learning import distances, losses

    theirs = losses.NPairsLoss(distance=distances.DotProductSimilarity(normalize_embeddings=False))
    labels = torch.arange(6).repeat(2)
    agree(
        lambda z: n_pairs(z[:6], z[6:]) + 0 * z.sum(),
        lambda z: theirs(torch.stack([z[:6], z[6:]], 1).flatten(0, 1), labels.view(2, 6).t().flatten()),
    )
