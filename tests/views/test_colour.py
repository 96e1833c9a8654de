"""Each colour step against torchvision, and the composed affine map against the steps it composes."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from nearfar.config import ImageViewConfig
from nearfar.rng import Rng
from nearfar.views import colour as colours

functional = pytest.importorskip("torchvision.transforms.v2.functional")
FACTORS = torch.tensor([0.0, 0.3, 0.9, 1.0, 1.4, 2.0])


def noise(num: int, channels: int = 3, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
    draws = torch.rand((num, channels, 12, 12), generator=torch.Generator().manual_seed(1))
    return low + (high - low) * draws


def neutral(num: int, **changes: torch.Tensor) -> colours.Colour:
    one, zero, off = torch.ones(num), torch.zeros(num), torch.zeros(num, dtype=torch.bool)
    plain = colours.Colour(one, one, one, zero, off, zero, off, one, torch.arange(4).repeat(num, 1))
    return dataclasses.replace(plain, **changes)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
@pytest.mark.parametrize("channels", [1, 3])
def test_factors_equal_torchvision(name: str, channels: int) -> None:
    image = noise(len(FACTORS), channels)
    ours = getattr(colours, f"adjust_{name}")(image, FACTORS)
    peer = getattr(functional, f"adjust_{name}")
    expected = torch.stack([peer(x, float(f)) for x, f in zip(image, FACTORS, strict=True)])
    assert float((ours - expected).abs().max()) < 1 / 255


@pytest.mark.parametrize("channels", [1, 3])
def test_hue_equals_torchvision(channels: int) -> None:
    shift = torch.tensor([-0.5, -0.21, 0.0, 0.1, 0.33, 0.5])
    image = noise(6, channels)
    image[:, :, 0] = torch.tensor([0.0, 0.5, 1.0]).repeat(4)  # greys, black and white have no hue
    expected = torch.stack([functional.adjust_hue(x, float(s)) for x, s in zip(image, shift, strict=True)])
    assert float((colours.adjust_hue(image, shift) - expected).abs().max()) < 1e-4


def test_all_orders_equal_torchvision() -> None:
    orders = torch.tensor(list(itertools.permutations(range(4))))
    num = len(orders)
    u = Rng(3).uniform(torch.arange(num), "factors", 4)
    colour = neutral(
        num, brightness=0.4 + u[:, 0], contrast=0.4 + u[:, 1], saturation=0.4 + u[:, 2], hue=u[:, 3] - 0.5,
        order=orders, gray=torch.arange(num) % 5 == 0,
    )  # fmt: skip
    image = noise(num)
    before = image.clone()
    ours = colours.exact(image, colour)
    assert torch.equal(image, before)
    steps = [
        (functional.adjust_brightness, colour.brightness), (functional.adjust_contrast, colour.contrast),
        (functional.adjust_saturation, colour.saturation), (functional.adjust_hue, colour.hue),
    ]  # fmt: skip
    for row in range(num):
        x = image[row]
        for step in orders[row].tolist():
            function, value = steps[step]
            x = function(x, float(value[row]))
        if colour.gray[row]:
            x = functional.rgb_to_grayscale(x, num_output_channels=3)
        assert float((ours[row] - x).abs().max()) < 2 / 255, orders[row]


def apply_affine(image: torch.Tensor, colour: colours.Colour, num_out: int = 3) -> torch.Tensor:
    matrix, offset = colours.affine(colour, image.shape[1], num_out, image.mean(dim=(2, 3)))
    return (matrix @ image.flatten(2) + offset).unflatten(2, image.shape[2:])


def test_affine_map_equals_its_steps_where_nothing_is_clamped() -> None:
    num = 40
    u = Rng(5).uniform(torch.arange(num), "factors", 3)
    colour = neutral(
        num, brightness=0.8 + 0.4 * u[:, 0], contrast=0.8 + 0.4 * u[:, 1], saturation=0.8 + 0.4 * u[:, 2],
        gray=torch.arange(num) % 3 == 0,
    )  # fmt: skip
    image = noise(num, low=0.35, high=0.65)
    ours = apply_affine(image, colour)
    assert float((ours - colours.exact(image, colour)).abs().max()) < 1e-4
    grey = noise(num, 1, low=0.35, high=0.65)
    repeated = grey.expand(-1, 3, -1, -1)
    assert float((apply_affine(grey, colour) - colours.exact(repeated, colour)).abs().max()) < 1e-4
    assert float((apply_affine(grey, colour, 1) - colours.exact(grey, colour)).abs().max()) < 1e-4
    single = colours.exact(colours.luma(image), colour)
    assert float((apply_affine(image, colour, 1) - single).abs().max()) < 1e-4


def test_gain_scales_the_whole_map() -> None:
    colour = neutral(2, brightness=torch.tensor([0.7, 1.2]), contrast=torch.tensor([0.6, 1.1]))
    image = noise(2)
    louder = dataclasses.replace(colour, gain=torch.tensor([2.0, 0.5]))
    torch.testing.assert_close(
        apply_affine(image, louder), apply_affine(image, colour) * louder.gain[:, None, None, None]
    )


def test_fast_hue_keeps_luma_and_greys_and_turns_the_same_way() -> None:
    shift = torch.tensor([0.1, -0.2, 1 / 3, 0.5])
    image = noise(4)
    turned = apply_affine(image, neutral(4, hue=shift))
    torch.testing.assert_close(colours.luma(turned), colours.luma(image), atol=2e-4, rtol=0)
    back = apply_affine(turned, neutral(4, hue=-shift))
    torch.testing.assert_close(back, image, atol=2e-4, rtol=0)
    grey = noise(4, 1).expand(-1, 3, -1, -1)
    torch.testing.assert_close(apply_affine(grey, neutral(4, hue=shift)), grey, atol=2e-4, rtol=0)
    # A third of a turn leads from red to green, from green to blue, from blue to red, as in HSV.
    pure = torch.eye(3)[:, :, None, None]
    third = apply_affine(pure, neutral(3, hue=torch.full((3,), 1 / 3)))[:, :, 0, 0]
    assert third.argmax(dim=1).tolist() == [1, 2, 0]


def test_small_fast_hue_shifts_go_the_way_of_hsv() -> None:
    image, shift = noise(3, low=0.3, high=0.7), torch.tensor([-0.05, 0.02, 0.05])
    fast = (apply_affine(image, neutral(3, hue=shift)) - image).flatten(1)
    exact = (colours.adjust_hue(image, shift) - image).flatten(1)
    assert float(torch.cosine_similarity(fast, exact).min()) > 0.6


def test_draws_follow_the_config() -> None:
    index, num = torch.arange(40_000), 40_000
    config = ImageViewConfig(
        jitter=0.8, brightness=0.4, contrast=0.3, saturation=1.5, hue=0.1, grayscale=0.2, blur=0.5, solarize=0.1,
        gain=(0.6, 1.4),
    )  # fmt: skip
    colour = colours.draw(config, index, Rng(1))

    def near(share: torch.Tensor, expected: float) -> bool:
        return abs(float(share.double().mean()) - expected) < 4 * 0.5 / num**0.5

    on = colour.brightness != 1
    assert near(on, 0.8)
    assert torch.equal(on, colour.hue != 0)
    assert near(colour.gray, 0.2)
    assert near(colour.sigma > 0, 0.5)
    assert near(colour.solarize, 0.1)
    ranges = {"brightness": (0.6, 1.4), "contrast": (0.7, 1.3), "saturation": (0.0, 2.5), "hue": (-0.1, 0.1)}
    for name, (low, high) in ranges.items():
        values = getattr(colour, name)[on]
        assert low <= float(values.min()) < low + 0.01 * (high - low), name
        assert high - 0.01 * (high - low) < float(values.max()) <= high + 1e-6, name
        assert float(values.mean()) == pytest.approx((low + high) / 2, abs=0.01 * (high - low)), name
    sigma = colour.sigma[colour.sigma > 0]
    assert float(sigma.min()) >= 0.1
    assert float(sigma.max()) <= 2.0
    assert 0.6 <= float(colour.gain.min()) < float(colour.gain.max()) <= 1.4
    places = torch.stack([(colour.order == step).nonzero()[:, 1] for step in range(4)])
    assert all(near(places[step] == place, 0.25) for step in range(4) for place in range(4))
    assert torch.equal(colour.order.sort(dim=1).values, torch.arange(4).expand(num, 4))


def test_a_step_switched_on_leaves_the_other_draws_alone() -> None:
    index = torch.arange(50)
    one = colours.draw(ImageViewConfig(blur=0.0, grayscale=0.0), index, Rng())
    other = colours.draw(ImageViewConfig(blur=0.5, grayscale=0.3), index, Rng())
    for name in ("brightness", "contrast", "saturation", "hue", "gain", "order"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
