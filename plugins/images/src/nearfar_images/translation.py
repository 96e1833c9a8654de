"""Networks that turn pictures of one kind into another: a generator whose layers can be tapped, a judge of patches.

Legend: B images, C channels, H height, W width, P places, D width of projected features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nearfar.checks import expect

Padding = Literal["zeros", "reflect"]
STEP = 4
"""what the sides of pictures are multiples of: the generator halves them twice"""


class Down(nn.Module):
    """Halves a map [B, C, H, W] after a binomial blur (1 2 1), so that a shift by a pixel stays a shift."""

    def __init__(self) -> None:
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("kernel", (row[:, None] * row)[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.get_buffer("kernel").to(x.dtype).expand(x.shape[1], 1, 3, 3)
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), kernel, stride=2, groups=x.shape[1])


class Up(nn.Module):
    """Doubles a map with the weights 1 3 3 1 over 4 in either direction, which is bilinear interpolation."""

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class Block(nn.Module):
    """x + norm(conv(relu(norm(conv(x))))) with reflected borders."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_normed(width, width, 3, "reflect"), _conv(width, width, 3, "reflect", bias=False),
            nn.InstanceNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Generator(nn.Module):
    """Residual blocks between two halvings and two doublings, from pictures in [-1, 1] to pictures in [-1, 1].

    Layers are numbered from 0, the pixels themselves: 1 is the first convolution, 4 and 8 the convolutions before the
    halvings, 12 to 11 + num_blocks the residual blocks.

    Args:
        channels: of pictures, 1 or 3.
        width: channels of the first layer; twice and four times as many after the halvings.
        num_blocks: residual blocks.

    Attributes:
        num_taps: layers that `taps` knows, those before the doublings.

    Source: Johnson, Alahi, Fei-Fei, "Perceptual Losses for Real-Time Style Transfer", ECCV 2016; Zhang, "Making
        Convolutional Networks Shift-Invariant Again", ICML 2019.
    """

    def __init__(self, channels: int, *, width: int = 64, num_blocks: int = 9) -> None:
        super().__init__()
        for name, value in (("width", width), ("num_blocks", num_blocks)):
            expect(value >= 1, name, "1 or more", value)
        expect(channels in (1, 3), "channels", "1 or 3", channels)
        self.channels, self.num_taps = channels, 12 + num_blocks
        layers: list[nn.Module] = [nn.Identity(), *_normed(channels, width, 7, "reflect")]
        for k in (1, 2):
            layers += [*_normed(k * width, 2 * k * width, 3), Down()]
        layers += [Block(4 * width) for _ in range(num_blocks)]
        for k in (2, 1):
            layers += [Up(), *_normed(2 * k * width, k * width, 3)]
        layers += [_conv(width, channels, 7, "reflect"), nn.Tanh()]
        self.layers = nn.ModuleList(layers)
        initialise(self, 0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Translated pictures [B, C, H, W]."""
        self._check(x)
        for layer in self.layers:
            x = layer(x)
        return x

    def taps(self, x: Tensor, layers: Sequence[int]) -> list[Tensor]:
        """Maps [B, C_l, H_l, W_l] after the given layers, in ascending order; stops after the last."""
        self._check(x)
        found = []
        for number, layer in enumerate(self.layers[: max(layers) + 1]):
            x = layer(x)
            if number in layers:
                found.append(x)
        return found

    def _check(self, x: Tensor) -> None:
        expect(
            x.ndim == 4 and x.shape[1] == self.channels,
            "picture", f"shape [B, {self.channels}, H, W], for which the generator was built", tuple(x.shape),
        )  # fmt: skip
        height, width = x.shape[2:]
        fits = height % STEP == 0 and width % STEP == 0 and min(height, width) >= 2 * STEP
        expect(fits, "picture", f"sides that are multiples of {STEP}, from {2 * STEP} on", f"{height} x {width}")


class Score(nn.Module):
    """A convolution of 4 x 4 to one channel.

    Its weight [C, 4, 4] has no dimension of size 1, about whose stride DDP and oneDNN would disagree.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.empty(width, 4, 4)), nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight[None], self.bias, padding=1)


class PatchDiscriminator(nn.Module):
    """Scores of overlapping patches [B, 1, h, w] of pictures [B, C, H, W].

    Args:
        channels: of pictures.
        width: channels of the first layer; they double up to eight times as many.
        num_layers: halvings; with 3 a score sees 84 pixels, 70 but for the blurs.
        norm: instance normalisation; off with a penalty on gradients.

    Source: Isola, Zhu, Zhou, Efros, "Image-to-Image Translation with Conditional Adversarial Networks", CVPR 2017.
    """

    def __init__(self, channels: int, *, width: int = 64, num_layers: int = 3, norm: bool = True) -> None:
        super().__init__()
        for name, value in (("width", width), ("num_layers", num_layers)):
            expect(value >= 1, name, "1 or more", value)
        self.num_layers = num_layers
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, padding=1), nn.LeakyReLU(0.2), Down()]
        for k in range(1, num_layers + 1):
            before, after = width * 2 ** min(k - 1, 3), width * 2 ** min(k, 3)
            layers.append(nn.Conv2d(before, after, 4, padding=1, bias=not norm))
            layers += [nn.InstanceNorm2d(after)] if norm else []
            layers.append(nn.LeakyReLU(0.2))
            layers += [Down()] if k < num_layers else []
        layers.append(Score(width * 2 ** min(num_layers, 3)))
        self.layers = nn.Sequential(*layers)
        initialise(self, 0.02 if norm else 1.0)

    @property
    def least(self) -> int:
        """Smallest side of a picture whose last normalised map has two places a side."""
        return 3 * 2**self.num_layers

    def forward(self, x: Tensor) -> Tensor:
        side = min(x.shape[2:])
        expect(side >= self.least, "picture", f"{self.least} pixels a side for {self.num_layers} layers", side)
        return self.layers(x)


class PatchHeads(nn.Module):
    """One perceptron a layer, from its features at some places to vectors of one width.

    Args:
        widths: channels of the layers' maps, from a dry run.
        dim: D.
    """

    def __init__(self, widths: Sequence[int], dim: int = 256) -> None:
        super().__init__()
        expect(dim >= 1, "dim", "1 or more", dim)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(width, dim), nn.ReLU(), nn.Linear(dim, dim)) for width in widths
        )
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, maps: Sequence[Tensor], places: Sequence[Tensor]) -> list[Tensor]:
        """Vectors [B, P_l, D] of maps [B, C_l, H_l, W_l] at places [B, P_l], numbers below H_l W_l; not normalised."""
        found = []
        for head, x, place_BP in zip(self.heads, maps, places, strict=True):
            flat = x.flatten(2)
            found.append(head(flat.gather(2, place_BP[:, None].expand(-1, flat.shape[1], -1)).transpose(1, 2)))
        return found


def initialise(network: nn.Module, gain: float) -> None:
    """Xavier's normal weights times a gain, biases of zero."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_normal_(layer.weight, gain=gain)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, Score):
            nn.init.xavier_normal_(layer.weight[None], gain=gain)


def _conv(before: int, after: int, size: int, padding_mode: Padding = "zeros", *, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(before, after, size, padding=size // 2, padding_mode=padding_mode, bias=bias)


def _normed(before: int, after: int, size: int, padding_mode: Padding = "zeros") -> list[nn.Module]:
    """Without a bias, which the norm would take away again."""
    return [_conv(before, after, size, padding_mode, bias=False), nn.InstanceNorm2d(after), nn.ReLU()]
