"""Multi-crop: local views beside the global ones, their sizes, shares and geometry, and that none changes another."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from nearfar.batch import Ragged, View
from nearfar.config import ImageViewConfig
from nearfar.rng import Rng
from nearfar.views import ImageViews

OFF = ImageViewConfig(
    num_views=1, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0, jitter=0.0, grayscale=0.0
)  # fmt: skip
BUSY = ImageViewConfig(
    blur=0.5, solarize=0.3, gain=(0.7, 1.2), noise=0.02, vertical_flip=0.3, local_views=3, local_scale=(0.05, 0.2),
    rotate=0.2, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Several threads may share the mean of a lone large image and sum it in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def picture(num: int, channels: int, side: int) -> torch.Tensor:
    """Smooth colours."""
    low = torch.rand((num, channels, 6, 6), generator=torch.Generator().manual_seed(side))
    return (F.interpolate(low, (side, side), mode="bilinear") * 255).round().to(torch.uint8)


def views(config: ImageViewConfig, image: torch.Tensor | Ragged, size: int = 32) -> list[View]:
    return ImageViews(config, size, 3)(image, torch.arange(len(image)), Rng(0))


@pytest.mark.parametrize("exact", [False, True])
def test_local_views_are_smaller_ones_with_numbers_of_their_own(exact: bool) -> None:
    config = dataclasses.replace(BUSY, exact_colour=exact)
    image, index = picture(6, 3, 40), torch.arange(6) * 3
    made = ImageViews(config, 32, 3)(image, index, Rng(5, 1))
    assert [(view.role, view.data.shape[2]) for view in made] == [("global", 32)] * 2 + [("local", 16)] * 3
    assert all(view.geometry.size == view.data.shape[2] for view in made)
    plain = dataclasses.replace(config, local_views=0)
    for ours, theirs in zip(made[:2], ImageViews(plain, 32, 3)(image, index, Rng(5, 1)), strict=True):
        assert torch.equal(ours.data, theirs.data)  # more views change none of the others
    small = ImageViews(dataclasses.replace(plain, num_views=5, crop_scale=config.local_scale), 16, 3)
    for ours, theirs in zip(made[2:], small(image, index, Rng(5, 1))[2:], strict=True):
        assert torch.equal(ours.data, theirs.data)
        assert torch.equal(ours.geometry.matrix, theirs.geometry.matrix)
    alone = ImageViews(config, 32, 3)(image[4:5], index[4:5], Rng(5, 1))
    assert torch.equal(alone[4].data[0], made[4].data[4])


def test_local_crops_take_their_share_and_their_geometry_leads_back() -> None:
    image = picture(60, 3, 64)
    config = dataclasses.replace(OFF, local_views=2, local_size=24, local_scale=(0.1, 0.2))
    _, one, two = views(config, image, size=48)
    for view in (one, two):
        width, height = (view.geometry.box[:, 2:] - view.geometry.box[:, :2]).unbind(1)
        share = width * height / 64**2
        assert 0.08 < float(share.min()) < float(share.max()) < 0.22
        corner = view.geometry.map_points(torch.zeros(60, 1, 2))[:, 0]
        torch.testing.assert_close(corner, view.geometry.box[:, :2])
    overlap = one.geometry.overlap(two.geometry)
    assert 0 < int(overlap.valid.sum()) < 60


def test_global_size_leaves_the_plain_view_alone() -> None:
    image = picture(3, 3, 64)
    config = ImageViewConfig(global_size=33, local_views=1)
    maker = ImageViews(config, 48, 3)
    assert [view.data.shape[2] for view in maker(image, torch.arange(3), Rng())] == [33, 33, 17]
    assert torch.equal(maker.plain(image), ImageViews(ImageViewConfig(), 48, 3).plain(image))


def test_local_views_of_ragged_images() -> None:
    config = dataclasses.replace(OFF, local_views=2, local_scale=(0.2, 0.3))
    mixed = Ragged.of([picture(1, 3, 40)[0], picture(1, 3, 64)[0, :, :50]])
    assert [view.data.shape for view in views(config, mixed, size=20)] == [(2, 3, 20, 20), *[(2, 3, 10, 10)] * 2]


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match=r"views\.blur_kernel: expected a reach below 4 pixels, received 4"):
        ImageViews(ImageViewConfig(blur=0.5, blur_kernel=9, local_views=1, local_size=4), 32, 3)
    for name in ("global_size", "local_views", "local_size"):
        with pytest.raises(ValueError, match=rf"views\.{name}: expected 0 or more, received -1"):
            ImageViewConfig(**{name: -1})
    with pytest.raises(ValueError, match=r"views\.local_scale: expected shares in \(0, 1\], received \(0.0, 0.2\)"):
        ImageViewConfig(local_scale=(0.0, 0.2))
    with pytest.raises(ValueError, match=r"views\.local_scale: expected two numbers, 0.0 <= low <= high"):
        ImageViewConfig(local_scale=(0.5, 0.2))
