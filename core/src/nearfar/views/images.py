"""Random views of images, made for a whole batch on the device it is on.

Shapes: B samples, C channels, H and W of the source, S side of a view.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from nearfar.batch import Ragged, View
from nearfar.checks import expect
from nearfar.config import ImageViewConfig
from nearfar.rng import Rng
from nearfar.views import colour as colours
from nearfar.views import spatial
from nearfar.views.blur import gaussian_blur, kernel_size, reach

_CHUNK, _CHUNK_DEVICE = 1 << 20, 1 << 27  # values worked on at a time: what a CPU's cache holds; what a GPU spares


class ImageViews:
    """Makes views of uint8 images: resample, jitter, grey, blur, solarise, gain, noise, normalise, in this order.

    Args:
        config: what is drawn, and how often.
        size: side in pixels of the square that `plain` gives, and of views for which the config names no other.
        channels: 1 or 3, of the views. A grey source is repeated; of a coloured one the luma is taken (ITU-R 601).

    Attributes:
        view_size: side of the global views.
        local: the maker of the local views, of a size and crop of their own; None without them.

    Raises:
        ValueError: the config's mean does not fit `channels`, or the blur does not fit `size`.

    Notes: a view is a function of (rng, index) and its image: on one thread the same bits in whatever batch, on several
    the same up to the order in which a mean is summed (2e-6). Colour takes the fast or the exact path of
    `nearfar.views.colour`. A crop without affine parts is resized with antialiasing; with them (rotate, zoom, aspect,
    shear, shift) one bilinear sampling does crop and map at once, black outside of the source. On a CPU uint8 is kept
    until colours are touched.
    """

    def __init__(self, config: ImageViewConfig, size: int, channels: int) -> None:
        expect(size >= 1, "size", "1 pixel or more", size)
        expect(channels in (1, 3), "channels", "1 or 3", channels)
        expect(len(config.mean) in (0, channels), "views.mean", f"none or {channels} values", config.mean)
        self.config, self.size, self.channels = config, size, channels
        self.view_size = config.global_size or size
        self.kernel = config.blur_kernel or kernel_size(self.view_size)
        half = reach(self.kernel, config.blur_sigma[1])
        fits = config.blur == 0 or half < self.view_size
        expect(fits, "views.blur_kernel", f"a reach below {self.view_size} pixels", half)
        self.local: ImageViews | None = None
        if config.local_views:
            side = config.local_size or (self.view_size + 1) // 2
            small = dataclasses.replace(
                config, crop_scale=config.local_scale, global_size=0, local_views=0, centred_views=0
            )
            self.local = ImageViews(small, side, channels)

    @torch.no_grad()
    def __call__(self, image: Tensor | Ragged, index: Tensor, rng: Rng, *, first_view: int = 0) -> list[View]:
        """Random views of a batch.

        Args:
            image: uint8 [B, C, H, W], or Ragged of [C, H, W] of several sizes.
            index: [B] stable numbers of the samples.
            rng: view v is drawn with `rng.at(view=first_view + v)`.
            first_view: number of the first view, where others of the same samples were drawn before.

        Returns:
            `num_views` views of float32 [B, channels, S, S] and role "global", then `local_views` smaller ones of role
            "local"; channels-last in memory where there are three.

        Raises:
            TypeError: the image is not uint8, or the index not whole.
            ValueError: a shape that does not fit, or no samples.
        """
        source = _sizes(image)
        expect(index.shape == (len(source),), "index", f"shape [{len(source)}]", tuple(index.shape))
        index = index.to(source.device)
        first = self.config.num_views
        with torch.autocast(source.device.type, enabled=False):
            centred = self.config.centred_views
            found = [
                self._view(image, source, index, rng.at(view=first_view + v), "global", centred=v < centred)
                for v in range(first)
            ]
            if self.local is not None:
                numbers = range(first_view + first, first_view + first + self.config.local_views)
                found += [self.local._view(image, source, index, rng.at(view=v), "local") for v in numbers]
        return found

    @torch.no_grad()
    def plain(self, image: Tensor | Ragged) -> Float[Tensor, "B C S S"]:
        """The batch as evaluation sees it: the centre, normalised.

        The shorter side is resized to `size`, from 96 pixels on to 8/7 of it, and the middle is cut out.
        """
        source = _sizes(image)
        short = round(self.size * 8 / 7) if self.size >= 96 else self.size
        with torch.autocast(source.device.type, enabled=False):
            if isinstance(image, Ragged):
                centre = torch.cat([_centre(image[i][None], short, self.size) for i in range(len(image))])
            else:
                centre = _centre(image, short, self.size)
            out = self._empty(len(source), self.size, source.device)
            for rows in self._chunks(centre):
                out[rows] = self._normalised(self._convert(centre[rows].float() / 255))
        return out

    def _view(
        self, image: Tensor | Ragged, source: Tensor, index: Tensor, rng: Rng, role: str, *, centred: bool = False
    ) -> View:
        geometry = spatial.draw(self.config, source, self.view_size, index, rng, centred=centred)
        colour = colours.draw(self.config, index, rng)
        affine = spatial.is_affine(self.config)
        out = self._empty(len(index), self.view_size, index.device)
        for rows in self._chunks(image):
            pixels = spatial.resample(image, geometry, rows, affine)
            paint = self._exact if self.config.exact_colour else self._fast
            view = paint(pixels, colour[rows])
            if self.config.noise > 0:
                noise = rng.normal(index[rows], "views.noise", view[0].numel()).view_as(view)
                view += noise * (self.config.noise / self._std(view))
            out[rows] = view
        return View(out, geometry, role)

    def _fast(self, pixels: Tensor, colour: colours.Colour) -> Tensor:
        mean = pixels.mean(dim=(2, 3)) / 255
        self._blur(pixels, colour)
        matrix, offset = colours.affine(colour, pixels.shape[1], self.channels, mean)
        middle, std = self._mean(offset)[..., 0], self._std(offset)[..., 0]
        view = torch.baddbmm((offset - middle) / std, matrix / (255 * std), pixels.flatten(2))
        low, high = -middle / std, (colour.gain[:, None, None] - middle) / std
        if self.config.jitter > 0:
            view.clamp_(low, high)
        rows = self._rows(self.config.solarize, colour.solarize)
        if len(rows):
            view[rows] = torch.where(2 * view[rows] >= low + high[rows], low + high[rows] - view[rows], view[rows])
        return view.unflatten(2, pixels.shape[2:])

    def _exact(self, pixels: Tensor, colour: colours.Colour) -> Tensor:
        view = colours.exact(self._convert(pixels / 255), colour)
        self._blur(view, colour)
        rows = self._rows(self.config.solarize, colour.solarize)
        if len(rows):
            view[rows] = torch.where(view[rows] >= 0.5, 1 - view[rows], view[rows])
        return self._normalised(view * colour.gain[:, None, None, None])

    def _blur(self, pixels: Tensor, colour: colours.Colour) -> None:
        rows = self._rows(self.config.blur, colour.sigma > 0)
        if len(rows):
            pixels[rows] = gaussian_blur(pixels[rows], colour.sigma[rows], self.kernel, self.config.blur_sigma[1])

    @staticmethod
    def _rows(probability: float, chosen: Tensor) -> Tensor:
        """Numbers of the chosen samples; a step that is off costs no look at the device."""
        return chosen.nonzero()[:, 0] if probability > 0 else chosen[:0].nonzero()[:, 0]

    def _convert(self, pixels: Tensor) -> Tensor:
        """[B, C, S, S] with the views' number of channels."""
        if pixels.shape[1] == self.channels:
            return pixels
        return colours.luma(pixels).expand(-1, self.channels, -1, -1)

    def _normalised(self, view: Tensor) -> Tensor:
        return (view - self._mean(view)) / self._std(view) if self.config.mean else view

    def _mean(self, like: Tensor) -> Tensor:
        return like.new_tensor(self.config.mean or (0.0,) * self.channels)[:, None, None]

    def _std(self, like: Tensor) -> Tensor:
        return like.new_tensor(self.config.std or (1.0,) * self.channels)[:, None, None]

    def _empty(self, num: int, side: int, device: torch.device) -> Tensor:
        layout = torch.channels_last if self.channels == 3 else torch.contiguous_format
        return torch.empty((num, self.channels, side, side), device=device, memory_format=layout)

    def _chunks(self, image: Tensor | Ragged) -> Iterator[slice]:
        """Rows that are worked on at a time."""
        values = image if isinstance(image, Tensor) else image.values
        source = values[0].numel() if isinstance(image, Tensor) else 0
        most = max(3 * max(self.size, self.view_size) ** 2, source)
        step = (_CHUNK if values.device.type == "cpu" else _CHUNK_DEVICE) // most
        for start in range(0, len(image), max(step, 1)):
            yield slice(start, min(start + max(step, 1), len(image)))


