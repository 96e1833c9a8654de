"""Where views are cut and how their pixels are found: random crops, flips and affine maps, and resampling.

Shapes: B samples, C channels, H and W of the source, S side of the view.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from nearfar.batch import Ragged
from nearfar.config import ImageViewConfig
from nearfar.rng import Rng
from nearfar.views.geometry import Geometry
from nearfar.views.mix import symmetric_beta

_TRIES = 10
_DENSE = 2048  # view side times source side up to which one batched product beats an interpolation a sample on a CPU


def is_affine(config: ImageViewConfig) -> bool:
    """Whether views are more than a crop and flips."""
    return config.zoom != (1.0, 1.0) or max(config.rotate, config.aspect, config.shear, config.shift) > 0


def crops(config: ImageViewConfig, source: Tensor, index: Tensor, rng: Rng, *, centred: bool = False) -> Tensor:
    """Boxes [B, 4] in whole pixels, distributed as in Inception-style random resized crops.

    Ten times an area and a ratio are drawn, and the first box that fits is placed uniformly; where none fits, the crop
    is the largest central one whose ratio is within `crop_ratio`. A `centred` one is placed by its centre, drawn within
    `centre_box`, and moved back where it would leave the image (after Peng et al., ContrastiveCrop, CVPR 2022).
    """
    u = rng.uniform(index, "views.crop", 2 * _TRIES + 2)
    width, height = source.to(torch.float32).unbind(dim=1)
    low, high = config.crop_scale
    area = (width * height)[:, None] * (low + (high - low) * u[:, :_TRIES])
    low, high = (math.log(ratio) for ratio in config.crop_ratio)
    ratio = torch.exp(low + (high - low) * u[:, _TRIES : 2 * _TRIES])
    tries = torch.stack([(area * ratio).sqrt().round(), (area / ratio).sqrt().round()], dim=-1)
    fits = ((tries > 0) & (tries <= source[:, None])).all(dim=-1)
    first = fits.to(torch.uint8).argmax(dim=1)
    drawn = tries[torch.arange(len(index), device=index.device), first]
    whole = torch.stack(
        [
            torch.minimum(width, (height * config.crop_ratio[1]).round()),
            torch.minimum(height, (width / config.crop_ratio[0]).round()),
        ],
        dim=1,
    ).clamp_min(1)
    found = fits.any(dim=1, keepdim=True)
    side = torch.where(found, drawn, whole)
    room = source - side
    if centred:
        low, high = config.centre_box
        axes = [symmetric_beta(index, rng, config.centre_beta, f"views.centre.{axis}") for axis in "xy"]
        centre = (low + (high - low) * torch.stack(axes, dim=1)) * source
        corner = torch.minimum((centre - side / 2).round().clamp_min(0), room)
        return torch.cat([corner, corner + side], dim=1)
    corner = torch.where(found, (u[:, -2:] * (room + 1)).floor(), (room / 2).floor())
    return torch.cat([corner, corner + side], dim=1)


def draw(
    config: ImageViewConfig, source: Tensor, size: int, index: Tensor, rng: Rng, *, centred: bool = False
) -> Geometry:
    """The geometry of one random view of every sample.

    The content of the crop is scaled, sheared, rotated and shifted about the view's centre, then flipped.

    Args:
        source: [B, 2] width and height.
        size: side of the view.
        index: [B] stable numbers.
        centred: place crops by their centres, see `crops`.
    """
    box = crops(config, source, index, rng, centred=centred)
    u = rng.uniform(index, "views.place", 8)
    flip, vertical = u[:, 0] < config.flip, u[:, 1] < config.vertical_flip
    zero, one = torch.zeros_like(u[:, 0]), torch.ones_like(u[:, 0])

    def matrix(*entries: Tensor) -> Tensor:
        return torch.stack([*entries, zero, zero, one], dim=1).view(-1, 3, 3)

    scale = (box[:, 2:] - box[:, :2]) / size
    whole = matrix(scale[:, 0], zero, box[:, 0], zero, scale[:, 1], box[:, 1])
    if is_affine(config):
        angle, aspect, shear = config.rotate * (2 * u[:, 2] - 1), config.aspect * (u[:, 4] - 0.5), 2 * u[:, 5] - 1
        zoom = config.zoom[0] + (config.zoom[1] - config.zoom[0]) * u[:, 3]
        cos, sin, half = angle.cos(), angle.sin(), one * (size / 2)
        shift = half + (2 * u[:, 6:] - 1).mul(config.shift * size).T
        # The inverse of: centre, scale, shear, rotate, back and shifted; read from the view towards the crop.
        whole = whole @ matrix((-aspect).exp() / zoom, zero, half, zero, aspect.exp() / zoom, half)
        whole = whole @ matrix(one, -config.shear * shear, zero, zero, one, zero)
        whole = whole @ matrix(cos, sin, zero, -sin, cos, zero) @ matrix(one, zero, -shift[0], zero, one, -shift[1])
    sign_x, sign_y = 1 - 2 * flip.float(), 1 - 2 * vertical.float()
    whole = whole @ matrix(sign_x, zero, flip * float(size), zero, sign_y, vertical * float(size))
    if is_affine(config):
        corners = torch.tensor([[0, 0, 1], [size, 0, 1], [0, size, 1], [size, size, 1]], device=u.device, dtype=u.dtype)
        seen = corners @ whole[:, :2].transpose(1, 2)
        box = torch.cat([seen.amin(dim=1), seen.amax(dim=1)], dim=1)
    return Geometry(whole[:, :2].contiguous(), flip, vertical, box, source, size)


def resample(image: Tensor | Ragged, geometry: Geometry, rows: slice, affine: bool) -> Tensor:
    """The pixels of some rows' views, float32 [b, C, S, S] in [0, 255].

    Crops are resized bilinearly with antialiasing. Affine views are sampled bilinearly, black outside of the source;
    where they shrink their source twofold or more it is averaged over whole pixels first.
    """
    part, size = geometry[rows], geometry.size
    if isinstance(image, Ragged):
        items = [image[i] for i in range(rows.start, rows.stop)]
        if affine:
            return torch.cat([_sample(item[None], part[i : i + 1]) for i, item in enumerate(items)])
        return _each(items, part)
    if affine:
        return _sample(image[rows], part)
    if image.device.type == "cpu" and size * max(image.shape[2:]) > _DENSE:
        return _each(list(image[rows]), part)
    return _dense(image[rows], part)


def _each(items: list[Tensor], geometry: Geometry) -> Tensor:
    """One antialiased interpolation a sample; on a CPU in uint8, its fastest form."""
    size = geometry.size
    out = items[0].new_empty((len(items), len(items[0]), size, size), dtype=torch.float32)
    boxes, flips, verticals = geometry.box.int().tolist(), geometry.flip.tolist(), geometry.vertical_flip.tolist()
    for i, (item, (x1, y1, x2, y2)) in enumerate(zip(items, boxes, strict=True)):
        crop = item[None, :, y1:y2, x1:x2]
        if crop.device.type != "cpu":  # uint8 is resized on a CPU only
            crop = crop.float()
        view = F.interpolate(crop, (size, size), mode="bilinear", antialias=True)[0]
        axes = [axis for axis, mirrored in ((2, flips[i]), (1, verticals[i])) if mirrored]
        out[i] = view.flip(axes) if axes else view
    return out


def _dense(image: Tensor, geometry: Geometry) -> Tensor:
    """The same for a whole batch, as one matrix product an axis."""
    num, channels, height, width = image.shape
    box, size = geometry.box, geometry.size
    across = _weights(box[:, 0], box[:, 2], geometry.flip, width, size)
    down = _weights(box[:, 1], box[:, 3], geometry.vertical_flip, height, size)
    x = torch.bmm(image.float().view(num, channels * height, width), across.transpose(1, 2))
    return torch.matmul(down[:, None], x.view(num, channels, height, size))


def _weights(start: Tensor, stop: Tensor, mirrored: Tensor, num_pixels: int, size: int) -> Tensor:
    """Antialiased linear weights [B, S, n] of the pixels of one axis; rows sum to one.

    A triangle about each view pixel's place in the source, as wide as the larger of both pixels, cut off at the crop.
    """
    scale = (stop - start) / size
    place = torch.arange(size, device=start.device) + 0.5
    place = torch.where(mirrored[:, None], size - place, place)
    centre = start[:, None] + place * scale[:, None]
    pixel = torch.arange(num_pixels, device=start.device) + 0.5
    weight = (pixel - centre[:, :, None]).abs_().div_(scale.clamp_min(1)[:, None, None]).neg_().add_(1).clamp_min_(0)
    weight *= ((pixel > start[:, None]) & (pixel < stop[:, None]))[:, None]
    return weight.div_(weight.sum(dim=2, keepdim=True))


def _sample(image: Tensor, geometry: Geometry) -> Tensor:
    """Bilinear samples at the places of an affine map."""
    num, channels, height, width = image.shape
    size = geometry.size
    linear = geometry.matrix[:, :, :2]
    shrink = (linear.det().abs().sqrt() + 1e-4).int().clamp_min_(1)  # source pixels a view pixel
    out = image.new_empty((num, channels, size, size), dtype=torch.float32)
    to_unit = torch.tensor([width, height], device=image.device, dtype=torch.float32)[:, None]
    # From [-1, 1] over the view to its pixels, to the source's, to [-1, 1] over the source.
    centre = geometry.matrix @ geometry.matrix.new_tensor([[size], [size], [2]])
    theta = torch.cat([linear * (size / to_unit), centre / to_unit - 1], dim=2)
    for factor in shrink.unique().tolist():
        chosen = (shrink == factor).nonzero()[:, 0]
        pixels = image if len(chosen) == num else image[chosen]
        pixels = pixels.float()
        if factor > 1:
            pixels = F.interpolate(pixels, (max(height // factor, 1), max(width // factor, 1)), mode="area")
        grid = F.affine_grid(theta[chosen], [len(chosen), channels, size, size], align_corners=False)
        out[chosen] = F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return out
