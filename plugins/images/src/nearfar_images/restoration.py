"""Sharper and blurrier versions of pictures, by draws that are told: what is near the truth and what is not quite.

Shapes: B pictures, C channels, H height, W width, K versions of each; values in [0, 1], in 256 steps where `quantise`
has been.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from nearfar.batch import Ragged
from nearfar.checks import expect
from nearfar.evaluate import Score, bootstrap, pictures
from nearfar.rng import Rng
from nearfar.views.blur import gaussian_weight, separable

KERNELS = (3, 5, 7, 9, 11)
"""sizes of the Gaussian blur"""


def quantise(image: Tensor) -> Tensor:
    """Clamped to [0, 1] and rounded to 8 bits, as if written to a file and read again."""
    return (image.clamp(0, 1) * 255).round() / 255


def crops(image: Tensor | Ragged, index: Tensor, rng: Rng, side: int) -> Tensor:
    """Random squares of uint8 pictures as they are, [B, C, S, S] in [0, 1], mirrored and turned at random.

    Args:
        image: uint8 [B, C, H, W], or Ragged of [C, H, W].
        index: [B], stable numbers of the pictures.
        rng: decides.
        side: S.

    Raises:
        ValueError: a picture smaller than the crop, which is named.
    """
    draw = rng.uniform(index, "restoration.crop", 5).tolist()
    found = []
    for i, (down, right, turn, flip, mirror) in enumerate(draw):
        height, width = image[i].shape[1:]
        expect(min(height, width) >= side, f"picture {int(index[i])}", f"at least {side} pixels a side (see "
               "--data.image-size)", f"{height} x {width}")  # fmt: skip
        top, left = int(down * (height - side + 1)), int(right * (width - side + 1))
        one = image[i][:, top : top + side, left : left + side]
        one = one.transpose(1, 2) if turn < 0.5 else one
        dims = [axis for axis, draws in ((1, flip), (2, mirror)) if draws < 0.5]
        found.append(one.flip(dims) if dims else one)
    return torch.stack(found).float() / 255


def smooth(image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
    """A light blur: 3 x 3 pixels of weight 1 around one of 5, over 13; at the border the nearest pixels repeat."""
    kernel = torch.ones(1, 1, 3, 3, dtype=image.dtype, device=image.device)
    kernel[:, :, 1, 1] = 5
    flat = functional.pad(image, (1, 1, 1, 1), mode="replicate").flatten(0, 1)[:, None]
    return functional.conv2d(flat, kernel / 13).view_as(image)


def sharpen(image: Float[Tensor, "B C H W"], factor: Float[Tensor, " B"]) -> Float[Tensor, "B C H W"]:
    """The light blur plus so many times what it took away, clamped to [0, 1]: S = blur(x) + a (x - blur(x)).

    Args:
        image: [B, C, H, W].
        factor: a [B], 0 or more; 1 leaves a picture as it is, less blurs it.

    Raises:
        ValueError: a negative or non-finite factor, or another number of them.
    """
    expect(factor.shape == (len(image),), "factor", f"shape [{len(image)}]", tuple(factor.shape))
    fits = bool((torch.isfinite(factor) & (factor >= 0)).all())
    expect(fits, "factor", "finite numbers of 0 or more", factor.tolist())
    blurred = smooth(image)
    return torch.lerp(blurred, image, factor.to(image.dtype)[:, None, None, None]).clamp(0, 1)


def blur(
    image: Float[Tensor, "B C H W"], sigma: Float[Tensor, "B 2"], kernel: Int[Tensor, "B 2"]
) -> Float[Tensor, "B C H W"]:
    """Gaussian blur with widths and kernels of every picture and axis; borders reflect.

    Args:
        image: [B, C, H, W].
        sigma: [B, 2], standard deviations along rows and along columns, 0 or more.
        kernel: [B, 2], odd sizes from 1 to 11 beyond half of which nothing counts.

    Raises:
        ValueError: a negative sigma, an even or larger kernel, or pictures too small for the largest.
    """
    shape = (len(image), 2)
    for name, values in (("sigma", sigma), ("kernel", kernel)):
        expect(tuple(values.shape) == shape, name, f"shape {shape}", tuple(values.shape))
    expect(bool((sigma >= 0).all()), "sigma", "0 or more", sigma.tolist())
    fits = bool(((kernel % 2 == 1) & (kernel >= 1) & (kernel <= KERNELS[-1])).all())
    expect(fits, "kernel", f"odd numbers from 1 to {KERNELS[-1]}", kernel.tolist())
    half = KERNELS[-1] // 2
    rows, columns = (gaussian_weight(sigma[:, k].to(image.dtype), half, kernel[:, k] // 2) for k in (0, 1))
    return separable(image, rows, columns)


def sharpened(
    image: Float[Tensor, "B C H W"], index: Int[Tensor, " B"], rng: Rng, num: int, factors: tuple[float, float]
) -> Float[Tensor, "B K C H W"]:
    """So many sharpened versions of every picture, their factors drawn evenly from a range, quantised."""
    low, high = factors
    expect(0 <= low <= high, "factors", "two numbers, 0 <= low <= high", factors)
    draw_BK = rng.uniform(index, "restoration.sharpen", num) * (high - low) + low
    flat = image.repeat_interleave(num, 0)
    return quantise(sharpen(flat, draw_BK.flatten())).unflatten(0, (-1, num))


def blurred(
    image: Float[Tensor, "B C H W"], index: Int[Tensor, " B"], rng: Rng, num: int, sigmas: tuple[float, float]
) -> Float[Tensor, "B K C H W"]:
    """So many blurred versions of every picture, kernel and width of either axis drawn evenly, quantised."""
    low, high = sigmas
    expect(0 <= low <= high, "sigmas", "two numbers, 0 <= low <= high", sigmas)
    draw = rng.uniform(index, "restoration.blur", 4 * num).view(-1, 2, 2)  # version by version
    sigma = draw[:, 0] * (high - low) + low
    kernel = torch.tensor(KERNELS, device=image.device)[(draw[:, 1] * len(KERNELS)).long()]
    flat = image.repeat_interleave(num, 0)
    return quantise(blur(flat, sigma, kernel)).unflatten(0, (-1, num))


def compare(image: Float[Tensor, "1 C H W"], truth: Float[Tensor, "1 C H W"], *, border: int = 0) -> dict[str, float]:
    """How near one restored picture comes to the true one, once it is quantised; even sides.

    Args:
        image: [1, C, H, W].
        truth: the same shape.
        border: pixels at every side that do not count.

    Returns:
        PSNR and SSIM of luma (`psnr_y`, `ssim_y`) and of all channels (`psnr`, `ssim`); of luma the errors of fine
        detail and of edges (`high_band_error`, `edge_error`), which a picture of one colour lacks. PSNR is 100 at most.
    """
    expect(image.shape == truth.shape, "image", f"the size of the true picture, {tuple(truth.shape)}",
           tuple(image.shape))  # fmt: skip
    height, width = image.shape[2:]
    fits = min(height, width) - 2 * border >= pictures.WINDOW
    expect(fits, "image", f"at least {pictures.WINDOW + 2 * border} pixels a side", f"{height} x {width}")
    inside = slice(border, height - border), slice(border, width - border)
    image, truth = quantise(image)[:, :, inside[0], inside[1]], truth[:, :, inside[0], inside[1]]
    y, true_y = pictures.luma(image), pictures.luma(truth)
    found = {
        "psnr_y": pictures.psnr(y, true_y), "ssim_y": pictures.ssim(y, true_y),
        "psnr": pictures.psnr(image, truth), "ssim": pictures.ssim(image, truth),
    }  # fmt: skip
    if float(true_y.amax() - true_y.amin()) > 0:
        found["high_band_error"] = pictures.high_band_error(y, true_y)
        found["edge_error"] = pictures.edge_error(y, true_y)
    return {name: min(float(value), 100.0) for name, value in found.items()}


def averaged(rows: Sequence[Mapping[str, float]]) -> dict[str, Score]:
    """Means over pictures with bootstrap intervals, each over the pictures that have the value."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: bootstrap(torch.tensor([row[name] for row in rows if name in row])) for name in names}
