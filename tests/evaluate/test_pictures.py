"""Measures of restored pictures against definitions written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from nearfar.evaluate.pictures import edge_error, high_band_error, luma, psnr, ssim


def pair(channels: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(2, channels, 24, 30, generator=generator, dtype=torch.float64)
    return (truth + 0.1 * torch.randn(truth.shape, generator=generator, dtype=torch.float64)).clamp(0, 1), truth


def test_psnr() -> None:
    image, truth = pair()
    for i, value in enumerate(psnr(image, truth)):
        error = np.mean((image[i].numpy() * 255 - truth[i].numpy() * 255) ** 2)
        assert float(value) == pytest.approx(10 * math.log10(255**2 / error))
    assert float(psnr(truth, truth)[0]) == math.inf


def test_ssim_against_filters_of_scipy() -> None:
    image, truth = pair()
    x, y = image.numpy() * 255, truth.numpy() * 255

    def mean(picture: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(picture, 1.5, truncate=5 / 1.5)[5:-5, 5:-5]  # 11 pixels, inside

    for i in range(2):
        values = []
        for a, b in zip(x[i], y[i], strict=True):
            ma, mb = mean(a), mean(b)
            va, vb, vab = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
            c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
            values.append(((2 * ma * mb + c1) * (2 * vab + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean())
        assert float(ssim(image, truth)[i]) == pytest.approx(np.mean(values))
    torch.testing.assert_close(ssim(truth, truth), torch.ones(2, dtype=torch.float64))


def test_luma() -> None:
    black, white = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    torch.testing.assert_close(luma(black) * 255, torch.full((1, 1, 2, 2), 16.0))
    torch.testing.assert_close(luma(white) * 255, torch.full((1, 1, 2, 2), 235.0))
    grey = torch.rand(1, 1, 2, 2)
    torch.testing.assert_close(luma(grey), luma(grey.expand(1, 3, 2, 2)))


def test_fine_detail_and_edges() -> None:
    image, truth = pair(1)
    for i in range(2):
        energies, edges = [], []
        for x in (image[i, 0].numpy(), truth[i, 0].numpy()):
            blocks = x.reshape(12, 2, 15, 2)
            energies.append((x**2).sum() - (blocks.sum((1, 3)) ** 2 / 4).sum())  # all less what is smooth
            slopes = [ndimage.sobel(x, axis)[1:-1, 1:-1] for axis in (0, 1)]
            edges.append(np.hypot(*slopes))
        assert float(high_band_error(image, truth)[i]) == pytest.approx(abs(energies[0] / energies[1] - 1))
        assert float(edge_error(image, truth)[i]) == pytest.approx(np.abs(edges[0] - edges[1]).sum() / edges[1].sum())
    for measure in (high_band_error, edge_error):
        assert not measure(truth, truth).any()


def test_bad_input_is_refused() -> None:
    image, truth = pair()
    for measure in (psnr, ssim, high_band_error, edge_error):
        with pytest.raises(ValueError, match=r"image: expected the shape of the truth, \(2, 3, 24, 28\)"):
            measure(image, truth[..., :-2])
    with pytest.raises(ValueError, match="image: expected at least 11 pixels a side"):
        ssim(image[..., :10], truth[..., :10])
    flat = torch.zeros(1, 1, 12, 12)
    with pytest.raises(ValueError, match="truth: expected pictures with detail, received one of a single colour"):
        high_band_error(flat, flat)
    with pytest.raises(ValueError, match="truth: expected pictures with edges"):
        edge_error(flat, flat)
    with pytest.raises(ValueError, match=r"image: expected shape \[B, 1 or 3, H, W\]"):
        luma(torch.zeros(1, 4, 2, 2))
