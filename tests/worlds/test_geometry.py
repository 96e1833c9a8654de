"""Boxes, masks, depth, scene graphs and pixels of one scene agree with each other."""

from __future__ import annotations

import math

import pytest
import torch

from nearfar.rng import Rng
from nearfar.worlds import RELATIONS, Factors, Render, Scenes, Style
from nearfar.worlds.render import patches, settle, surfaces
from nearfar.worlds.shapes import DISTANCE

WORLDS = {
    "default": Scenes(),
    "crowded": Scenes(Factors(num=(3, 7), sizes=("small",), radii=(0.12,), overlap=0.6, visible=0.3)),
    "turned": Scenes(Factors(turn=(-180, 180), contrast=(0.4, 1.0)), render=Render(size=48)),
    "weather": Scenes(render=Render(size=32, style=Style(weather="fog", blur=0.7, noise=0.05))),
}


@pytest.fixture(params=list(WORLDS))
def world(request: pytest.FixtureRequest) -> Scenes:
    return WORLDS[request.param]


def test_boxes_are_the_smallest_that_hold_the_masks(world: Scenes) -> None:
    batch = world.sample(40)
    for row in range(40):
        mask = batch["mask_instance"][row]
        boxes = batch["boxes"][row]
        assert mask.max() == len(boxes) == batch["num"][row]
        for k, box in enumerate(boxes):
            y, x = (mask == k + 1).nonzero(as_tuple=True)
            assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_masks_partition_the_picture(world: Scenes) -> None:
    batch = world.sample(40)
    instance, part, thing = batch["mask_instance"], batch["mask_part"], batch["mask_object"]
    ground = instance == 0
    assert torch.equal(ground, part == 0)
    assert torch.equal(ground, thing == 0)
    assert torch.equal(ground, batch["saliency"] == 0)
    assert torch.equal(ground, batch["depth_map"] == 1)
    assert set(part.unique().tolist()) == {0, 1, 2}
    for row in range(40):
        for k, shape in enumerate(batch["shape"][row].tolist()):
            assert (thing[row][instance[row] == k + 1] == shape + 1).all()
            assert (batch["depth_map"][row][instance[row] == k + 1] == batch["depth"][row][k]).all()


def test_parts_are_the_halves_of_upright_things() -> None:
    batch = Scenes(Factors(overlap=0)).sample(20)
    rows = torch.arange(64) + 0.5
    for row in range(20):
        for k, centre in enumerate(batch["centre"][row]):
            mine = batch["mask_instance"][row] == k + 1
            upper = (rows < centre[1])[:, None]
            assert torch.equal(mine & (batch["mask_part"][row] == 1), mine & upper)


def test_nearer_things_hide_farther_ones(world: Scenes) -> None:
    """Painting every whole thing from back to front, by distances of its own pixels, gives the masks."""
    batch = world.sample(20, seed=3)
    side = world.render.size
    step = torch.arange(side) + 0.5
    seen_overlap = 0
    for row in range(20):
        depth = batch["depth"][row]
        assert (depth.diff() < 0).all()
        canvas, whole = torch.zeros(side, side, dtype=torch.uint8), []
        for k in range(len(depth)):
            (x, y), r = batch["centre"][row][k].tolist(), batch["radius"][row][k].item()
            turn = math.radians(batch["angle"][row][k].item())
            dx, dy = (step - x)[None] / r, (step - y)[:, None] / r
            u, v = dx * math.cos(turn) + dy * math.sin(turn), dy * math.cos(turn) - dx * math.sin(turn)
            name = world.factors.shapes[batch["shape"][row][k]]
            whole.append(DISTANCE[name](u, v) * r <= 0)
            canvas[whole[-1]] = k + 1
        # Pixels whose centre lies on an outline may fall either way.
        assert (canvas != batch["mask_instance"][row]).sum() <= 2
        for k, mask in enumerate(whole):
            share = float((batch["mask_instance"][row] == k + 1).sum() / mask.sum())
            assert float(batch["visible"][row][k]) == pytest.approx(share, abs=0.02)
            assert batch["visible"][row][k] >= world.factors.visible
            for j in range(k):
                both = float((mask & whole[j]).sum() / min(mask.sum(), whole[j].sum()))
                assert float(batch["overlap"][row][j, k]) == pytest.approx(both, abs=0.03)
                seen_overlap += both > 0
    assert seen_overlap > 0


