"""Filters of every sample's own along either axis, against a convolution."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from nearfar.views.blur import gaussian_weight, separable


def test_against_convolution_sample_by_sample() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(3, 2, 37, 40, generator=generator)
    rows, columns = torch.rand(2, 3, 7, generator=generator)
    found = separable(image, rows, columns)
    for i in range(3):
        padded = functional.pad(image[i : i + 1], (3, 3, 3, 3), mode="reflect").transpose(0, 1)
        kernel = (columns[i][:, None] * rows[i])[None, None]
        torch.testing.assert_close(found[i], functional.conv2d(padded, kernel)[:, 0])


def test_weights_reach_as_far_as_they_are_told() -> None:
    weight = gaussian_weight(torch.tensor([1.0, 1.0, 0.0]), 3, torch.tensor([1, 3, 3]))
    expected = torch.exp(-0.5 * torch.tensor([1.0, 0.0, 1.0]))
    torch.testing.assert_close(weight[0], functional.pad(expected / expected.sum(), (2, 2)))
    assert (weight[1] > 0).all()
    assert weight[2].tolist() == [0, 0, 0, 1, 0, 0, 0]
    torch.testing.assert_close(weight.sum(1), torch.ones(3))


def test_bad_weights_are_refused() -> None:
    image = torch.zeros(1, 1, 8, 8)
    with pytest.raises(ValueError, match="along_row, along_column: expected as many weights, an odd number"):
        separable(image, torch.ones(1, 3), torch.ones(1, 5))
    with pytest.raises(ValueError, match="along_row, along_column: .* an odd number"):
        separable(image, torch.ones(1, 4), torch.ones(1, 4))
    with pytest.raises(ValueError, match="along_row: expected fewer than 16 weights, received 17"):
        separable(image, torch.ones(1, 17), torch.ones(1, 17))
