"""Crop boxes against torchvision's distribution, pixels against its resized_crop."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from nearfar.batch import Ragged
from nearfar.config import ImageViewConfig
from nearfar.rng import Rng
from nearfar.views import spatial


def picture(num: int, channels: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.randint(0, 256, (num, channels, height, width), dtype=torch.uint8, generator=generator)


def sources(num: int, width: int, height: int) -> torch.Tensor:
    return torch.tensor([[width, height]]).repeat(num, 1)


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((3, 32, 32), 32),
        ((1, 28, 28), 28),
        ((3, 20, 45), 33),
        ((3, 96, 80), 64),
        ((3, 256, 200), 96),
        ((1, 90, 70), 96),
    ],
)
@pytest.mark.parametrize("path", ["chosen", "dense", "each"])
def test_pixels_equal_resized_crop(shape: tuple[int, int, int], size: int, path: str) -> None:
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    num = 10
    image, index = picture(num, *shape), torch.arange(num)
    config = ImageViewConfig(vertical_flip=0.5, crop_scale=(0.1, 1.0))
    geometry = spatial.draw(config, sources(num, shape[2], shape[1]), size, index, Rng(1))
    if path == "chosen":
        ours = spatial.resample(image, geometry, slice(0, num), affine=False)
    else:
        ours = spatial._dense(image, geometry) if path == "dense" else spatial._each(list(image), geometry)
    assert ours.dtype == torch.float32
    for i in range(num):
        x1, y1, x2, y2 = geometry.box[i].int().tolist()
        expected = functional.resized_crop(image[i], y1, x1, y2 - y1, x2 - x1, [size, size], antialias=True)
        if geometry.flip[i]:
            expected = functional.horizontal_flip(expected)
        if geometry.vertical_flip[i]:
            expected = functional.vertical_flip(expected)
        assert float((ours[i] - expected.float()).abs().max()) <= 2


@pytest.mark.parametrize(
    ("scale", "width", "height"),
    [((0.2, 1.0), 64, 64), ((0.08, 0.5), 90, 40), ((0.9, 1.0), 40, 40), ((0.3, 1.0), 20, 200)],
)
def test_boxes_are_distributed_as_torchvisions(scale: tuple[float, float], width: int, height: int) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    num, ratio = 4000, (3 / 4, 4 / 3)
    boxes = spatial.crops(
        ImageViewConfig(crop_scale=scale, crop_ratio=ratio), sources(num, width, height), torch.arange(num), Rng(1)
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        blank = torch.zeros(1, height, width)
        peer = torch.tensor(
            [transforms.RandomResizedCrop.get_params(blank, list(scale), list(ratio)) for _ in range(num)]
        ).double()
    x1, y1, x2, y2 = boxes.double().unbind(dim=1)
    assert bool(((x1 >= 0) & (y1 >= 0) & (x2 <= width) & (y2 <= height) & (x2 > x1) & (y2 > y1)).all())
    for ours, theirs in ((y1, peer[:, 0]), (x1, peer[:, 1]), (y2 - y1, peer[:, 2]), (x2 - x1, peer[:, 3])):
        # Two-sample Kolmogorov-Smirnov distance at p = 0.001 for equal sizes, ties counted together.
        values = torch.cat([ours, theirs]).unique()
        gaps = [torch.searchsorted(part.sort().values, values, right=True).double() / num for part in (ours, theirs)]
        assert float((gaps[0] - gaps[1]).abs().max()) < 1.95 * math.sqrt(2 / num)


def test_a_box_that_never_fits_falls_back_to_the_centre() -> None:
    # A strip of 100 x 4 pixels cannot hold its whole area in a ratio of 4/3.
    config = ImageViewConfig(crop_scale=(1.0, 1.0))
    boxes = spatial.crops(config, sources(3, 100, 4), torch.arange(3), Rng())
    assert boxes.tolist() == [[47, 0, 52, 4]] * 3
    upright = spatial.crops(config, sources(3, 4, 100), torch.arange(3), Rng())
    assert upright.tolist() == [[0, 47, 4, 52]] * 3


def test_whole_image_when_the_crop_is_off() -> None:
    config = ImageViewConfig(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0)
    image, index = picture(4, 3, 32, 32), torch.arange(4)
    geometry = spatial.draw(config, sources(4, 32, 32), 32, index, Rng())
    assert geometry.box.tolist() == [[0, 0, 32, 32]] * 4
    assert torch.equal(spatial.resample(image, geometry, slice(0, 4), affine=False), image.float())


@pytest.mark.parametrize("affine", [False, True])
def test_ragged_images_give_what_each_gives_alone(affine: bool) -> None:
    items = [picture(1, 3, h, w)[0] for h, w in ((30, 50), (64, 64), (120, 90))]
    config = ImageViewConfig(rotate=0.5 if affine else 0.0)
    index, size = torch.tensor([4, 9, 2]), 40
    sizes = torch.tensor([[item.shape[2], item.shape[1]] for item in items])
    geometry = spatial.draw(config, sizes, size, index, Rng(7))
    together = spatial.resample(Ragged.of(items), geometry, slice(0, 3), affine)
    for i, item in enumerate(items):
        alone = spatial.draw(config, sizes[i : i + 1], size, index[i : i + 1], Rng(7))
        torch.testing.assert_close(alone.matrix[0], geometry.matrix[i])
        one = spatial.resample(item[None], alone, slice(0, 1), affine)[0]
        assert float((together[i] - one).abs().max()) < (1e-3 if affine else 1.01)
    part = spatial.resample(Ragged.of(items), geometry, slice(1, 3), affine)
    torch.testing.assert_close(part, together[1:])


def test_affine_without_turns_equals_plain_bilinear_sampling() -> None:
    image = picture(5, 3, 24, 24)
    config = ImageViewConfig(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0, zoom=(1.0, 1.0))
    geometry = spatial.draw(config, sources(5, 24, 24), 48, torch.arange(5), Rng())
    ours = spatial.resample(image, geometry, slice(0, 5), affine=True)
    expected = F.interpolate(image.float(), 48, mode="bilinear", align_corners=False)
    assert float((ours - expected)[:, :, 1:-1, 1:-1].abs().max()) < 1e-2


def test_affine_views_that_shrink_are_averaged() -> None:
    # A checkerboard of single pixels is grey from afar; sampled bilinearly without an average it would be a moire.
    board = (torch.arange(128)[:, None] + torch.arange(128)).remainder(2).mul(255).to(torch.uint8)
    config = ImageViewConfig(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), rotate=0.1)
    geometry = spatial.draw(config, sources(6, 128, 128), 32, torch.arange(6), Rng())
    view = spatial.resample(board.repeat(6, 1, 1, 1), geometry, slice(0, 6), affine=True)
    assert float((view[:, :, 8:24, 8:24] - 127.5).abs().max()) < 2


@pytest.mark.parametrize(
    ("changes", "at"),
    [
        ({"zoom": (2.0, 2.0)}, [[8, 8], [24, 24]]),
        ({"zoom": (0.5, 0.5)}, [[-16, -16], [48, 48]]),
    ],
)
def test_zoom_scales_content_about_the_centre(changes: dict, at: list[list[float]]) -> None:
    config = ImageViewConfig(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0, **changes)
    geometry = spatial.draw(config, sources(2, 32, 32), 32, torch.arange(2), Rng())
    corners = geometry.map_points(torch.tensor([[[0.0, 0], [32, 32]]]).repeat(2, 1, 1))
    torch.testing.assert_close(corners[0], torch.tensor(at, dtype=torch.float32))


def test_affine_parameters_fill_their_ranges() -> None:
    def linear(**changes: object) -> torch.Tensor:
        config = ImageViewConfig(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0, **changes)
        return spatial.draw(config, sources(4000, 32, 32), 32, torch.arange(4000), Rng()).matrix

    angle = torch.atan2(linear(rotate=0.7)[:, 0, 1], linear(rotate=0.7)[:, 0, 0])
    assert float(angle.max()) == pytest.approx(0.7, abs=0.01)
    assert float(angle.min()) == pytest.approx(-0.7, abs=0.01)
    aspect = linear(aspect=0.4)
    ratio = (aspect[:, 1, 1] / aspect[:, 0, 0]).log()
    assert float(ratio.max()) == pytest.approx(0.4, abs=0.01)
    assert float(ratio.min()) == pytest.approx(-0.4, abs=0.01)
    torch.testing.assert_close(aspect[:, 0, 0] * aspect[:, 1, 1], torch.ones(4000))
    shear = linear(shear=0.3)[:, 0, 1]
    assert float(shear.abs().max()) == pytest.approx(0.3, abs=0.01)
    shift = linear(shift=0.25)[:, :, 2]
    assert shift.abs().amax(dim=0).tolist() == pytest.approx([8, 8], abs=0.1)
    zoom = 1 / linear(zoom=(0.7, 1.1))[:, 0, 0]
    assert float(zoom.min()) == pytest.approx(0.7, abs=0.01)
    assert float(zoom.max()) == pytest.approx(1.1, abs=0.01)
