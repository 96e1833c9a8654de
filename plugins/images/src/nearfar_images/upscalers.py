"""Networks that enlarge pictures: residual blocks (EDSR) and blocks that weigh their channels (RCAN).

Both learn what is to be added to bicubic enlargement, and start there, since the last layer begins at zero.

Legend: B batch, C channels, h w of the small picture, s scale, D width.
"""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from nearfar.checks import expect, expect_choice

SCALES = (2, 3, 4)


def enlarge(low: Float[Tensor, "B C h w"], scale: int) -> Float[Tensor, "B C H W"]:
    """Bicubic enlargement (Keys, a = -0.75 as torch has it) by a whole number."""
    return functional.interpolate(low, scale_factor=float(scale), mode="bicubic", align_corners=False)


def reduce(high: Float[Tensor, "B C H W"], scale: int) -> Float[Tensor, "B C h w"]:
    """Bicubic reduction with antialiasing (Keys, a = -0.5, as Pillow has it) by a whole number that divides the sides.

    Raises:
        ValueError: a side that the scale does not divide.
    """
    height, width = high.shape[2:]
    fits = height % scale == 0 and width % scale == 0
    expect(fits, "high", f"sides that {scale} divides", f"{height} x {width} pixels")
    size = (height // scale, width // scale)
    return functional.interpolate(high, size=size, mode="bicubic", align_corners=False, antialias=True)


class Upscaler(nn.Module):
    """A trunk of blocks on the small picture, then pixel shuffles, added to bicubic enlargement.

    Args:
        trunk: from features [B, D, h, w] to features of the same shape.
        width: D.
        scale: 2, 3 or 4.
        channels: of pictures, 1 or 3.

    Raises:
        ValueError: another scale, or no width.
    """

    def __init__(self, trunk: nn.Module, width: int, scale: int, channels: int = 3) -> None:
        super().__init__()
        expect(scale in SCALES, "scale", "2, 3 or 4", scale)
        self.scale, self.channels = scale, channels
        self.head = _conv(channels, width)
        self.trunk = trunk
        self.tail = nn.Sequential(*_shuffles(width, scale), _conv(width, channels))
        last = self.tail[-1]
        assert isinstance(last, nn.Conv2d)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]

    def forward(self, low: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C H W"]:
        """Pictures s times as large; values in [0, 1] as they come in, not clamped."""
        fits = low.ndim == 4 and low.shape[1] == self.channels
        expect(fits, "low", f"shape [B, {self.channels}, h, w]", tuple(low.shape))
        x = self.head(low - 0.5)
        return self.tail(x + self.trunk(x)) + enlarge(low, self.scale)


class Residual(nn.Module):
    """x + r conv(relu(conv(x))), without normalisation."""

    def __init__(self, width: int, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor
        self.body = nn.Sequential(_conv(width, width), nn.ReLU(), _conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.factor * self.body(x)


class ChannelAttention(nn.Module):
    """x + y s(W2 relu(W1 mean(y))), y = conv(relu(conv(x))): a channel is weighed by its mean over the picture."""

    def __init__(self, width: int, reduction: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(width, width), nn.ReLU(), _conv(width, width))
        inner = max(width // reduction, 4)  # fewer may all be dead from the start
        self.weigh = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, inner, 1), nn.ReLU(), nn.Conv2d(inner, width, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return x + y * self.weigh(y)


class Group(nn.Module):
    """Blocks and a convolution with a bridge around them."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def edsr(scale: int, *, channels: int = 3, width: int = 64, blocks: int = 16, factor: float = 1.0) -> Upscaler:
    """Residual blocks without normalisation, as EDSR: 16 of width 64 its baseline, 32 of 256 (factor 0.1) in full.

    Source: Lim, Son, Kim, Nah, Lee, "Enhanced Deep Residual Networks for Single Image Super-Resolution", CVPRW 2017;
        without its mean colours, and with the bicubic bridge.
    """
    _positive(width=width, blocks=blocks)
    trunk = nn.Sequential(*(Residual(width, factor) for _ in range(blocks)), _conv(width, width))
    return Upscaler(trunk, width, scale, channels)


def rcan(
    scale: int, *, channels: int = 3, width: int = 64, blocks: int = 20, groups: int = 10, reduction: int = 16
) -> Upscaler:
    """Groups of blocks with channel attention, as RCAN: 10 groups of 20 blocks of width 64.

    Source: Zhang, Li, Li, Wang, Zhong, Fu, "Image Super-Resolution Using Very Deep Residual Channel Attention
        Networks", ECCV 2018; without its mean colours, and with the bicubic bridge.
    """
    _positive(width=width, blocks=blocks, groups=groups, reduction=reduction)

    def group() -> Group:
        return Group(*(ChannelAttention(width, reduction) for _ in range(blocks)), _conv(width, width))

    trunk = nn.Sequential(*(group() for _ in range(groups)), _conv(width, width))
    return Upscaler(trunk, width, scale, channels)


@torch.no_grad()
def tiled(network: nn.Module, low: Float[Tensor, "B C h w"], scale: int, *, tile: int = 0, overlap: int = 16) -> Tensor:
    """Enlarges pictures whole, or in tiles for networks whose memory would not suffice.

    Args:
        network: from [B, C, h, w] to [B, C, s h, s w].
        low: small pictures.
        scale: s.
        tile: side of a tile in pixels of the small picture; 0: whole.
        overlap: pixels around a tile that are computed and cut off again. From the network's reach on, tiles give what
            the whole gives, but for networks that average over the picture, as RCAN does.

    Raises:
        ValueError: the network gives another size; negative numbers.
    """
    expect(tile >= 0 and overlap >= 0, "tile, overlap", "0 or more", (tile, overlap))
    height, width = low.shape[2:]
    side = tile or max(height, width)
    rows = []
    for top in range(0, height, side):
        row = []
        for left in range(0, width, side):
            above, before = max(top - overlap, 0), max(left - overlap, 0)
            bottom, right = min(top + side, height), min(left + side, width)
            part = low[:, :, above : min(bottom + overlap, height), before : min(right + overlap, width)]
            made = network(part)
            check_size(made, part, scale)
            y, x = (top - above) * scale, (left - before) * scale
            row.append(made[:, :, y : y + (bottom - top) * scale, x : x + (right - left) * scale])
        rows.append(torch.cat(row, 3))
    return torch.cat(rows, 2)


def check_size(made: Tensor, low: Tensor, scale: int) -> None:
    """Raises ValueError unless a network gave pictures exactly `scale` times as large."""
    wanted = (*low.shape[:2], low.shape[2] * scale, low.shape[3] * scale)
    expect(tuple(made.shape) == wanted, "network", f"pictures {wanted} from {tuple(low.shape)} at scale {scale}",
           tuple(made.shape))  # fmt: skip


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def _shuffles(width: int, scale: int) -> list[nn.Module]:
    steps = {2: (2,), 3: (3,), 4: (2, 2)}[scale]
    return [layer for step in steps for layer in (_conv(width, step**2 * width), nn.PixelShuffle(step))]


def _positive(**values: int) -> None:
    for name, value in values.items():
        expect(value >= 1, name, "1 or more", value)


def build(kind: str, scale: int, channels: int, *, width: int, blocks: int, groups: int) -> Upscaler:
    """The network that a config names, "edsr" or "rcan"; `groups` counts for rcan alone."""
    expect_choice("network", kind, ("edsr", "rcan"))
    if kind == "edsr":
        return edsr(scale, channels=channels, width=width, blocks=blocks)
    return rcan(scale, channels=channels, width=width, blocks=blocks, groups=groups)


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Fills a network from a .safetensors file, of its own weights or of a run's, or from the folder of a run.

    Of a run's checkpoints the best counts, or the last where no score has chosen one.

    Raises:
        FileNotFoundError: no such file, or a folder without checkpoints.
        ValueError: no safetensors, or weights of another network.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from nearfar.train import Run

    place = Path(path).expanduser()
    if place.is_dir():
        run = Run(place)
        place = run.checkpoint("best" if run.best else "last") / "model.safetensors"
    expect(place.is_file(), "method.network.weights", "a run or a .safetensors file", path, FileNotFoundError)
    try:
        weights = load_file(place)
    except SafetensorError as error:
        raise ValueError(f"method.network.weights: expected a safetensors file, received {place}: {error}") from None
    own = {name.removeprefix("network."): w for name, w in weights.items() if name.startswith("network.")}
    try:
        network.load_state_dict(own or weights)
    except RuntimeError as error:
        raise ValueError(f"method.network.weights: {place} is of another network: {error}") from None
