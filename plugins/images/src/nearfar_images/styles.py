"""Handwritten digits in two styles: two domains to translate between that need no download.

Legend: N images, S side.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nearfar.config import DataConfig
from nearfar.data import ArraySource, Concat, Data, Source, digits, holdout

SIDE = 32
GROUND, INK = (45, 20, 110), (250, 205, 120)
"""colours of the second style"""
STROKE = 5
"""pixels of the maximum that thickens its strokes"""


def digit_styles(config: DataConfig) -> Data:
    """Grey digits, "a", and other digits whose thick strokes are orange on violet, "b"; [3, 32, 32] with labels.

    Samples of even place in scikit-learn's digits are a, the others b; `config.validation` of all is held out.
    """
    parts = holdout(digits(), config.validation)
    train, test = (
        Concat({"a": styled(part, "a", slice(0, None, 2)), "b": styled(part, "b", slice(1, None, 2))})
        for part in (parts.train, parts.test)
    )
    return Data(train, test, holdout=True)  # type: ignore[arg-type]  # labels and shape are read when asked for


def styled(source: Source, style: str, rows: slice = slice(None)) -> ArraySource:
    """Some digits of a source in one of the styles, with their labels."""
    small = np.stack([source[i]["image"] for i in range(len(source))])[rows]
    assert source.labels is not None
    grey = F.interpolate(torch.from_numpy(small).float(), size=(SIDE, SIDE), mode="bicubic", align_corners=False)
    grey = grey.clamp(0, 255)
    if style == "a":
        picture = grey.expand(-1, 3, -1, -1)
    else:
        ground, ink = (torch.tensor(c).float()[:, None, None] for c in (GROUND, INK))
        picture = painted(thick(grey / 255), ground, ink)
    pixels = picture.round().byte().numpy()
    return ArraySource(pixels, source.labels[rows], name=f"digits in style {style}", layout="nchw",
                       class_names=source.class_names)  # fmt: skip


def thick(stroke: Tensor) -> Tensor:
    """Strokes [N, 1, S, S] in [0, 1], wider by a maximum over neighbours."""
    return F.max_pool2d(stroke, STROKE, stride=1, padding=STROKE // 2)


def painted(stroke: Tensor, ground: Tensor, ink: Tensor) -> Tensor:
    """Pictures [N, 3, S, S] of strokes [N, 1, S, S] in [0, 1], between two colours [..., 3, 1, 1]."""
    return ground + (ink - ground) * stroke
