"""Views that several systems share."""

from __future__ import annotations

import dataclasses

from nearfar.config import ImageViewConfig


def imagenet(strength: float = 1.0, crop: float = 0.08) -> ImageViewConfig:
    """SimCLR's views of photographs; at strength 1 jitter is 0.8 (hue 0.2)."""
    return ImageViewConfig(
        crop_scale=(crop, 1.0),
        flip=0.5,
        jitter=0.8,
        brightness=0.8 * strength,
        contrast=0.8 * strength,
        saturation=0.8 * strength,
        hue=0.2 * strength,
        grayscale=0.2,
        blur=0.5,
        blur_sigma=(0.1, 2.0),
        exact_colour=True,
    )


def byol() -> ImageViewConfig:
    """BYOL's views of photographs: half of SimCLR's jitter, less saturation, and inverted highlights.

    The paper blurs one view always and the other rarely, and inverts in one alone; here both views are drawn alike, at
    the mean of the two, as VICReg does.
    """
    return dataclasses.replace(imagenet(strength=0.5), saturation=0.2, solarize=0.1)


def small() -> ImageViewConfig:
    """Views of small natural images such as CIFAR's: half the strength and no blur."""
    return ImageViewConfig(
        crop_scale=(0.08, 1.0),
        flip=0.5,
        jitter=0.8,
        brightness=0.4,
        contrast=0.4,
        saturation=0.4,
        hue=0.1,
        grayscale=0.2,
        blur=0.0,
    )


def digits() -> ImageViewConfig:
    """Views of handwritten digits: how a hand varies, and no flip, since a mirrored digit is another sign."""
    return ImageViewConfig(
        crop_scale=(1.0, 1.0),
        crop_ratio=(1.0, 1.0),
        rotate=0.35,
        zoom=(0.9, 1.4),
        aspect=0.2,
        shear=0.2,
        shift=0.1,
        flip=0.0,
        jitter=0.0,
        grayscale=0.0,
        gain=(0.6, 1.4),
        noise=0.05,
    )
