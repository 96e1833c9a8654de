"""A small convolutional net for pictures of about 8 to 96 pixels.

Letters: B batch, C input channels, D features, H W pixels, h w positions of the feature map.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from nearfar.checks import expect, expect_choice


class ConvNet(nn.Module):
    """Four blocks of 3x3 convolution, normalisation and ReLU, then the mean over positions.

    Widths are (width, 2 width, 4 width, dim). Each convolution halves the side (odd sides round up), so 32 pixels end
    at 2 x 2; with `field=8` the last one keeps it, for maps twice as fine.

    Args:
        channels: of the pictures.
        width: channels of the first block.
        dim: features D, the channels of the last block.
        field: pixels from one position of the feature map to the next, 16 or 8.
        norm: "batch", or "group", whose rows do not depend on the rest of the batch, as exact caches need.

    Attributes:
        feature_dim: D.

    Notes:
        0.24M parameters and 3 million multiply-adds a view at the defaults, one channel and 32 pixels. Activations are
        kept channels-last, which is faster on a CPU; parameters are stored as usual.
    """

    def __init__(
        self, channels: int, width: int = 32, dim: int = 128, *, field: Literal[8, 16] = 16,
        norm: Literal["batch", "group"] = "batch",
    ) -> None:  # fmt: skip
        super().__init__()
        for name, value in (("channels", channels), ("width", width), ("dim", dim)):
            expect(value >= 1, name, "1 or more", value)
        expect(field in (8, 16), "field", "8 or 16", field)
        expect_choice("norm", norm, ("batch", "group"))
        self.channels, self.feature_dim = channels, dim
        widths = (channels, width, 2 * width, 4 * width, dim)
        strides = (2, 2, 2, field // 8)
        self.blocks = nn.Sequential(*(_block(widths[i], widths[i + 1], strides[i], norm) for i in range(4)))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        return self.dense(x).mean((2, 3))

    def dense(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """Features by position, one a field of `field` x `field` pixels."""
        expect(x.ndim == 4 and x.shape[1] == self.channels, "x", f"shape [B, {self.channels}, H, W]", tuple(x.shape))
        # after the first block, since the order of one input channel's memory says nothing
        first, *rest = self.blocks
        x = first(x).contiguous(memory_format=torch.channels_last)
        for block in rest:
            x = block(x)
        return x


def _block(inputs: int, outputs: int, stride: int, norm: str) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs) if norm == "batch" else nn.GroupNorm(math.gcd(outputs, 8), outputs),
        nn.ReLU(),
    )
