"""The handwritten digits that scikit-learn brings along."""

from __future__ import annotations

import numpy as np

from nearfar.data.arrays import ArraySource

FORMS = ("loop", "straight", "open", "open", "straight", "open", "loop", "straight", "loop", "loop")
"""of the digits 0 to 9: what they are drawn of, a coarser label than the digit"""


def digits(*, channels: int = 0) -> ArraySource:
    """1,797 grey images of 8 x 8 pixels, ten classes, and a column "form" (loop, straight, open); no network.

    The 17 grey levels 0..16 are spread over 0..255. Source: Alpaydin and Kaynak, Optical Recognition of Handwritten
    Digits, UCI Machine Learning Repository, 1998.
    """
    from sklearn.datasets import load_digits  # here, since importing it takes longer than reading the digits

    pixels, labels = load_digits(return_X_y=True)
    images = np.rint(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    names = [str(digit) for digit in range(10)]
    forms = np.array(FORMS)[labels]
    return ArraySource(
        images, labels, name="digits", class_names=names, channels=channels, columns={"form": forms}
    )  # fmt: skip