def _sizes(image: Tensor | Ragged) -> Tensor:
    """Width and height [B, 2] of every image, after a look at what they are."""
    if isinstance(image, Ragged):
        values, shapes = image.values, image.shapes
        if shapes is None or shapes.shape[1:] != (3,):
            raise ValueError("image: expected Ragged with shapes [B, 3], received other items")
        channels, sizes = shapes[:, 0].unique().tolist(), shapes[:, [2, 1]].to(values.device)
    elif isinstance(image, Tensor):
        expect(image.ndim == 4, "image", "shape [B, C, H, W]", tuple(image.shape))
        values, channels = image, [image.shape[1]]
        sizes = torch.tensor([image.shape[3], image.shape[2]], device=image.device).repeat(len(image), 1)
    else:
        raise TypeError(f"image: expected a tensor or Ragged, received {type(image).__name__}")
    expect(values.dtype == torch.uint8, "image", "uint8", values.dtype, TypeError)
    expect(len(sizes) > 0 and values.numel() > 0, "image", "at least one sample with pixels", "none")
    expect(channels in ([1], [3]), "image", "1 or 3 channels, the same in every sample", channels)
    return sizes


def _centre(image: Tensor, short: int, size: int) -> Tensor:
    """The middle of [B, C, H, W], its shorter side resized to `short`."""
    height, width = image.shape[2:]
    factor = short / min(height, width)
    shape = [short if side == min(height, width) else int(factor * side) for side in (height, width)]
    if shape != [height, width]:
        if image.device.type != "cpu":
            image = image.float()
        image = image.contiguous(memory_format=torch.channels_last)
        image = F.interpolate(image, shape, mode="bilinear", antialias=True)
    top, left = (round((side - size) / 2) for side in shape)
    return image[:, :, top : top + size, left : left + size]
