"""A small convolutional net for pictures of about 8 to 96 pixels.

Letters: B batch, C input channels, D features, H W pixels, h w positions of the feature map.
"""

from __future__ import annotations

import math
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from nearfar.checks import expect, expect_choice


class ConvNet(nn.Module):
    """Four blocks of 3x3 convolution, max-pool, normalisation and ReLU, then the mean over positions.

    Widths are (width, 2 width, 4 width, dim). The first three blocks halve the side (odd sides round up), so 32 pixels
    end at 4 x 4; the pool stands before the normalisation, where it saves three quarters of its work and changes
    little.

    Args:
        channels: of the pictures.
        width: channels of the first block.
        dim: features D, the channels of the last block.
        norm: "batch", or "group", whose rows do not depend on the rest of the batch, as exact caches need.

    Attributes:
        feature_dim: D.

    Notes:
        0.29M parameters and 12 million multiply-adds a view at the defaults, one channel and 32 pixels.
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
        self.blocks = nn.Sequential(
            *(_block(widths[i], widths[i + 1], pool=i < 3, norm=norm) for i in range(len(widths) - 1))
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D"]:
        return self.dense(x).mean((2, 3))

    def dense(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B D h w"]:
        """Features by position, one an 8 x 8 field of pixels."""
        expect(x.ndim == 4 and x.shape[1] == self.channels, "x", f"shape [B, {self.channels}, H, W]", tuple(x.shape))
        return self.blocks(x)


def _block(inputs: int, outputs: int, *, pool: bool, norm: str) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)]
    if pool:
        layers.append(nn.MaxPool2d(2, ceil_mode=True))
    layers.append(nn.BatchNorm2d(outputs) if norm == "batch" else nn.GroupNorm(math.gcd(outputs, 8), outputs))
    layers.append(nn.ReLU())
    return nn.Sequential(*layers)
