"""Pictures made worse on purpose, in five degrees, as a whole batch.

Legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import io

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as tv

from nearfar.checks import expect, expect_choice
from nearfar.rng import Rng

# Five degrees each for pictures of up to SMALL pixels, and for larger ones.
SMALL = 64
DEGREES: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "gaussian_noise": ((0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": ((500, 250, 100, 75, 50), (60, 25, 12, 5, 3)),
    "impulse_noise": ((0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27)),
    "gaussian_blur": ((0.4, 0.6, 0.7, 0.8, 1.0), (1, 2, 3, 4, 6)),
    "brightness": ((0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": ((0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    "pixelate": ((0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg": ((80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
}
CORRUPTIONS = tuple(DEGREES)


def corrupt(
    image: UInt8[Tensor, "B C H W"], index: Int[Tensor, " B"], name: str, degree: int, *, seed: int = 0
) -> UInt8[Tensor, "B C H W"]:
    """A corrupted batch, a function of (image, index, name, degree, seed) alone.

    Args:
        image: pictures of one size.
        index: their numbers, which noise is drawn by.
        name: gaussian_noise, shot_noise, impulse_noise, gaussian_blur, brightness, contrast, pixelate or jpeg.
        degree: 1 to 5.
        seed: of the noise.

    Raises:
        ValueError: an unknown corruption or degree.

    Notes:
        The degrees follow Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
        Perturbations", ICLR 2019 (their CIFAR set up to 64 pixels, their ImageNet set above); brightness is added to
        every channel here, and in their code to the value of HSV. Figures are not comparable with theirs.
    """
    expect_choice("corruption", name, CORRUPTIONS)
    expect(1 <= degree <= 5, "degree", "a number from 1 to 5", degree)
    amount = DEGREES[name][max(image.shape[-2:]) > SMALL][degree - 1]
    if name == "jpeg":
        return torch.stack([_jpeg(one, int(amount)) for one in image.cpu()]).to(image.device)
    x = image.float() / 255
    if name.endswith("noise"):
        count = int(x[0].numel())
        x = _noise(x, index, name, amount, Rng(seed), count)
    elif name == "gaussian_blur":
        size = 2 * round(3 * amount) + 1
        x = tv.gaussian_blur(x, [max(3, size)] * 2, [float(amount)] * 2)
    elif name == "brightness":
        x = x + amount
    elif name == "contrast":
        mean = x.mean((2, 3), keepdim=True)
        x = (x - mean) * amount + mean
    else:
        small = [max(1, int(side * amount)) for side in x.shape[-2:]]
        x = F.interpolate(F.interpolate(x, small, mode="area"), list(x.shape[-2:]), mode="nearest")
    return (x.clamp(0, 1) * 255).round().to(torch.uint8)


def _noise(x: Float[Tensor, "B C H W"], index: Tensor, name: str, amount: float, rng: Rng, count: int) -> Tensor:
    if name == "gaussian_noise":
        return x + amount * rng.normal(index, name, count).view_as(x)
    if name == "impulse_noise":
        draw = rng.uniform(index, name, count).view_as(x)
        return torch.where(draw < amount / 2, 0.0, torch.where(draw < amount, 1.0, x))
    # Poisson counts by their normal approximation with the right mean and variance, so that a draw is one number
    mean = x * amount
    return (mean + mean.sqrt() * rng.normal(index, name, count).view_as(x)).round().clamp_min(0) / amount


def _jpeg(image: UInt8[Tensor, "C H W"], quality: int) -> Tensor:
    """One picture through JPEG and back."""
    array = image.permute(1, 2, 0).numpy()
    picture, file = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array), io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    with Image.open(file) as found:
        back = np.asarray(found)
    return torch.from_numpy(back.reshape(array.shape).copy()).permute(2, 0, 1)
