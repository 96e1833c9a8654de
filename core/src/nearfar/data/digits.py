"""The handwritten digits that scikit-learn brings along."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from nearfar.data.arrays import ArraySource


def digits(*, channels: int = 0) -> ArraySource:
    """1,797 grey images of 8 x 8 pixels, ten classes; no network.

    The 17 grey levels 0..16 are spread over 0..255. Source: Alpaydin and Kaynak, Optical Recognition of Handwritten
    Digits, UCI Machine Learning Repository, 1998.
    """
    raw = load_digits()
    images = np.rint(raw.images * (255 / 16)).astype(np.uint8)
    names = [str(name) for name in raw.target_names]
    return ArraySource(images, raw.target, name="digits", class_names=names, channels=channels)
