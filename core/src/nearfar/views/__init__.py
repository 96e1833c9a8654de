"""Batched views on the device, with the geometry that leads from a view back to its source."""

from __future__ import annotations

from nearfar.views.geometry import Geometry, Overlap
from nearfar.views.images import ImageViews

__all__ = ["Geometry", "ImageViews", "Overlap"]
