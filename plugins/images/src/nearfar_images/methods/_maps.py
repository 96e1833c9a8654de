"""Feature maps of an encoder, stage by stage.

Legend: B batch, C channels, H W pixels.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from nearfar.models import ConvNet
from nearfar_images.encoders import _torchvision_map


def stage_maps(encoder: nn.Module, x: Tensor) -> list[Tensor]:
    """The last map [B, d, h, w] of every resolution, from the finest to the coarsest.

    Args:
        encoder: an `Encoder` of this plugin, or a model of nearfar's, timm's or torchvision's by itself.
        x: images [B, C, H, W].

    Raises:
        TypeError: the model has no feature map.
    """
    model: Any = getattr(encoder, "model", encoder)
    if hasattr(model, "forward_intermediates"):
        maps = model.forward_intermediates(x, intermediates_only=True, output_fmt="NCHW", norm=True)
    else:
        maps = []
        for step in _steps(model):
            x = step(x)
            maps.append(x)
    return list({tuple(one.shape[2:]): one for one in maps}.values())


def _steps(model: Any) -> Any:
    if isinstance(model, ConvNet):
        return model.blocks
    if hasattr(model, "dense"):
        return [model.dense]
    steps = _torchvision_map(model)
    if steps is None:
        raise TypeError(f"encoder: expected one with feature maps, received {type(model).__name__}")
    return steps
