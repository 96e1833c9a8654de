"""Image files to uint8 arrays [C, H, W]."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from nearfar.checks import expect

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm")


def decode(path: Path | str | BytesIO, *, channels: int = 3, shorter: int = 0) -> np.ndarray:
    """Reads one image file, uint8 [C, H, W].

    The EXIF orientation is applied; transparent pixels lie on white; 16-bit greys are scaled to 8 bits; of an animation
    the first frame counts. Pillow's limit against decompression bombs holds.

    Args:
        path: the file, or its content.
        channels: 3 for RGB, 1 for luminance.
        shorter: a larger image is reduced so that its shorter side has this many pixels; 0 keeps its size. JPEGs are
            then decoded at a fraction of their size where that suffices, which is several times faster.

    Raises:
        OSError, ValueError and others of Pillow: truncated, not an image, unsupported pixels.
    """
    with Image.open(path) as image:
        if shorter and min(image.size) > shorter:
            scale = shorter / min(image.size)
            image.draft(None, (round(image.width * scale), round(image.height * scale)))
        picture = to_colour(ImageOps.exif_transpose(image), channels)
    if shorter and min(picture.size) > shorter:
        scale = shorter / min(picture.size)
        sides = [shorter if side == min(picture.size) else round(side * scale) for side in picture.size]
        picture = picture.resize((sides[0], sides[1]), Image.Resampling.BICUBIC)
    return from_pil(picture)


def to_colour(image: Image.Image, channels: int) -> Image.Image:
    """The image in mode RGB (3 channels) or L (1), transparent pixels on white."""
    expect(channels in (1, 3), "channels", "1 or 3", channels)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; convert the file to 8 or 16 bits")
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        if grey.size and (grey.min() < 0 or grey.max() > 65535):
            raise ValueError("32-bit pixels have no known range; convert the file to 8 or 16 bits")
        image = Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB" if channels == 3 else "L")


def from_pil(image: Image.Image) -> np.ndarray:
    """uint8 [C, H, W] of an image in mode L or RGB; a writable copy."""
    array = np.array(image)
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def to_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """uint8 [..., C, H, W] in 1 or 3 channels: grey is repeated, colour becomes luminance as Pillow has it."""
    have = image.shape[-3]
    if channels in (0, have):
        return image
    if have == 1:
        return np.repeat(image, 3, axis=-3)
    weights = np.array([19595, 38470, 7471], dtype=np.uint32)
    grey = np.einsum("...chw,c->...hw", image.astype(np.uint32), weights)
    return ((grey + 0x8000) >> 16).astype(np.uint8)[..., None, :, :]
