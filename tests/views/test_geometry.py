"""The way back from a view: coordinates, boxes, overlaps, and maps undone to the source."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from nearfar import batch as batches
from nearfar.batch import View
from nearfar.config import ImageViewConfig
from nearfar.rng import Rng
from nearfar.views import Geometry, ImageViews, spatial

INDEX = torch.arange(12)
CROP = ImageViewConfig(crop_scale=(0.2, 1.0), vertical_flip=0.5)
AFFINE = ImageViewConfig(rotate=0.4, zoom=(0.8, 1.2), aspect=0.2, shear=0.2, shift=0.1, vertical_flip=0.5)
SCALED = ImageViewConfig(zoom=(0.7, 1.3), aspect=0.4, shift=0.2)


def draw(config: ImageViewConfig, size: int = 24, seed: int = 0, width: int = 60, height: int = 40) -> Geometry:
    return spatial.draw(config, torch.tensor([[width, height]]).repeat(len(INDEX), 1), size, INDEX, Rng(seed))


def position(width: int, height: int) -> torch.Tensor:
    """[1, 2, H, W]: x and y of every pixel's centre."""
    x, y = torch.meshgrid(torch.arange(width) + 0.5, torch.arange(height) + 0.5, indexing="xy")
    return torch.stack([x, y])[None]


@pytest.mark.parametrize("config", [CROP, AFFINE])
def test_map_points_and_its_inverse(config: ImageViewConfig) -> None:
    geometry = draw(config)
    points = torch.rand((len(INDEX), 9, 2), generator=torch.Generator().manual_seed(0)) * 24
    there = geometry.map_points(points)
    torch.testing.assert_close(geometry.map_points(there, inverse=True), points, atol=1e-3, rtol=1e-4)
    expected = torch.stack([points[i] @ geometry.matrix[i, :, :2].T + geometry.matrix[i, :, 2] for i in range(12)])
    torch.testing.assert_close(there, expected)


def test_corners_of_a_crop_are_those_of_its_box() -> None:
    geometry = draw(CROP)
    corners = geometry.map_points(torch.tensor([[[0.0, 0], [24, 24]]]).repeat(12, 1, 1))
    low, high = corners.amin(dim=1), corners.amax(dim=1)
    torch.testing.assert_close(torch.cat([low, high], dim=1), geometry.box, atol=1e-4, rtol=0)
    assert torch.equal(corners[:, 0, 0] > corners[:, 1, 0], geometry.flip)
    assert torch.equal(corners[:, 0, 1] > corners[:, 1, 1], geometry.vertical_flip)
    assert 0 < int(geometry.flip.sum()) < 12
    assert 0 < int(geometry.vertical_flip.sum()) < 12


@pytest.mark.parametrize(("config", "size"), [(CROP, 24), (CROP, 80), (AFFINE, 24), (SCALED, 24)])
def test_a_view_shows_the_colours_that_its_geometry_says(config: ImageViewConfig, size: int) -> None:
    # Red grows with x and green with y, so that a pixel's colour tells where it was.
    place = torch.cat([position(60, 40), torch.zeros(1, 1, 40, 60)], dim=1)
    image = (place * 4).round().to(torch.uint8).repeat(12, 1, 1, 1)
    plain = dataclasses.replace(config, jitter=0.0, grayscale=0.0, num_views=1)
    (view,) = ImageViews(plain, size, 3)(image, INDEX, Rng(2))
    grid = position(size, size)[0].flatten(1).T.repeat(12, 1, 1)
    source = view.geometry.map_points(grid)
    seen = view.data[:, :2].flatten(2).transpose(1, 2) * 255 / 4
    x, y = source.unbind(dim=2)
    # Weights are cut off at borders, of the crop or of the image, within two pixels.
    box = view.geometry.box.clone()
    box[:, :2].clamp_min_(0)
    box[:, 2:] = torch.minimum(box[:, 2:], torch.tensor([60.0, 40.0]))
    box = box[:, :, None]
    inside = (x > box[:, 0] + 2) & (x < box[:, 2] - 2) & (y > box[:, 1] + 2) & (y < box[:, 3] - 2)
    assert int(inside.sum()) > 0.3 * inside.numel()
    assert float((seen - source)[inside].abs().max()) < 0.5
    outside = (x < -1) | (x > 61) | (y < -1) | (y > 41)
    assert float(view.data[:, :2].flatten(2).transpose(1, 2)[outside].abs().sum()) == 0


