"""Which features tell which level apart: against what was put in, and by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nearfar.prototypes import between_ratio, level_masks


def hierarchy(num: int = 600) -> Tensor:
    """Paths [N, 2] of 3 coarse classes with 4 fine ones each."""
    fine = torch.arange(num) % 12
    return torch.stack([fine // 4, fine], 1)


def informative(seed: int, ids: Tensor, noise: float = 0.5) -> Tensor:
    """Features 0-9 carry the coarse label, 10-19 the place of the fine one among its siblings, 20-31 neither."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(3, 10, generator=generator)[ids[:, 0]]
    sibling = torch.randn(12, 10, generator=generator)
    sibling = (sibling.view(3, 4, 10) - sibling.view(3, 4, 10).mean(1, keepdim=True)).view(12, 10)[ids[:, 1]]
    signal = torch.cat([coarse, sibling, torch.zeros(len(ids), 12)], 1)
    return signal + noise * torch.randn(signal.shape, generator=generator)


@pytest.mark.oracle("hmlc", 3)
@pytest.mark.parametrize("seed", range(5))
def test_it_finds_the_features_of_each_level(seed: int) -> None:
    ids = hierarchy()
    masks = level_masks(informative(seed, ids), ids)
    right = torch.cat([masks[0, :10], masks[1, 10:20]])
    assert float(right.mean()) >= 0.95
    wrong = torch.cat([masks[1, :10], masks[0, 10:20]])
    assert float(wrong.mean()) <= 0.05
    assert torch.equal(masks.sum(0), torch.ones(32))  # every feature serves one level
    assert torch.equal(masks, level_masks(informative(seed, ids), ids))


def test_ratios_by_hand() -> None:
    z = torch.tensor([[0.0, 1, 5], [2, 1, 5], [4, 3, 5], [6, 3, 5]])
    ratio = between_ratio(z, torch.tensor([[0, 0], [0, 0], [1, 1], [1, 2]]))
    torch.testing.assert_close(ratio, torch.tensor([[0.8, 0.9], [1.0, 1.0], [0.0, 0.0]]))


def test_noise_is_split_evenly_and_every_level_has_enough() -> None:
    ids = hierarchy(60)
    masks = level_masks(torch.ones(60, 9), ids)
    assert masks.sum(1).tolist() == [4, 5]
    carried = informative(0, ids, noise=0.01)[:, 10:20]  # nothing but the fine label
    masks = level_masks(carried, ids, least=3)
    assert int(masks[0].sum()) >= 3
    assert int(masks[1].sum()) >= 3
    assert level_masks(torch.randn(20, 4), torch.arange(20)[:, None] % 4).tolist() == [[1.0] * 4]


@pytest.mark.parametrize(
    ("z", "ids", "match"),
    [
        (torch.zeros(1, 4), torch.zeros(1, 2).long(), r"z: expected shape \[N, D\], N >= 2"),
        (torch.zeros(5, 4), torch.zeros(4, 2).long(), r"ids: expected shape \[5, H\]"),
        (torch.zeros(5, 1), torch.zeros(5, 2).long(), "z: expected 2 features or more"),
    ],
)
def test_refuses(z: Tensor, ids: Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        level_masks(z, ids)