def test_scene_graph_follows_from_numbers(world: Scenes) -> None:
    batch = world.sample(40)
    side, found = world.render.size, set()
    for row, scene in enumerate(world.scenes(batch)):
        graph = {(i, RELATIONS[r], j) for i, r, j in batch["relations"][row].tolist()}
        assert graph == set(scene.graph())
        boxes, overlap = batch["centre"][row], batch["overlap"][row]
        num = len(boxes)
        expected = set()
        for i in range(num):
            for j in range(num):
                if i != j:
                    dx, dy = (boxes[j] - boxes[i]).tolist()
                    rules = (
                        dx > 0.08 * side, dy > 0.08 * side, i > j and overlap[i, j] > 0.03,
                        batch["radius"][row][i] > 1.25 * batch["radius"][row][j],
                        batch["colour"][row][i] == batch["colour"][row][j],
                        batch["shape"][row][i] == batch["shape"][row][j],
                    )  # fmt: skip
                    expected |= {(i, name, j) for name, rule in zip(RELATIONS, rules, strict=True) if rule}
        assert graph == expected
        found |= {name for _, name, _ in graph}
    assert found >= {"left of", "above", "same colour as"}


def test_flat_pixels_have_the_colour_that_is_told() -> None:
    factors = Factors(textures=("plain",), grounds=("plain",), overlap=0)
    batch = Scenes(factors, render=Render(parts=0)).sample(20)
    for row in range(20):
        image, instance = batch["image"][row].float() / 255, batch["mask_instance"][row]
        for k, rgb in enumerate(batch["rgb"][row]):
            inner = -torch.nn.functional.max_pool2d(-(instance == k + 1).float()[None], 3, 1, 1)[0] == 1
            if inner.any():
                assert (image[:, inner] - rgb[:, None]).abs().max() < 1 / 255
        corner = image[:, instance == 0].median(dim=1).values
        assert torch.allclose(corner, batch["ground_rgb"][row], atol=1 / 255)


def test_saliency_is_the_distance_from_the_ground() -> None:
    batch = Scenes(Factors(contrast=(0.3, 1.0))).sample(20)
    for row in range(20):
        for k, rgb in enumerate(batch["rgb"][row]):
            shown = batch["contrast"][row][k] * (rgb - batch["ground_rgb"][row]).norm() / math.sqrt(3)
            values = batch["saliency"][row][batch["mask_instance"][row] == k + 1]
            assert torch.allclose(values, shown.expand_as(values), atol=1e-6)


@pytest.mark.parametrize("shape", list(DISTANCE))
def test_outlines_fill_the_unit_disc_and_are_distances(shape: str) -> None:
    step = torch.linspace(-1.3, 1.3, 521)
    v, u = torch.meshgrid(step, step, indexing="ij")
    inside = DISTANCE[shape](u, v) < 0
    reach = torch.hypot(u, v)[inside].max()
    assert 0.85 < reach < 1.03
    # Near the outline a distance grows by one a unit of length.
    distance = DISTANCE[shape](u, v)
    slope_v, slope_u = torch.gradient(distance, spacing=float(step[1] - step[0]))
    near = distance.abs() < 0.02
    slopes = torch.hypot(slope_u, slope_v)[near]
    assert float(slopes.median()) == pytest.approx(1, abs=0.02)