def reference_overlap(one: list[float], other: list[float], flipped: bool) -> list[float]:
    """The intersection in shares of the first crop, mirrored where that is."""
    x1, y1 = max(one[0], other[0]), max(one[1], other[1])
    x2, y2 = min(one[2], other[2]), min(one[3], other[3])
    width, height = one[2] - one[0], one[3] - one[1]
    share = [(x1 - one[0]) / width, (y1 - one[1]) / height, (x2 - one[0]) / width, (y2 - one[1]) / height]
    return [1 - share[2], share[1], 1 - share[0], share[3]] if flipped else share


def test_overlap_in_each_view_after_its_flip() -> None:
    config = ImageViewConfig(crop_scale=(0.2, 0.5))
    first, second = draw(config, seed=1), draw(config, seed=2)
    overlap = first.overlap(second)
    assert int(overlap.valid.sum()) > 3
    for i in overlap.valid.nonzero()[:, 0].tolist():
        a, b = first.box[i].tolist(), second.box[i].tolist()
        assert overlap.first[i].tolist() == pytest.approx(reference_overlap(a, b, bool(first.flip[i])), abs=1e-5)
        assert overlap.second[i].tolist() == pytest.approx(reference_overlap(b, a, bool(second.flip[i])), abs=1e-5)
        assert overlap.source[i].tolist() == [max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])]
        assert float(overlap.first[i].min()) >= -1e-5
        assert float(overlap.first[i].max()) <= 1 + 1e-5


def test_views_that_do_not_meet_are_marked() -> None:
    def at(x: float) -> Geometry:
        box = torch.tensor([[x, 0.0, x + 4, 4.0]])
        matrix = torch.tensor([[[0.5, 0, x], [0, 0.5, 0]]])
        no = torch.zeros(1, dtype=torch.bool)
        return Geometry(matrix, no, no, box, torch.tensor([[20, 4]]), 8)

    apart = at(0.0).overlap(at(10.0))
    assert not bool(apart.valid)
    assert float((apart.source[:, 2] - apart.source[:, 0]).abs()) == 0
    assert bool(at(0.0).overlap(at(3.0)).valid)


@pytest.mark.oracle("slotcon", 2)
@pytest.mark.parametrize("config", [CROP, SCALED])
def test_maps_of_positions_agree_after_crop_flip_and_undo(config: ImageViewConfig) -> None:
    first, second = draw(config, seed=3, size=56), draw(config, seed=4, size=56)
    overlap = first.overlap(second)
    assert int(overlap.valid.sum()) > 6
    undone, cells = [], []
    for view in (first, second):
        # What an encoder of stride 4 that knows positions would give: the source place of each cell's centre.
        centres = (position(14, 14)[0].flatten(1).T * 4).repeat(12, 1, 1)
        maps = view.map_points(centres).transpose(1, 2).unflatten(2, (14, 14))
        undone.append(view.undo(maps, 10, overlap.source))
        cells.append((view.box[:, 2:] - view.box[:, :2]) / 14)
    share = (torch.arange(10) + 0.5) / 10
    for i in overlap.valid.nonzero()[:, 0].tolist():
        x1, y1, x2, y2 = overlap.source[i].tolist()
        x, y = torch.meshgrid(x1 + share * (x2 - x1), y1 + share * (y2 - y1), indexing="xy")
        expected, half = torch.stack([x, y]), torch.stack([c[i] for c in cells]).amax(dim=0)[:, None, None] / 2
        for maps in undone:
            assert bool(((maps[i] - expected).abs() <= half + 1e-3).all())
        # Linear maps are undone exactly where every bilinear neighbour is a cell, half a cell inside the view.
        deep = torch.ones_like(x, dtype=torch.bool)
        for view, cell in zip((first, second), cells, strict=True):
            left, top, right, bottom = view.box[i].tolist()
            w, h = (cell[i] / 2).tolist()
            deep &= (x > left + w) & (x < right - w) & (y > top + h) & (y < bottom - h)
        if bool(deep.any()):
            assert float((undone[0][i] - undone[1][i])[:, deep].abs().max()) < 1e-3


