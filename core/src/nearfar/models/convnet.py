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

    Widths are (width, 2 width, 4 width, dim). The first three blocks halve the side (odd sides round up), so 32 pixels
    end at 4 x 4: the first and third by the stride of their convolution, the second by a max-pool between convolution
    and normalisation.

    Args:
        channels: of the pictures.
        width: channels of the first block.
        dim: features D, the channels of the last block.
        norm: "batch", or "group", whose rows do not depend on the rest of the batch, as exact caches need.

    Attributes:
        feature_dim: D.

    Notes:
        0.24M parameters and 8 million multiply-adds a view at the defaults, one channel and 32 pixels. Activations are
        kept channels-last, which is faster on a CPU; parameters are stored as usual.
    """

    def __init__(
        self, channels: int, width: int = 32, dim: int = 128, *, norm: Literal["batch", "group"] = "batch"
    ) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("width", width), ("dim", dim)):
            expect(value >= 1, name, "1 or more", value)
        expect_choice("norm", norm, ("batch", "group"))
        self.channels, self.feature_dim = channels, dim
        widths = (channels, width, 2 * width, 4 * width, dim)
        halve = ("stride", "pool", "stride", "")
        self.blocks = nn.Sequential(*(_block(widths[i], widths[i + 1], halve[i], norm) for i in range(4)))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        return self.dense(x).mean((2, 3))

    def dense(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """Features by position, one an 8 x 8 field of pixels."""
        expect(x.ndim == 4 and x.shape[1] == self.channels, "x", f"shape [B, {self.channels}, H, W]", tuple(x.shape))
        # after the first block, since the order of one input channel's memory says nothing
        first, *rest = self.blocks
        x = first(x).contiguous(memory_format=torch.channels_last)
        for block in rest:
            x = block(x)
        return x


def _block(inputs: int, outputs: int, halve: str, norm: str) -> nn.Sequential:
    stride = 2 if halve == "stride" else 1
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)]
    if halve == "pool":
        layers.append(nn.MaxPool2d(2, ceil_mode=True))
    layers.append(nn.BatchNorm2d(outputs) if norm == "batch" else nn.GroupNorm(math.gcd(outputs, 8), outputs))
    layers.append(nn.ReLU())
    return nn.Sequential(*layers)
