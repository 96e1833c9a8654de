"""Clips: motion equals the finite differences of boxes and centres, masks follow."""

from __future__ import annotations

import pytest
import torch

from nearfar import batch as nb
from nearfar.worlds import DIRECTIONS, Factors, Motion, Render, Scenes, Style, rules

WORLD = Scenes()
BATCH = WORLD.sample(40, seed=2)
MOTION = Motion(frames=7, speeds=(0, 1, 2), directions=tuple(DIRECTIONS))
CLIP = WORLD.clip(BATCH, MOTION)


def test_fields_follow_the_batch_contract() -> None:
    assert CLIP["video"].shape == (40, 7, 3, 64, 64)
    assert CLIP["video"].dtype == torch.uint8
    assert CLIP["mask_instance"].shape == (40, 7, 64, 64)
    assert nb.size(CLIP) == 40
    assert torch.equal(nb.take(CLIP, [3])["video"][0], CLIP["video"][3])
    assert "image" not in CLIP


def test_motion_is_the_difference_of_centres_and_boxes() -> None:
    compared = 0
    for row in range(40):
        centre, boxes, motion = CLIP["centre"][row], CLIP["boxes"][row], CLIP["motion"][row]
        assert torch.allclose(centre.diff(dim=1), motion[:, None].expand(-1, 6, -1), atol=1e-4)
        for k, step in enumerate(motion):
            # Whole pixels a frame: what is never hidden keeps its outline, so its box moves exactly.
            area = (CLIP["mask_instance"][row] == k + 1).flatten(1).sum(dim=1)
            if (area == area[0]).all() and CLIP["visible"][row][k] == 1:
                assert torch.equal(boxes[k].diff(dim=0), torch.cat([step, step]).expand(6, 4))
                compared += 1
    assert compared > 40


def test_boxes_hold_the_masks_of_every_frame() -> None:
    for row in range(40):
        for t in range(7):
            for k, box in enumerate(CLIP["boxes"][row][:, t]):
                y, x = (CLIP["mask_instance"][row, t] == k + 1).nonzero(as_tuple=True)
                if len(x):
                    assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
                else:
                    assert box.tolist() == [0, 0, 0, 0]


def test_what_is_hidden_for_a_while_has_no_box() -> None:
    world = Scenes(Factors(num=(4, 4), overlap=0.9, visible=0.2))
    clip = world.clip(world.sample(60), Motion(frames=8, speeds=(2,)))
    boxes = clip["boxes"].values
    area = (boxes[..., 2:] - boxes[..., :2]).prod(dim=2)
    assert (area[:, 0] > 0).sum() > 200
    assert (area == 0).any()
    assert (boxes[area == 0] == 0).all()


def test_directions_name_the_motion() -> None:
    names = [*DIRECTIONS, "not"]
    seen = set()
    for row in range(40):
        for step, number in zip(CLIP["motion"][row].tolist(), CLIP["direction"][row].tolist(), strict=True):
            dx, dy = DIRECTIONS.get(names[number], (0, 0))
            assert ((step[0] > 0) - (step[0] < 0), (step[1] > 0) - (step[1] < 0)) == (dx, dy)
            assert max(abs(step[0]), abs(step[1])) in (0, 1, 2)
            seen.add(names[number])
    assert len(seen) == 9


def test_pixels_of_a_lone_thing_move_as_told() -> None:
    world = Scenes(Factors(num=(1, 1), grounds=("plain",)))
    clip = world.clip(world.sample(10), Motion(frames=4, speeds=(2,)))
    for row in range(10):
        dx, dy = clip["motion"][row][0].long().tolist()
        moved = torch.roll(clip["video"][row, 0], (3 * dy, 3 * dx), dims=(1, 2))
        assert torch.equal(moved, clip["video"][row, 3])


def test_captions_of_clips_are_true() -> None:
    scenes = WORLD.scenes(CLIP)
    for caption, scene in zip(CLIP["caption"], scenes, strict=True):
        assert rules.true(caption, scene) is True, caption
    assert any("stands still" in caption for caption in CLIP["caption"])


def test_light_and_noise_change_from_frame_to_frame_and_weather_stays() -> None:
    still = Motion(frames=3, speeds=(0,))
    flicker = Scenes(render=Render(style=Style(light=(0.5, 1.0)))).clip(BATCH, still)["video"].float()
    assert (flicker[:, 0].mean(dim=(1, 2, 3)) - flicker[:, 1].mean(dim=(1, 2, 3))).abs().max() > 5
    noisy = Scenes(render=Render(style=Style(noise=0.1))).clip(BATCH, still)["video"]
    assert not torch.equal(noisy[:, 0], noisy[:, 1])
    snow = Scenes(render=Render(style=Style(weather="snow"))).clip(BATCH, still)["video"]
    assert torch.equal(snow[:, 0], snow[:, 2])


def test_clips_do_not_depend_on_their_batch() -> None:
    one = WORLD.clip(nb.take(BATCH, [9]), MOTION)
    assert torch.equal(one["video"][0], CLIP["video"][9])


def test_ways_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="motion: expected ways within 64 pixels"):
        WORLD.clip(BATCH, Motion(frames=40, speeds=(3,)))
    with pytest.raises(ValueError, match="directions: expected one of"):
        Motion(directions=("north",))
    with pytest.raises(ValueError, match="frames: expected 2 or more"):
        Motion(frames=1)
    with pytest.raises(ValueError, match="speeds: expected whole numbers from 0"):
        Motion(speeds=())
