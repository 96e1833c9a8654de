"""Gaussian blur with a width of its own for every sample, as products with banded matrices.

Shapes: B samples, C channels, S side.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from nearfar.checks import expect

_BLOCK = 32  # outputs a product makes: wide enough to be a fast one, narrow enough not to multiply many zeros


def kernel_size(side: int) -> int:
    """The odd number near a tenth of the side, at least 3."""
    return max(side // 10 | 1, 3)


def reach(kernel: int, max_sigma: float) -> int:
    """Pixels either side that matter: half the kernel, or four standard deviations of the widest blur if fewer."""
    return min(kernel // 2, max(math.ceil(4 * max_sigma), 1))


def gaussian_blur(
    image: Float[Tensor, "B C S T"], sigma: Float[Tensor, " B"], kernel: int, max_sigma: float = math.inf
) -> Float[Tensor, "B C S T"]:
    """Separable Gaussian blur with reflected borders.

    out[x] = Σ_d w_d in[x + d], w_d ∝ exp(-d² / 2σ²), |d| <= kernel / 2, along either axis.

    Args:
        image: [B, C, S, T].
        sigma: [B], standard deviations in pixels, > 0.
        kernel: odd size in pixels; half of it must be smaller than either side.
        max_sigma: no sigma is larger. The kernel is cut at four times this, which changes a pixel by less than 1e-3 of
            the range, and does not depend on the sigmas at hand, so that a sample's blur does not depend on its batch.

    Notes: a CPU multiplies blocks of 32 outputs by [32, 32 + kernel] matrices faster than it convolves channels one by
    one.
    """
    expect(kernel >= 1 and kernel % 2 == 1, "kernel", "an odd number", kernel)
    half = reach(kernel, max_sigma) if math.isfinite(max_sigma) else kernel // 2
    height, width = image.shape[2:]
    expect(half < min(height, width), "kernel", f"less than twice the side {min(height, width)}", kernel)
    weight = gaussian_weight(sigma, half)
    return separable(image, weight, weight)


def gaussian_weight(
    sigma: Float[Tensor, " B"], half: int, reaches: Int[Tensor, " B"] | None = None
) -> Float[Tensor, "B K"]:
    """Weights of 2 half + 1 pixels that sum to 1, w_d ∝ exp(-d² / 2σ²).

    Args:
        sigma: [B], standard deviations in pixels; 0 leaves the pixel alone.
        half: pixels either side.
        reaches: [B], a reach of every sample's own, at most `half`, beyond which its weights are 0.
    """
    offsets = torch.arange(-half, half + 1, device=sigma.device)
    energy = -0.5 * (offsets / sigma.clamp_min(1e-6)[:, None]) ** 2
    if reaches is not None:
        energy = energy.masked_fill(offsets.abs() > reaches[:, None], -math.inf)
    return torch.softmax(energy, dim=1)


def separable(
    image: Float[Tensor, "B C S T"], along_row: Float[Tensor, "B K"], along_column: Float[Tensor, "B K"]
) -> Float[Tensor, "B C S T"]:
    """Filters every sample by weights of its own, first along its rows, then along its columns; borders reflect.

    Args:
        image: [B, C, S, T].
        along_row: [B, K], K odd; pixels left to right.
        along_column: [B, K], top to bottom.

    Raises:
        ValueError: an even K, or half of it not smaller than a side.
    """
    size = along_row.shape[1]
    expect(size % 2 == 1 and along_column.shape[1] == size, "along_row, along_column", "as many weights, an odd number",
           (size, along_column.shape[1]))  # fmt: skip
    half = size // 2
    num, channels, height, width = image.shape
    expect(half < min(height, width), "along_row", f"fewer than {2 * min(height, width)} weights", size)
    padded = F.pad(image, (half, half, half, half), mode="reflect")
    across = padded.new_empty((num, channels, height + 2 * half, width))
    flat, source = across.view(num, -1, width), padded.view(num, -1, width + 2 * half)
    band = _band(along_row, half)
    for start in range(0, width, _BLOCK):
        count = min(_BLOCK, width - start)
        part = band[:, :count, : count + 2 * half].transpose(1, 2)
        flat[:, :, start : start + count] = source[:, :, start : start + count + 2 * half] @ part
    out = torch.empty_like(image)
    band = band if along_column is along_row else _band(along_column, half)
    for start in range(0, height, _BLOCK):
        count = min(_BLOCK, height - start)
        part = band[:, None, :count, : count + 2 * half]
        out[:, :, start : start + count] = part @ across[:, :, start : start + count + 2 * half]
    return out


def _band(weight_BK: Tensor, half: int) -> Tensor:
    """Matrices [B, 32, 32 + 2 half] that multiply a stretch of pixels to 32 filtered ones."""
    band = torch.zeros((len(weight_BK), _BLOCK, _BLOCK + 2 * half), device=weight_BK.device, dtype=weight_BK.dtype)
    rows = torch.arange(_BLOCK, device=weight_BK.device)[:, None]
    band[:, rows, rows + torch.arange(2 * half + 1, device=weight_BK.device)] = weight_BK[:, None]
    return band
