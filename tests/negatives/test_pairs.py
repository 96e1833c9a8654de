"""The hardest pairs of a labelled batch: by hand, and by loops."""

from __future__ import annotations

import math

import pytest
import torch

from nearfar.negatives import hard_pairs


@pytest.mark.oracle("core_tuning", 4)
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_by_hand(scale: float) -> None:
    """Points on the circle at angles of class 0: 0, 40, 100 and class 1: 60, 130, 170 degrees; scaled by 0.3 all lie
    within 51 degrees, where every similarity is positive."""
    angle = torch.tensor([0.0, 40, 100, 60, 130, 170]) * scale * math.pi / 180
    z = torch.stack([angle.cos(), angle.sin()], 1) * torch.tensor([[1.0], [2], [3], [1], [2], [3]])
    found = hard_pairs(z, torch.tensor([0, 0, 0, 1, 1, 1]))
    assert found.positive.tolist() == [2, 2, 0, 5, 3, 3]
    assert found.negative.tolist() == [3, 3, 4, 1, 2, 2]


@pytest.mark.parametrize("seed", range(3))
def test_equals_loops(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    z, y = torch.randn(20, 5, generator=generator), torch.randint(0, 6, (20,), generator=generator)
    found = hard_pairs(z, y)
    cosine = torch.nn.functional.cosine_similarity(z[:, None], z[None], dim=2)
    for i in range(20):
        same = [j for j in range(20) if j != i and y[j] == y[i]]
        other = [j for j in range(20) if y[j] != y[i]]
        assert found.positive[i] == min(same, key=lambda j: cosine[i, j], default=i)
        assert found.negative[i] == max(other, key=lambda j: cosine[i, j], default=i)


def test_rows_without_a_pair_are_their_own() -> None:
    z = torch.eye(3)
    assert hard_pairs(z, torch.arange(3)).positive.tolist() == [0, 1, 2]
    assert hard_pairs(z, torch.zeros(3).long()).negative.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"labels: expected shape \[3\]"):
        hard_pairs(z, torch.arange(2))
