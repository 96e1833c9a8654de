"""Boxes in images: proposals, which of them are kept, jitter, and which of two images' boxes belong together.

A box is (x1, y1, x2, y2) in pixels, edges on whole numbers: an image spans [0, width] x [0, height].
Legend: B samples, N and M boxes, R and S boxes of two images, T tries, P pairs.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from nearfar.checks import expect, expect_choice
from nearfar.views.boxes import iou

Proposals = Callable[[np.ndarray], np.ndarray]
"""from an image uint8 [C, H, W] to boxes [N, 4], the most promising first"""

SCALES = (2 / 3, 1 / 2, 1 / 3, 1 / 4)
"""sides of the grid's squares as shares of the image's shorter side"""
TRIES = 200
AREA, RATIO, SHIFT, LEAST_IOU = (0.5, 2.0), (0.5, 2.0), 0.5, 0.5
"""of a jittered box: factor of the area, width over height, shift of the centre in sides, overlap with the first"""


# -- proposals ---------------------------------------------------------------------------------------------------------


def grid_boxes(image: np.ndarray) -> np.ndarray:
    """Squares of four sizes on a grid, each overlapping its neighbours by about half; large ones first.

    Args:
        image: uint8 [C, H, W].

    Returns:
        int64 [N, 4]; some 90 of a square image. Of one size every second place comes first, so that a list that is cut
        off still covers the image.
    """
    height, width = image.shape[1:]
    boxes: list[np.ndarray] = []
    for scale in SCALES:
        side = max(round(scale * min(height, width)), 1)
        starts = []
        for length in (width, height):
            steps = math.ceil((length - side) / (side / 2) - 1e-9)
            starts.append(np.linspace(0, length - side, steps + 1).round().astype(np.int64))
        x, y = (part.ravel() for part in np.meshgrid(*starts))
        placed = np.stack([x, y, x + side, y + side], 1)
        boxes += [placed[::2], placed[1::2]]
    return np.concatenate(boxes)


def selective_search(image: np.ndarray) -> np.ndarray:
    """Boxes of OpenCV's selective search in its fast mode, in its order.

    Args:
        image: uint8 [C, H, W], RGB or grey.

    Raises:
        ModuleNotFoundError: OpenCV is not installed, or without its contributed modules.

    Source: Uijlings et al., "Selective Search for Object Recognition", IJCV 2013.
    """
    if not has_selective_search():
        raise ModuleNotFoundError("selective search needs OpenCV's contributed modules; install them with: "
                                  "pip install opencv-contrib-python-headless")  # fmt: skip
    import cv2  # type: ignore[import-not-found]

    rows = np.repeat(image, 3, 0) if len(image) == 1 else image
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(rows[::-1].transpose(1, 2, 0)))
    search.switchToSelectiveSearchFast()
    found = np.asarray(search.process(), dtype=np.int64).reshape(-1, 4)
    return np.concatenate([found[:, :2], found[:, :2] + found[:, 2:]], 1)


def has_selective_search() -> bool:
    """Whether OpenCV with its contributed modules is installed."""
    if importlib.util.find_spec("cv2") is None:
        return False
    import cv2  # type: ignore[import-not-found]

    return hasattr(cv2, "ximgproc")


def proposals(name: str) -> tuple[str, Proposals]:
    """A maker of proposals by name, and the name of what was chosen.

    Args:
        name: "selective", "grid", or "auto": selective search where it is installed, else the grid.
    """
    expect_choice("proposals", name, ("auto", "selective", "grid"))
    if name == "auto":
        name = "selective" if has_selective_search() else "grid"
    return name, {"selective": selective_search, "grid": grid_boxes}[name]


# -- boxes -------------------------------------------------------------------------------------------------------------


def check_boxes(boxes: np.ndarray, size: tuple[int, int], where: str = "boxes") -> np.ndarray:
    """The boxes as int64 [N, 4], all of some area and inside of an image of (width, height).

    Raises:
        ValueError: no box, another shape, a box without area or outside of the image, which is named.
    """
    array = np.asarray(boxes)
    expect(array.ndim == 2 and array.shape[1:] == (4,) and len(array) > 0, where, "one box or more, shape [N, 4]",
           array.shape)  # fmt: skip
    expect(array.dtype.kind in "iuf" and bool(np.isfinite(array).all()), where, "finite numbers", array.dtype)
    array = array.round().astype(np.int64)
    good = (array[:, :2] >= 0).all(1) & (array[:, 2:] <= size).all(1) & (array[:, 2:] > array[:, :2]).all(1)
    expect(bool(good.all()), where, f"(x1, y1, x2, y2) of some area inside of {size[0]} x {size[1]} pixels",
           f"box {int((~good).argmax())}, {array[(~good).argmax()].tolist()}")  # fmt: skip
    return array


def keep_boxes(
    boxes: np.ndarray, size: tuple[int, int], *, least_side: int, most_ratio: float = 3.0, most_iou: float = 0.5,
    most: int = 100,
) -> np.ndarray:  # fmt: skip
    """The boxes that are kept of a list of proposals, in its order.

    Left out are boxes that are narrower or lower than `least_side`, longer than `most_ratio` times their other side,
    or that overlap one already kept by more than `most_iou`. Where none is left, the first of the list is kept.

    Args:
        boxes: [N, 4] inside of the image.
        size: width and height of the image.
        least_side: pixels.
        most_ratio: of the longer side to the shorter.
        most_iou: intersection over union.
        most: boxes kept.

    Returns:
        int64 [R, 4], from 1 to `most` of them.

    Raises:
        ValueError: an empty list, or a box outside of the image.

    Source: Xie et al., "Unsupervised Object-Level Representation Learning from Scene Images", NeurIPS 2021.
    """
    found = check_boxes(boxes, size)
    sides = (found[:, 2:] - found[:, :2]).astype(np.float64)
    fits = (sides.min(1) >= least_side) & (sides.max(1) <= most_ratio * sides.min(1))
    left, kept = torch.from_numpy(found[fits]), []
    while len(left) and len(kept) < most:  # the first that is left is kept, and what it overlaps goes with it
        kept.append(left[0].numpy())
        left = left[1:]
        left = left[iou(torch.from_numpy(kept[-1])[None], left)[0] <= most_iou]
    return np.stack(kept) if kept else found[:1]


def jitter(box: Int[Tensor, "B 4"], size: Int[Tensor, "B 2"], draws: Float[Tensor, "B T 4"]) -> Int[Tensor, "B 4"]:
    """A box near each box: of another area, another ratio and another place.

    The area is multiplied by U(0.5, 2), width over height of the new box is log-uniform in [0.5, 2], and the centre
    moves by U(-0.5, 0.5) of the old width and height. The first try that lies inside of the image and overlaps the old
    box by an IoU above 0.5 is taken; where none does, the old box stays.

    Args:
        box: [B, 4] inside of the images.
        size: width and height [B, 2] of the images.
        draws: uniform in [0, 1), four a try.

    Returns:
        int64 [B, 4].

    Source: Xie et al., "Unsupervised Object-Level Representation Learning from Scene Images", NeurIPS 2021; the ratio
    as in its code, of the new box and not relative to the old one.
    """
    old = box.double()
    side = old[:, 2:] - old[:, :2]
    area, ratio, x, y = draws.double().unbind(dim=2)
    area = side.prod(dim=1, keepdim=True) * (AREA[0] + (AREA[1] - AREA[0]) * area)
    ratio = RATIO[0] * (RATIO[1] / RATIO[0]) ** ratio
    new = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], dim=2)
    shift = SHIFT * (2 * torch.stack([x, y], dim=2) - 1) * side[:, None]
    corner = ((old[:, :2] + old[:, 2:])[:, None] / 2 + shift - new / 2).round()
    tries = torch.cat([corner, corner + new.round().clamp_min(1)], dim=2).long()
    inside = (tries[..., :2] >= 0).all(dim=2) & (tries[..., 2:] <= size[:, None]).all(dim=2)
    good = inside & (iou(tries, box[:, None])[..., 0] > LEAST_IOU)
    first = good.to(torch.uint8).argmax(dim=1)
    taken = tries[torch.arange(len(box), device=box.device), first]
    return torch.where(good.any(dim=1)[:, None], taken, box.long())


def top_pairs(similarity: Float[Tensor, "R S"], share: float = 0.1) -> Int[Tensor, "P 2"]:
    """The most similar pairs of the boxes of an image and those of another one, the most similar first.

    Args:
        similarity: [R, S].
        share: P = max(1, floor(share R)), at most all R S pairs.

    Returns:
        Numbers (row, column); among equals the first in reading order.

    Raises:
        ValueError: no box on either side.
    """
    expect(similarity.numel() > 0, "similarity", "one box or more of either image", tuple(similarity.shape))
    expect(0 < share <= 1, "share", "a number in (0, 1]", share)
    num = max(1, int(share * len(similarity) + 1e-9))
    flat = similarity.flatten().argsort(descending=True, stable=True)[:num]
    return torch.stack([flat // similarity.shape[1], flat % similarity.shape[1]], dim=1)


def cut(image: Tensor, box: list[int], side: int) -> Tensor:
    """The pixels of a box, uint8 [C, H, W] to [C, side, side], bilinear with antialiasing."""
    x1, y1, x2, y2 = box
    return F.interpolate(image[None, :, y1:y2, x1:x2], (side, side), mode="bilinear", antialias=True)[0]
