"""Crops about a centre within a box: where they stand, and how they are spread."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from nearfar.config import ImageViewConfig
from nearfar.rng import Rng
from nearfar.views import ImageViews, spatial


def centres(box: tuple[float, float], beta: float, scale: float = 0.05, num: int = 4000, side: int = 400) -> Tensor:
    config = ImageViewConfig(crop_scale=(scale, scale), centred_views=1, centre_box=box, centre_beta=beta)
    source = torch.tensor([[side, side // 2]]).repeat(num, 1)
    found = spatial.crops(config, source, torch.arange(num), Rng(3), centred=True)
    assert (found[:, :2] >= 0).all()
    assert (found[:, 2:] <= source).all()
    assert (found[:, 2:] > found[:, :2]).all()
    return (found[:, :2] + found[:, 2:]) / 2 / source


@pytest.mark.oracle("hallucinator", 4)
@pytest.mark.parametrize("beta", [0.1, 1.0, 5.0])
def test_centres_lie_in_the_box_with_their_law(beta: float) -> None:
    place = centres((0.25, 0.75), beta)
    assert float(place.min()) >= 0.25 - 0.005
    assert float(place.max()) <= 0.75 + 0.005
    for axis in place.T:
        unit = ((axis - 0.25) / 0.5).clamp(0, 1).numpy()
        counts = np.histogram(unit, bins=5, range=(0, 1))[0] / len(unit)
        if beta < 1:  # two modes at the borders
            assert min(counts[0], counts[-1]) > 0.35
            assert counts[1:-1].max() < 0.1
        elif beta == 1:
            assert np.abs(counts - 0.2).max() < 0.03
        else:
            assert counts[2] > 0.4
        assert unit.var() == pytest.approx(1 / (4 * (2 * beta + 1)), rel=0.05)
    assert abs(float(torch.corrcoef(place.T)[0, 1])) < 0.05


def test_a_crop_that_would_leave_the_image_is_moved_back() -> None:
    place = centres((0.0, 1.0), 0.1, scale=0.5)
    assert float(place.min()) > 0.2  # half of the smallest side of such a crop
    assert float(place.max()) < 0.8


def test_only_the_first_views_are_centred() -> None:
    image = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plain = ImageViewConfig(crop_scale=(0.2, 0.4), num_views=3)
    some = ImageViewConfig(crop_scale=(0.2, 0.4), num_views=3, centred_views=1)
    a, b = (ImageViews(config, 16, 3)(image, torch.arange(6), Rng(0)) for config in (plain, some))
    assert not torch.equal(a[0].data, b[0].data)
    assert torch.equal(a[1].data, b[1].data)
    assert torch.equal(a[2].data, b[2].data)
    sizes = [v.geometry.box[:, 2:] - v.geometry.box[:, :2] for v in (a[0], b[0])]
    assert torch.equal(*sizes)  # only the place is another


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"centred_views": 3}, "views.centred_views: expected 0 to views.num_views"),
        ({"centre_box": (0.5, 1.5)}, r"views.centre_box: expected shares in \[0, 1\]"),
        ({"centre_box": (0.7, 0.5)}, "views.centre_box: expected two numbers"),
        ({"centre_beta": 0.0}, "views.centre_beta: expected a finite number > 0"),
    ],
)
def test_refuses(options: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        ImageViewConfig(**options)  # type: ignore[arg-type]