def test_positions_respect_places_and_borders() -> None:
    factors = Factors(places=("top left", "bottom"), num=(1, 2))
    world = Scenes(factors)
    batch = world.sample(60)
    places = [scene.place(i) for scene in world.scenes(batch) for i in range(len(scene.things))]
    drawn = world.joint.draw(torch.arange(60), Rng(0))
    assert set(places) == {"top left", "bottom"}
    assert len(places) >= 0.95 * int(drawn["present"].sum())  # two large things may not fit one cell
    for row in range(60):
        centre, radius = batch["centre"][row], batch["radius"][row][:, None]
        assert (centre >= radius + 1).all()
        assert (centre <= 64 - radius - 1).all()


def test_things_of_one_colour_never_touch_unless_asked() -> None:
    few = {"colours": ("red", "blue"), "num": (4, 4)}
    for merge in (False, True):
        world = Scenes(Factors(**few, merge=merge))
        batch = world.sample(60)
        touching = 0
        for row in range(60):
            centre, radius, colour = batch["centre"][row], batch["radius"][row], batch["colour"][row]
            for i in range(len(colour)):
                for j in range(i):
                    gap = (centre[i] - centre[j]).norm() - radius[i] - radius[j]
                    touching += int(colour[i] == colour[j] and gap < 1.99)
        assert (touching > 0) == merge


def test_what_does_not_fit_is_left_out_and_nothing_else() -> None:
    """Fifteen large things do not fit; the scenes still obey every rule and say how many there are."""
    world = Scenes(Factors(num=(15, 15), overlap=0, sizes=("large",), radii=(0.14,)))
    batch = world.sample(10)
    assert (batch["num"] < 15).all()
    assert (batch["num"] >= 3).all()
    assert torch.equal(batch["num"], batch["boxes"].lengths)
    easy = Scenes().sample(400)
    assert torch.equal(easy["num"], Scenes().joint.draw(torch.arange(400), Rng(0))["present"].sum(dim=1))


def test_surfaces_counts_by_brute_force() -> None:
    world = WORLDS["crowded"]
    layout = settle(world.joint, world.render, torch.arange(6), Rng(1))
    drawn = patches(layout, world.factors, world.render)
    shown = surfaces(drawn, 6, layout.present.shape[1], 64)
    solid = torch.zeros(6, layout.present.shape[1], 64 * 64, dtype=torch.bool)
    for n in range(len(drawn.row)):
        solid[drawn.row[n], drawn.slot[n], drawn.pixel[n]] = drawn.cover[n] >= 0.5
    assert torch.equal(solid.sum(dim=2), shown.area)
    shared = (solid[:, :, None] & solid[:, None]).sum(dim=3)
    assert torch.equal(shared - torch.diag_embed(shown.area), shown.overlap)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"shapes": ("circle", "squre")}, "shapes: expected one of .*did you mean 'square'"),
        ({"shapes": ("circle", "circle")}, "shapes: expected no value twice"),
        ({"colours": ()}, "colours: expected at least one value"),
        ({"radii": (0.1,)}, "radii: expected one of each of the 2 sizes"),
        ({"radii": (0.1, 0.11)}, "radii: expected rising, without overlap"),
        ({"radii": (0.2, 0.44)}, "radii: expected at most 0.45"),
        ({"num": (0, 2)}, "num: expected least <= most, from 1 to 15"),
        ({"contrast": (0.0, 1.0)}, "contrast: expected a range within"),
        ({"visible": 0.0}, "visible: expected above 0"),
    ],
)
def test_factors_refuse(change: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Factors(**change)


def test_render_refuses() -> None:
    with pytest.raises(ValueError, match="size: expected from 8 to 1024 pixels, received 4"):
        Render(size=4)
    with pytest.raises(ValueError, match="palette: expected one of .*'dusk'"):
        Style(palette="dsk")
    with pytest.raises(ValueError, match="joint: expected one over the same factors"):
        Scenes(Factors(num=(1, 2)), Scenes().joint)
