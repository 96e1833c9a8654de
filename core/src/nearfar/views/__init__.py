"""Batched views on the device, with the geometry that leads from a view back to its source."""

from __future__ import annotations

from nearfar.views.geometry import Geometry, Overlap
from nearfar.views.images import ImageViews
from nearfar.views.mix import Mixed, cutmix, mixup

__all__ = ["Geometry", "ImageViews", "Mixed", "Overlap", "cutmix", "mixup"]
