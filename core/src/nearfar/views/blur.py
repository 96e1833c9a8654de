"""Gaussian blur with a width of its own for every sample, as products with banded matrices.

Shapes: B samples, C channels, S side.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
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
    offsets = torch.arange(-half, half + 1, device=image.device)
    weight = torch.softmax(-0.5 * (offsets / sigma.clamp_min(1e-6)[:, None]) ** 2, dim=1)
    band = torch.zeros((len(image), _BLOCK, _BLOCK + 2 * half), device=image.device)
    rows = torch.arange(_BLOCK, device=image.device)[:, None]
    band[:, rows, rows + torch.arange(2 * half + 1, device=image.device)] = weight[:, None]
    padded = F.pad(image, (half, half, half, half), mode="reflect")
    num, channels = image.shape[:2]
    across = padded.new_empty((num, channels, height + 2 * half, width))
    flat, source = across.view(num, -1, width), padded.view(num, -1, width + 2 * half)
    for start in range(0, width, _BLOCK):
        count = min(_BLOCK, width - start)
        part = band[:, :count, : count + 2 * half].transpose(1, 2)
        flat[:, :, start : start + count] = source[:, :, start : start + count + 2 * half] @ part
    out = torch.empty_like(image)
    for start in range(0, height, _BLOCK):
        count = min(_BLOCK, height - start)
        part = band[:, None, :count, : count + 2 * half]
        out[:, :, start : start + count] = part @ across[:, :, start : start + count + 2 * half]
    return out
