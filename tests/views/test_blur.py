"""Blur against torchvision, and against a convolution written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nearfar.views.blur import gaussian_blur, kernel_size, reach


def noise(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("side", [17, 32, 40, 96])
@pytest.mark.parametrize("channels", [1, 3])
def test_equals_torchvision(side: int, channels: int) -> None:
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    image, kernel = noise(4, channels, side, side), 9
    sigma = torch.tensor([0.1, 0.7, 1.3, 2.0])
    ours = gaussian_blur(image, sigma, kernel, 2.0)
    peer = torch.stack(
        [functional.gaussian_blur(x, [kernel] * 2, [float(s)] * 2) for x, s in zip(image, sigma, strict=True)]
    )
    assert float((ours - peer).abs().max()) < 1e-5
    assert float((ours - image).abs().mean()) > 0.01


def test_equals_a_written_out_convolution_on_rectangles() -> None:
    image, sigma = noise(2, 2, 37, 50), torch.tensor([1.0, 3.0])
    ours = gaussian_blur(image, sigma, 11)
    for x, s, y in zip(image, sigma, ours, strict=True):
        weight = torch.exp(-(torch.arange(-5, 6.0) ** 2) / (2 * s**2))
        weight = torch.outer(weight, weight) / weight.sum() ** 2
        padded = F.pad(x[None], (5, 5, 5, 5), mode="reflect")
        expected = F.conv2d(padded, weight.repeat(2, 1, 1, 1), groups=2)[0]
        torch.testing.assert_close(y, expected)


def test_cut_at_four_sigma_is_below_a_thousandth() -> None:
    image = (noise(1, 1, 64, 64) > 0.5).float()
    cut, full = (gaussian_blur(image, torch.tensor([2.0]), 41, most) for most in (2.0, float("inf")))
    assert 0 < float((cut - full).abs().max()) < 1e-3


def test_zero_sigma_and_constant_images_stay() -> None:
    image = noise(1, 3, 20, 20)
    torch.testing.assert_close(gaussian_blur(image, torch.zeros(1), 5, 2.0), image)
    flat = torch.full((1, 3, 20, 20), 0.3)
    torch.testing.assert_close(gaussian_blur(flat, torch.ones(1), 5, 2.0), flat)


@pytest.mark.parametrize(("side", "kernel"), [(8, 3), (32, 3), (50, 5), (64, 7), (96, 9), (224, 23)])
def test_kernel_is_about_a_tenth_of_the_side(side: int, kernel: int) -> None:
    assert kernel_size(side) == kernel


def test_reach() -> None:
    assert reach(23, 2.0) == 8
    assert reach(9, 2.0) == 4
    assert reach(9, 0.1) == 1


def test_bad_kernels_are_refused() -> None:
    with pytest.raises(ValueError, match="kernel: expected an odd number, received 4"):
        gaussian_blur(noise(1, 1, 8, 8), torch.ones(1), 4)
    with pytest.raises(ValueError, match="kernel: expected less than twice the side 8, received 17"):
        gaussian_blur(noise(1, 1, 8, 9), torch.ones(1), 17)
