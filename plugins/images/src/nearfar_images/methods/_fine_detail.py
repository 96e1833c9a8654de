"""A discriminator of fine detail, whose inner maps are an embedding that can be frozen for a pass.

Legend: B pictures, C channels, H W pixels, W0 first width, R logits of a picture.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from nearfar.checks import expect
from nearfar.wavelet import haar_edges

NUM_LAYERS, GRID, SLOPE = 8, 4, 0.2


class FineDetail(nn.Module):
    """Haar's bands of edges, eight layers of convolution and batch norm, and 4 x 4 logits.

    Widths are W0, W0, 2 W0, 2 W0, 4 W0, 4 W0, 8 W0, 8 W0; every second layer halves the side.

    Args:
        channels: of pictures.
        width: W0.
        bias: of the last layer; without one where a loss only asks how real and fake differ, which no bias changes.

    Raises:
        ValueError: odd sides, another number of channels, an unknown layer.
    """

    def __init__(self, channels: int = 3, width: int = 64, bias: bool = True) -> None:
        super().__init__()
        expect(width >= 1, "width", "1 or more", width)
        self.channels = channels
        widths = [3 * channels, *(width * 2 ** (k // 2) for k in range(NUM_LAYERS))]
        self.layers = nn.ModuleList(Layer(widths[k], widths[k + 1], 1 + k % 2) for k in range(NUM_LAYERS))
        self.head = nn.Conv2d(widths[-1], 1, 1, bias=bias)

    def forward(self, image: Float[Tensor, "B C H W"]) -> Float[Tensor, "B R"]:
        """Logits [B, 16] of patches, high for real detail; normalised by the batch in training."""
        x = self._enter(image)
        for layer in self.layers:
            x = functional.leaky_relu(layer(x), SLOPE)
        return self.head(functional.adaptive_avg_pool2d(x, GRID)).flatten(1)

    def maps(self, image: Float[Tensor, "B C H W"], layers: Sequence[int]) -> list[Tensor]:
        """Maps after the batch norms of the layers named (from 0), before their activations.

        As a fixed function: the weights get no gradient and batch norms use their running statistics, whatever mode
        the module is in; the gradient flows to the pictures.
        """
        expect(bool(layers) and all(0 <= k < NUM_LAYERS for k in layers), "layers", f"numbers from 0 to "
               f"{NUM_LAYERS - 1}", tuple(layers))  # fmt: skip
        x, found = self._enter(image), {}
        for k, layer in enumerate(self.layers[: max(layers) + 1]):
            x = layer(x, fixed=True)
            found[k] = x
            x = functional.leaky_relu(x, SLOPE)
        return [found[k] for k in layers]

    def _enter(self, image: Tensor) -> Tensor:
        fits = image.ndim == 4 and image.shape[1] == self.channels
        expect(fits, "image", f"shape [B, {self.channels}, H, W]", tuple(image.shape))
        return haar_edges(image)


class Layer(nn.Module):
    """A convolution of 3 x 3 without bias, and batch norm."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor, fixed: bool = False) -> Tensor:
        if not fixed:
            return self.norm(self.conv(x))
        x = functional.conv2d(x, self.conv.weight.detach(), None, self.stride, 1)
        norm, mean, var = self.norm, self.norm.running_mean, self.norm.running_var
        return functional.batch_norm(x, mean, var, norm.weight.detach(), norm.bias.detach(), False, 0.0, norm.eps)