def test_undo_equals_roi_align_with_the_flip_back() -> None:
    ops = pytest.importorskip("torchvision.ops")
    first, second = draw(ImageViewConfig(), seed=5), draw(ImageViewConfig(), seed=6)
    overlap = first.overlap(second)
    maps = torch.rand((12, 3, 7, 7), generator=torch.Generator().manual_seed(3))
    boxes = [box[None] * 7 for box in overlap.first]
    aligned = ops.roi_align(maps, boxes, (7, 7), sampling_ratio=1, aligned=True)
    aligned = torch.where(first.flip[:, None, None, None], aligned.flip(3), aligned)
    ours = first.undo(maps, 7, overlap.source)
    assert float((ours - aligned)[overlap.valid].abs().max()) < 1e-4


def test_undo_of_a_turned_view_finds_the_source_again() -> None:
    source = F.interpolate(torch.rand((12, 1, 5, 5), generator=torch.Generator().manual_seed(1)), 64, mode="bicubic")
    image = (source.clamp(0, 1) * 255).round().to(torch.uint8)
    config = ImageViewConfig(
        num_views=1, crop_scale=(0.6, 1.0), rotate=0.5, shear=0.2, jitter=0.0, grayscale=0.0, vertical_flip=0.5
    )
    (view,) = ImageViews(config, 96, 1)(image, INDEX, Rng(1))
    box = torch.tensor([[26.0, 26, 38, 38]]).repeat(12, 1)
    centre = view.geometry.map_points(box.view(-1, 2, 2), inverse=True)
    shown = (centre > 16).all(dim=(1, 2)) & (centre < 80).all(dim=(1, 2))
    assert int(shown.sum()) > 4
    undone = view.geometry.undo(view.data, (12, 12), box)
    assert float((undone - image[:, :, 26:38, 26:38] / 255)[shown].abs().max()) < 0.02


def test_geometry_follows_its_rows_through_a_batch() -> None:
    geometry = draw(CROP)
    batch = {"index": INDEX, "views": [View(torch.zeros(12, 3, 24, 24), geometry)]}
    rows = torch.tensor([5, 0, 7])
    taken = batches.take(batch, rows)["views"][0].geometry
    assert torch.equal(taken.matrix, geometry.matrix[rows])
    assert torch.equal(taken.flip, geometry[rows].flip)
    assert taken.size == 24
    moved = batches.to(batch, "cpu")["views"][0].geometry
    assert torch.equal(moved.source, geometry.source)
    parts = batches.split(batch, 5)
    assert [len(part["views"][0].geometry) for part in parts] == [5, 5, 2]


def test_bad_input_is_refused() -> None:
    geometry = draw(CROP)
    with pytest.raises(ValueError, match=r"points: expected shape \[12, N, 2\]"):
        geometry.map_points(torch.zeros(11, 4, 2))
    with pytest.raises(ValueError, match="overlap: expected views without rotation and shear"):
        geometry.overlap(draw(AFFINE))
    with pytest.raises(ValueError, match="other: expected 12 samples, received 3"):
        geometry.overlap(geometry[:3])
    with pytest.raises(ValueError, match="other: expected views of the same sources"):
        geometry.overlap(draw(CROP, width=61))
    with pytest.raises(ValueError, match=r"maps: expected shape \[12, C, h, w\]"):
        geometry.undo(torch.zeros(2, 1, 4, 4), 4)
    with pytest.raises(ValueError, match=r"box: expected shape \[12, 4\]"):
        geometry.undo(torch.zeros(12, 1, 4, 4), 4, torch.zeros(12, 2))
    with pytest.raises(ValueError, match="out_size: expected 1 or more, received 0"):
        geometry.undo(torch.zeros(12, 1, 4, 4), 0)
