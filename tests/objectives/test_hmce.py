"""HMCE: by loops over levels, and what it reduces to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nearfar.objectives import hmce, supcon

F64 = torch.float64
LABELS = torch.tensor([[0, 0], [0, 1], [1, 0], [0, 0], [1, 1], [1, 0], [2, 0]])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("seed", range(4))
def test_by_hand(seed: int) -> None:
    z = draw(2, 7, 4, seed=seed).requires_grad_()
    fine = supcon(z, torch.tensor([0, 1, 2, 0, 3, 2, 4]), temperature=0.2)
    kept = [0, 1, 2, 4, 6]  # the first of each fine class
    coarse = supcon(z[:, kept], torch.tensor([0, 0, 1, 1, 2]), temperature=0.2)
    expected = (2 * fine + 2**0.5 * torch.maximum(fine, coarse)) / 3
    found = hmce(z, LABELS, temperature=0.2)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, z), torch.autograd.grad(expected, z))


def test_one_level_is_supcon() -> None:
    z = draw(2, 7, 4)
    torch.testing.assert_close(hmce(z, LABELS[:, :1]), supcon(z, LABELS[:, 0], temperature=0.07))


def test_names_of_children_do_not_matter() -> None:
    z, renamed = draw(2, 7, 4), LABELS.clone()
    renamed[LABELS[:, 0] == 1, 1] = 7 - renamed[LABELS[:, 0] == 1, 1]
    torch.testing.assert_close(hmce(z, renamed), hmce(z, LABELS))


def test_refuses() -> None:
    with pytest.raises(ValueError, match="z: expected 2 or more views"):
        hmce(draw(1, 7, 4), LABELS)
    with pytest.raises(ValueError, match=r"labels: expected shape \[7, H\]"):
        hmce(draw(2, 7, 4), LABELS[:, 0])
