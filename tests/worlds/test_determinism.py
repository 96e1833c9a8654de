"""A scene is a function of its seed and number alone."""

from __future__ import annotations

import pytest
import torch

from nearfar import batch as nb
from nearfar.batch import Ragged
from nearfar.worlds import Factors, Render, Say, Scenes, Style

WORLDS = {
    "default": Scenes(),
    "styled": Scenes(
        Factors(turn=(-90, 90), contrast=(0.5, 1.0), num=(2, 5)),
        render=Render(size=40, style=Style(weather="rain", light=(0.7, 1.2), blur=0.8, noise=0.1, tint=0.1)),
        say=Say("long"),
    ),
}


def equal(first: object, second: object) -> bool:
    if isinstance(first, Ragged) and isinstance(second, Ragged):
        return torch.equal(first.values, second.values) and torch.equal(first.offsets, second.offsets)
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return first.dtype == second.dtype and torch.equal(first, second)
    return first == second


@pytest.mark.parametrize("name", list(WORLDS))
def test_scenes_do_not_depend_on_their_batch(name: str) -> None:
    world = WORLDS[name]
    whole = world.sample(37, seed=5)
    assert nb.size(whole) == 37
    again = world.sample(37, seed=5)
    assert all(equal(whole[field], again[field]) for field in whole)
    one = world.sample(1, seed=5, start=20)
    some = world.at(torch.tensor([30, 20, 3, 20]), seed=5)
    for field, value in nb.take(whole, [20]).items():
        assert equal(value, one[field]), field
    for field, value in nb.take(whole, [30, 20, 3, 20]).items():
        assert equal(value, some[field]), field


def test_seeds_and_numbers_differ() -> None:
    first, second = Scenes().sample(20, seed=0), Scenes().sample(20, seed=1)
    assert (first["image"].float() - second["image"].float()).abs().flatten(1).mean(dim=1).min() > 1
    assert len({tuple(image.flatten().tolist()) for image in first["image"]}) == 20


def test_the_batch_contract_holds() -> None:
    batch = Scenes(Factors(num=(1, 3))).sample(9)
    parts = nb.split(batch, [4, 0, 5])
    assert [nb.size(part) for part in parts] == [4, 0, 5]
    for row in range(5):
        assert torch.equal(parts[2]["boxes"][row], batch["boxes"][4 + row])
        assert torch.equal(parts[2]["overlap"][row], batch["overlap"][4 + row])
    assert parts[2]["caption"] == batch["caption"][4:]
    assert batch["image"].dtype == torch.uint8
    assert batch["index"].tolist() == list(range(9))


def test_an_empty_sample_has_all_fields() -> None:
    empty = Scenes().sample(0)
    assert nb.size(empty) == 0
    assert empty.keys() == Scenes().sample(1).keys()


def test_redrawing_a_layout_gives_the_picture() -> None:
    from nearfar.rng import Rng
    from nearfar.worlds.layout import Layout

    world = WORLDS["styled"]
    batch = world.sample(12, seed=2)
    some = nb.take(batch, [7, 1, 2])
    again = world.draw(Layout.of(some), Rng(2))
    assert all(equal(some[field], again[field]) for field in some)
    assert (world.layout(torch.tensor([7, 1, 2]), seed=2).index == some["index"]).all()


def test_style_changes_pixels_but_no_label() -> None:
    plain = Scenes().sample(10)
    for style in (
        Style(palette="dusk"),
        Style(weather="snow"),
        Style(blur=1.0),
        Style(noise=0.1),
        Style(light=(0.5, 0.6)),
    ):
        other = Scenes(render=Render(style=style)).sample(10)
        assert (plain["image"].float() - other["image"].float()).abs().mean() > 0.3
        assert torch.equal(plain["mask_instance"], other["mask_instance"])
        assert plain["caption"] == other["caption"]


def test_noise_and_blur_are_as_strong_as_told() -> None:
    factors = Factors(backgrounds=("grey",), grounds=("plain",), num=(1, 1))
    clean = Scenes(factors, render=Render(style=Style(tint=0))).sample(20)
    noisy = Scenes(factors, render=Render(style=Style(tint=0, noise=0.05))).sample(20)
    ground = (clean["mask_instance"] == 0)[:, None].expand(-1, 3, -1, -1)
    off = (noisy["image"].float() - clean["image"].float())[ground] / 255
    assert float(off.std()) == pytest.approx(0.05, rel=0.02)
    assert abs(float(off.mean())) < 0.002  # half a grey level
    blurred = Scenes(factors, render=Render(style=Style(tint=0, blur=1.5))).sample(20)
    sums = [batch["image"].float().mean(dim=(1, 2, 3)) for batch in (clean, blurred)]
    assert torch.allclose(*sums, atol=0.5)
