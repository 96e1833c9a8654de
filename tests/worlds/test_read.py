"""What is read from pixels equals what was drawn."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nearfar.worlds import (
    COLOURS,
    SHAPES,
    TEXTURES,
    Factors,
    Render,
    Scene,
    Scenes,
    Style,
    Thing,
    agreement,
    compose,
    read,
)  # fmt: skip
from nearfar.worlds.naming import noise_of

SLOW = pytest.mark.slow


def score(world: Scenes, num: int, seed: int) -> tuple[float, float, list[Scene | None], list[Scene]]:
    batch = world.sample(num, seed=seed)
    truth = world.scenes(batch)
    found = [read(image, world) for image in batch["image"]]
    result = agreement(found, truth)
    return result.f1, result.unreadable, found, truth


@pytest.mark.parametrize("seed", [101, pytest.param(102, marks=SLOW), pytest.param(103, marks=SLOW)])
def test_fresh_renders_are_read(seed: int) -> None:
    """100 scenes each: object F1 (shape, colour, size, box) of 0.99 and more, textures and grounds as well."""
    f1, unreadable, found, truth = score(Scenes(), 100, seed)
    assert f1 >= 0.99
    assert unreadable == 0
    assert agreement(found, truth, of=("shape", "colour", "size", "texture"), min_overlap=0.8).f1 >= 0.98
    pairs = list(zip(found, truth, strict=True))
    assert sum(a.background == b.background for a, b in pairs if a) == 100
    assert sum(a.ground == b.ground for a, b in pairs if a) >= 97


def test_positions_sizes_and_order_are_read() -> None:
    world = Scenes(Factors(num=(3, 4), overlap=0.6))
    batch = world.sample(30, seed=5)
    off, right, total = [], 0, 0
    for image, truth in zip(batch["image"], world.scenes(batch), strict=True):
        found = read(image, world)
        assert found is not None
        for thing in found.things:
            same = [t for t in truth.things if (t.shape, t.colour, t.size) == (thing.shape, thing.colour, thing.size)]
            off += [
                min((abs(t.x - thing.x) + abs(t.y - thing.y) + abs(t.radius - thing.radius) for t in same), default=9)
            ]
        names = [f"{t.colour} {t.shape} {t.size}" for t in truth.things]
        if len(set(names)) == len(names) == len(found.things):
            mine = [f"{t.colour} {t.shape} {t.size}" for t in found.things]
            if set(mine) == set(names):
                for i, relation, j in truth.graph():
                    if relation == "in front of":
                        total += 1
                        right += found.holds(relation, mine.index(names[i]), mine.index(names[j]))
    assert torch.tensor(off).median() < 0.3
    assert total > 10
    assert right >= 0.9 * total


# The figures of docs/worlds.md, with room for chance: object F1 on 25 scenes.
LEVELS = [
    (Style(blur=1.0), 0.97),
    (Style(noise=0.1), 0.97),
    *(
        pytest.param(style, least, marks=SLOW)
        for style, least in (
            (Style(blur=1.5), 0.88),
            (Style(noise=0.2), 0.88),
            (Style(weather="rain", strength=0.5), 0.95),
            (Style(weather="snow", strength=0.5), 0.97),
            (Style(weather="shadow", strength=0.3), 0.95),
            (Style(palette="dusk"), 0.97),
        )
    ),
]


@pytest.mark.parametrize(("style", "least"), LEVELS, ids=lambda value: "")
def test_degraded_renders_are_read_as_stated(style: Style, least: float) -> None:
    assert score(Scenes(render=Render(style=style)), 25, 7)[0] >= least


@pytest.mark.parametrize(
    ("world", "least"),
    [
        (Scenes(render=Render(size=32)), 0.93),
        (Scenes(Factors(turn=(-180, 180))), 0.93),
        pytest.param(
            Scenes(Factors(shapes=SHAPES, colours=COLOURS, textures=TEXTURES, grounds=TEXTURES)), 0.97, marks=SLOW
        ),
        pytest.param(Scenes(Factors(num=(6, 8), sizes=("small",), radii=(0.09,))), 0.97, marks=SLOW),
        pytest.param(Scenes(Factors(overlap=0.6, visible=0.35, num=(3, 4))), 0.95, marks=SLOW),
        pytest.param(Scenes(Factors(colours=("red", "blue"), merge=True, num=(3, 4))), 0.93, marks=SLOW),
    ],
    ids=["32 px", "turned", "all values", "many", "hidden", "merged"],
)
def test_other_worlds_are_read(world: Scenes, least: float) -> None:
    assert score(world, 20, 8)[0] >= least


def test_noise_and_strange_pictures_are_unreadable() -> None:
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(15, 3, 64, 64, generator=generator)
    smooth = F.interpolate(torch.rand(15, 3, 8, 8, generator=generator), size=64, mode="bilinear")
    blocks = F.interpolate(torch.rand(15, 3, 4, 4, generator=generator), size=64, mode="nearest")
    for name, pictures in (("uniform", uniform), ("smooth", smooth), ("blocks", blocks)):
        assert sum(read(picture) is None for picture in pictures) >= 14, name
    assert all(read((picture * 255).to(torch.uint8)) is None for picture in uniform[:3])


def test_an_empty_ground_is_a_scene_without_things() -> None:
    for name, grey in (("black", 0.05), ("grey", 0.46), ("white", 0.97)):
        scene = read(torch.full((3, 64, 64), grey))
        assert scene is not None
        assert scene.things == ()
        assert scene.background == name


def test_the_joint_distribution_is_no_help() -> None:
    """Combinations that a world never shows are read as well: the prior is not used."""
    factors = Factors()
    held = [("red", "circle"), ("blue", "star"), ("pink", "moon")]
    shown = Scenes(factors, Scenes(factors).joint.only(("colour", "shape"), held))
    never = Scenes(factors, Scenes(factors).joint.hold_out(("colour", "shape"), held))
    batch = shown.sample(15)
    found = [read(image, never) for image in batch["image"]]
    assert agreement(found, shown.scenes(batch)).f1 >= 0.99


@pytest.mark.parametrize("sigma", [0.02, 0.05, 0.1])
def test_noise_is_measured(sigma: float) -> None:
    factors = Factors(backgrounds=("grey",), num=(1, 2))
    batch = Scenes(factors, render=Render(style=Style(noise=sigma))).sample(10)
    measured = [noise_of(image.float() / 255) for image in batch["image"]]
    assert sum(measured) / 10 == pytest.approx(sigma, rel=0.15)


def test_agreement_counts_matches() -> None:
    world = Scenes()
    one = Thing("circle", "red", "small", "plain", 20, 20, 6)
    two = Thing("star", "blue", "large", "plain", 45, 45, 10)
    other = Thing("ring", "blue", "large", "plain", 45, 45, 10)
    truth = compose(world, [one, two], "black", "plain")
    assert truth.things[0].box == pytest.approx((14, 14, 26, 26), abs=1)
    assert truth.things[1].visible == 1
    full = agreement([truth], [truth])
    assert (full.precision, full.recall, full.f1, full.unreadable) == (1, 1, 1, 0)
    half = agreement([compose(world, [one, other], "white", "plain")], [truth])
    assert (half.precision, half.recall, half.f1, half.background) == (0.5, 0.5, 0.5, 0)
    assert agreement([compose(world, [one, other], "black", "plain")], [truth], of=("colour",), min_overlap=0).f1 == 1
    part = agreement([compose(world, [one], "black", "plain"), None], [truth, truth])
    assert (part.precision, part.recall, part.unreadable) == (1, 0.25, 0.5)
    assert part.f1 == pytest.approx(2 * 1 / (1 + 4))
    moved = Thing("circle", "red", "small", "plain", 30, 20, 6)
    assert agreement([compose(world, [moved], "black", "plain")], [compose(world, [one], "black", "plain")]).f1 == 0
    with pytest.raises(ValueError, match="found: expected 1 scenes as in truth, received 0"):
        agreement([], [truth])


def test_read_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"image: expected shape \[3, 64, 64\], received \(3, 32, 32\)"):
        read(torch.zeros(3, 32, 32))
