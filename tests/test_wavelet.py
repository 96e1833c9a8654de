"""The Haar transform against a matrix, its energy, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from nearfar.wavelet import haar, haar_edges


def image(height: int = 6, width: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, 3, height, width, generator=generator, dtype=torch.float64)


def test_bands_are_products_with_the_matrices_of_the_wavelet() -> None:
    x = image()

    def matrix(side: int, sign: int) -> torch.Tensor:
        rows = torch.zeros(side // 2, side, dtype=torch.float64)
        for k in range(side // 2):
            rows[k, 2 * k], rows[k, 2 * k + 1] = 0.5**0.5, sign * 0.5**0.5
        return rows

    found = haar(x)
    for name, down, along in (("ll", 1, 1), ("lh", -1, 1), ("hl", 1, -1), ("hh", -1, -1)):
        torch.testing.assert_close(getattr(found, name), matrix(6, down) @ x @ matrix(8, along).T)
    assert torch.equal(haar_edges(x), torch.cat([found.lh, found.hl, found.hh], 1))


@pytest.mark.oracle("pcl_sr", 3)
def test_one_colour_has_no_edges_and_energy_is_kept() -> None:
    flat = torch.tensor([0.2, 0.5, 0.9]).view(1, 3, 1, 1).expand(1, 3, 8, 4)
    assert torch.equal(haar_edges(flat), torch.zeros(1, 9, 4, 2))
    x = image()
    energy = sum(band.square().sum((1, 2, 3)) for band in haar(x))
    torch.testing.assert_close(energy, x.square().sum((1, 2, 3)))


def test_edges_lie_in_their_bands() -> None:
    rows = torch.zeros(1, 1, 4, 4)
    rows[:, :, ::2] = 1  # stripes along rows: horizontal edges
    assert (haar(rows).lh == 1).all()
    assert not haar(rows).hl.any()
    assert (haar(rows.transpose(2, 3)).hl == 1).all()


def test_odd_sides_are_refused() -> None:
    for shape in ((5, 4), (4, 7), (0, 2)):
        with pytest.raises(ValueError, match=rf"image: expected even sides.*received {shape[0]} x {shape[1]} pixels"):
            haar(torch.zeros(1, 1, *shape))
