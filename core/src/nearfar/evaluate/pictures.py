"""How near restored pictures come to the true ones: PSNR, SSIM, the energy of fine detail, and edges.

Shapes: B pictures, C channels, H height, W width; values in [0, 1].
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from nearfar.checks import expect
from nearfar.views.blur import gaussian_weight
from nearfar.wavelet import haar_edges

WINDOW, WIDTH = 11, 1.5
"""of the Gaussian window of SSIM: pixels, and standard deviation"""


def luma(image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 1 H W"]:
    """The Y channel of ITU-R BT.601 in studio range, 16/255 to 235/255, on which super-resolution is compared.

    Y = (16 + 65.481 R + 128.553 G + 24.966 B) / 255; a grey picture counts as R = G = B.
    """
    expect(image.ndim == 4 and image.shape[1] in (1, 3), "image", "shape [B, 1 or 3, H, W]", tuple(image.shape))
    weight = torch.tensor([65.481, 128.553, 24.966], dtype=image.dtype, device=image.device) / 255
    return 16 / 255 + (image.expand(-1, 3, -1, -1) * weight[:, None, None]).sum(1, keepdim=True)


def psnr(image: Float[Tensor, "B C H W"], truth: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
    """Peak signal-to-noise ratio in decibels, -10 log10 mean (x - y)^2; infinite for equal pictures.

    Raises:
        ValueError: pictures of another shape.
    """
    _alike(image, truth)
    return -10 * (image - truth).square().flatten(1).mean(1).log10()


def ssim(image: Float[Tensor, "B C H W"], truth: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
    """Structural similarity, the mean over channels and over windows that lie inside.

    ((2 mx my + c1) (2 sxy + c2)) / ((mx^2 + my^2 + c1) (sx^2 + sy^2 + c2)),  c1 = 0.01^2, c2 = 0.03^2

    with means, variances and covariance under a Gaussian window of 11 x 11 pixels and standard deviation 1.5.

    Raises:
        ValueError: pictures of another shape, or smaller than the window.

    Source: Wang, Bovik, Sheikh, Simoncelli, "Image Quality Assessment: From Error Visibility to Structural Similarity",
        IEEE TIP 2004.
    """
    _alike(image, truth)
    expect(min(image.shape[2:]) >= WINDOW, "image", f"at least {WINDOW} pixels a side", tuple(image.shape[2:]))
    x, y = (picture.flatten(0, 1)[:, None].double() for picture in (image, truth))
    weight = gaussian_weight(torch.tensor([WIDTH], dtype=x.dtype, device=x.device), WINDOW // 2)[0]

    def mean(picture: Tensor) -> Tensor:
        return functional.conv2d(functional.conv2d(picture, weight[None, None, None]), weight[None, None, :, None])

    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    value = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return value.mean((1, 2, 3)).view(image.shape[:2]).mean(1).to(image.dtype)


def high_band_error(image: Float[Tensor, "B C H W"], truth: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
    """How far the energy of fine detail is from the true one, |E(x) - E(y)| / E(y).

    E is the sum of squares of the three bands of edges of `nearfar.wavelet.haar`.

    Raises:
        ValueError: pictures of another shape, odd sides, or a true picture without any detail.
    """
    _alike(image, truth)
    energy, true = (haar_edges(picture).square().flatten(1).sum(1) for picture in (image, truth))
    expect(bool((true > 0).all()), "truth", "pictures with detail", "one of a single colour")
    return (energy - true).abs() / true


def edge_error(image: Float[Tensor, "B C H W"], truth: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
    """How far edges are from the true ones, sum |g(x) - g(y)| / sum g(y), g the length of Sobel's gradient.

    Raises:
        ValueError: pictures of another shape, or a true picture without any edge.
    """
    _alike(image, truth)
    found, true = _sobel(image), _sobel(truth)
    size = true.flatten(1).sum(1)
    expect(bool((size > 0).all()), "truth", "pictures with edges", "one of a single colour")
    return (found - true).abs().flatten(1).sum(1) / size


def _sobel(image: Tensor) -> Tensor:
    flat = image.flatten(0, 1)[:, None]
    smooth, slope = flat.new_tensor([1.0, 2.0, 1.0]), flat.new_tensor([-1.0, 0.0, 1.0])
    kernel = torch.stack([smooth[:, None] * slope, slope[:, None] * smooth])[:, None]
    return functional.conv2d(flat, kernel).norm(dim=1).view(*image.shape[:2], image.shape[2] - 2, image.shape[3] - 2)


def _alike(image: Tensor, truth: Tensor) -> None:
    expect(image.shape == truth.shape, "image", f"the shape of the truth, {tuple(truth.shape)}", tuple(image.shape))
