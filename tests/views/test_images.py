"""ImageViews as a whole: parity of a view's pixels, independence of the batch, effect of every option, bad input."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from nearfar.batch import Ragged, View
from nearfar.config import ImageViewConfig
from nearfar.rng import Rng
from nearfar.views import ImageViews, spatial
from nearfar.views import colour as colours

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OFF = ImageViewConfig(
    num_views=1, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0, jitter=0.0, grayscale=0.0
)  # fmt: skip
BUSY = ImageViewConfig(blur=0.5, solarize=0.3, gain=(0.7, 1.2), noise=0.02, vertical_flip=0.3, mean=MEAN, std=STD)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Several threads may share the mean of a lone large image and sum it in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def picture(num: int, channels: int, side: int) -> torch.Tensor:
    """Smooth colours with some grain."""
    generator = torch.Generator().manual_seed(side)
    low = torch.rand((num, channels, 6, 6), generator=generator)
    smooth = F.interpolate(low, (side, side), mode="bilinear")
    grain = torch.rand((num, channels, side, side), generator=generator)
    return ((0.85 * smooth + 0.15 * grain) * 255).round().to(torch.uint8)


def views(
    config: ImageViewConfig, image: torch.Tensor | Ragged, size: int = 32, channels: int = 3, seed: int = 0
) -> list[View]:
    return ImageViews(config, size, channels)(image, torch.arange(len(image)), Rng(seed))


@pytest.mark.parametrize("size", [32, 96])
@pytest.mark.parametrize("channels", [1, 3])
def test_exact_colour_equals_torchvision_from_crop_to_normalisation(size: int, channels: int) -> None:
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    mean, std = MEAN[:channels], STD[:channels]
    config = ImageViewConfig(
        num_views=2, exact_colour=True, hue=0.3, blur=0.5, solarize=0.4, vertical_flip=0.3, mean=mean, std=std
    )
    image, num = picture(12, channels, 70), 12
    index = torch.arange(100, 100 + num)
    maker = ImageViews(config, size, channels)
    for v, view in enumerate(maker(image, index, Rng(3))):
        rng = Rng(3).at(view=v)
        colour, box = colours.draw(config, index, rng), view.geometry.box.int().tolist()
        steps = [
            (functional.adjust_brightness, colour.brightness), (functional.adjust_contrast, colour.contrast),
            (functional.adjust_saturation, colour.saturation), (functional.adjust_hue, colour.hue),
        ]  # fmt: skip
        for i, (x1, y1, x2, y2) in enumerate(box):
            x = functional.resized_crop(image[i], y1, x1, y2 - y1, x2 - x1, [size, size], antialias=True)
            x = functional.horizontal_flip(x) if view.geometry.flip[i] else x
            x = functional.vertical_flip(x) if view.geometry.vertical_flip[i] else x
            x = functional.to_dtype(x, torch.float32, scale=True)
            for step in colour.order[i].tolist():
                function, value = steps[step]
                x = function(x, float(value[i]))
            if colour.gray[i]:
                x = functional.rgb_to_grayscale(x, num_output_channels=channels)
            if colour.sigma[i] > 0:
                x = functional.gaussian_blur(x, [maker.kernel] * 2, [float(colour.sigma[i])] * 2)
            sure = torch.ones_like(x, dtype=torch.bool)
            if colour.solarize[i]:
                sure = (x - 0.5).abs() > 3 / 255  # nearer to the threshold rounding decides
                x = functional.solarize(x, 0.5)
            expected = functional.normalize(x, list(mean), list(std))
            gap = (view.data[i] - expected).abs() * torch.tensor(std)[:, None, None]
            assert float(gap[sure].max()) < 2 / 255 * 1.05, (v, i)


def test_fast_path_is_near_the_exact_one() -> None:
    image = picture(64, 3, 32)
    config = ImageViewConfig(blur=0.5, mean=MEAN, std=STD)
    exact = dataclasses.replace(config, exact_colour=True)
    for fast, slow in zip(views(config, image), views(exact, image), strict=True):
        gap = (fast.data - slow.data).abs()
        assert float(gap.mean()) < 0.15  # of a standard deviation
        assert float((fast.data - slow.data.flip(0)).abs().mean()) > 0.8


def test_fast_path_without_hue_and_clamping_equals_the_exact_one() -> None:
    image = (picture(32, 3, 32).float() * 0.3 + 90).to(torch.uint8)
    config = ImageViewConfig(
        brightness=0.0,
        contrast=0.5,
        saturation=0.0,
        hue=0.0,
        blur=0.5,
        solarize=0.5,
        gain=(0.5, 2.0),
        mean=MEAN,
        std=STD,
    )
    exact = dataclasses.replace(config, exact_colour=True)
    for fast, slow in zip(views(config, image), views(exact, image), strict=True):
        gap = (fast.data - slow.data).abs().flatten(1)
        assert float(gap.median()) < 1e-3
        assert float((gap < 0.02).double().mean()) > 0.995  # all but pixels at the threshold of solarising


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize(("side", "size"), [(32, 32), (28, 28), (110, 96)])
@pytest.mark.parametrize("rotate", [0.0, 0.3])
def test_a_view_does_not_depend_on_its_batch(exact: bool, side: int, size: int, rotate: float) -> None:
    config = dataclasses.replace(BUSY, exact_colour=exact, rotate=rotate)
    image, index = picture(40, 3, side), torch.arange(40) * 7
    maker = ImageViews(config, size, 3)
    whole = maker(image, index, Rng(2, epoch=4))
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    shuffled = maker(image[order], index[order], Rng(2, epoch=4))
    for i in (0, 17, 39):
        alone = maker(image[i : i + 1], index[i : i + 1], Rng(2, epoch=4))
        for v in range(2):
            assert torch.equal(alone[v].data[0], whole[v].data[i])
            assert torch.equal(shuffled[v].data[order == i][0], whole[v].data[i])
            assert torch.equal(alone[v].geometry.matrix[0], whole[v].geometry.matrix[i])


def test_views_repeat_and_differ_by_view_epoch_seed_and_index() -> None:
    image = picture(1, 3, 32).repeat(4, 1, 1, 1)
    maker, index = ImageViews(ImageViewConfig(num_views=3, jitter=1.0), 32, 3), torch.arange(4)
    first, again = maker(image, index, Rng(1)), maker(image, index, Rng(1))
    assert all(torch.equal(a.data, b.data) for a, b in zip(first, again, strict=True))
    found = [
        *(view.data for view in first),
        maker(image, index, Rng(1, 1))[0].data,
        maker(image, index, Rng(2))[0].data,
    ]
    flat = torch.cat(found).flatten(1)
    assert len(flat.unique(dim=0)) == len(flat)
    third = maker(image, index, Rng(1, 0, 2))
    assert torch.equal(third[2].data, first[2].data)


EFFECTS = {
    "num_views": {"num_views": 3},
    "crop_scale": {"crop_scale": (0.2, 0.5)},
    "crop_ratio": {"crop_scale": (0.5, 0.5), "crop_ratio": (0.5, 2.0)},
    "rotate": {"rotate": 0.5},
    "zoom": {"zoom": (0.5, 0.8)},
    "aspect": {"aspect": 0.5},
    "shear": {"shear": 0.5},
    "shift": {"shift": 0.3},
    "flip": {"flip": 1.0},
    "vertical_flip": {"vertical_flip": 1.0},
    "jitter": {"jitter": 1.0},
    "brightness": {"jitter": 1.0, "contrast": 0.0, "saturation": 0.0, "hue": 0.0},
    "contrast": {"jitter": 1.0, "brightness": 0.0, "saturation": 0.0, "hue": 0.0},
    "saturation": {"jitter": 1.0, "brightness": 0.0, "contrast": 0.0, "hue": 0.0},
    "hue": {"jitter": 1.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0},
    "grayscale": {"grayscale": 1.0},
    "blur": {"blur": 1.0, "blur_sigma": (1.0, 2.0)},
    "blur_sigma": {"blur": 1.0, "blur_sigma": (1.0, 1.1), "blur_kernel": 9},
    "blur_kernel": {"blur": 1.0, "blur_sigma": (1.0, 2.0), "blur_kernel": 9},
    "solarize": {"solarize": 1.0},
    "gain": {"gain": (0.5, 0.7)},
    "noise": {"noise": 0.1},
    "mean": {"mean": MEAN, "std": (1.0, 1.0, 1.0)},
    "std": {"mean": (0.0, 0.0, 0.0), "std": STD},
    "exact_colour": {"jitter": 1.0, "exact_colour": True},
    "global_size": {"global_size": 20},
    "local_views": {"local_views": 2},
    "local_size": {"local_views": 2, "local_size": 12},
    "local_scale": {"local_views": 2, "local_scale": (0.5, 0.6)},
    "centred_views": {"crop_scale": (0.2, 0.2), "centred_views": 1},
    "centre_box": {"crop_scale": (0.2, 0.2), "centred_views": 1, "centre_box": (0.45, 0.55)},
    "centre_beta": {"crop_scale": (0.2, 0.2), "centred_views": 1, "centre_beta": 5.0},
}
WITHOUT = {
    "centred_views": {"crop_scale": (0.2, 0.2)},
    "centre_box": {"crop_scale": (0.2, 0.2), "centred_views": 1},
    "centre_beta": {"crop_scale": (0.2, 0.2), "centred_views": 1},
    "local_size": {"local_views": 2},
    "local_scale": {"local_views": 2},
    "crop_ratio": {"crop_scale": (0.5, 0.5)},
    "blur_sigma": {"blur": 1.0, "blur_sigma": (1.9, 2.0), "blur_kernel": 9},
    "blur_kernel": {"blur": 1.0, "blur_sigma": (1.0, 2.0)},
    "exact_colour": {"jitter": 1.0},
}


def test_every_option_is_listed() -> None:
    assert set(EFFECTS) == {field.name for field in dataclasses.fields(ImageViewConfig)}


@pytest.mark.parametrize("name", EFFECTS)
@pytest.mark.parametrize("exact", [False, True])
def test_every_option_has_an_effect(name: str, exact: bool) -> None:
    if name == "exact_colour" and exact:
        exact = False
    image = picture(8, 3, 32)
    base = dataclasses.replace(OFF, exact_colour=exact)
    with_it = views(dataclasses.replace(base, **EFFECTS[name]), image)
    without = views(dataclasses.replace(base, **WITHOUT.get(name, {})), image)
    if name in ("num_views", "local_views"):
        assert len(with_it) == 3
        return
    if name in ("global_size", "local_size"):
        assert with_it[-1].data.shape[2] == {"global_size": 20, "local_size": 12}[name] != without[-1].data.shape[2]
        return
    changed = (with_it[-1].data - without[-1].data).abs().amax(dim=(1, 2, 3))
    assert int((changed > 0.005).sum()) >= 6


@pytest.mark.parametrize("exact", [False, True])
def test_everything_off_gives_the_image(exact: bool) -> None:
    image = picture(5, 3, 32)
    (view,) = views(dataclasses.replace(OFF, exact_colour=exact), image)
    torch.testing.assert_close(view.data, image / 255)
    assert torch.equal(view.geometry.matrix, torch.eye(3)[:2].expand(5, 2, 3))


@pytest.mark.parametrize("exact", [False, True])
def test_single_steps_have_their_closed_forms(exact: bool) -> None:
    image, base = picture(6, 3, 32), dataclasses.replace(OFF, exact_colour=exact)
    plain = image / 255

    def one(**changes: object) -> torch.Tensor:
        return views(dataclasses.replace(base, **changes), image)[0].data

    torch.testing.assert_close(one(flip=1.0), plain.flip(3))
    torch.testing.assert_close(one(vertical_flip=1.0), plain.flip(2))
    luma = (plain * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=1, keepdim=True)
    torch.testing.assert_close(one(grayscale=1.0), luma.expand_as(plain), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one(solarize=1.0), torch.where(image >= 128, 1 - plain, plain))
    torch.testing.assert_close(one(gain=(1.5, 1.5)), plain * 1.5)
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    torch.testing.assert_close(one(mean=MEAN, std=STD), (plain - mean) / std, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        one(mean=MEAN, std=STD, solarize=1.0, gain=(2.0, 2.0)),
        (2 * torch.where(image >= 128, 1 - plain, plain) - mean) / std, atol=1e-5, rtol=1e-5,
    )  # fmt: skip
    noise = one(noise=0.1, mean=MEAN, std=STD) * std + mean - plain
    assert float(noise.std()) == pytest.approx(0.1, rel=0.03)
    assert abs(float(noise.mean())) < 0.005
    jittered = one(jitter=1.0, brightness=5.0)
    assert 0 <= float(jittered.min()) < float(jittered.max()) <= 1


def test_probabilities_decide_per_sample() -> None:
    image = picture(1, 3, 32).repeat(300, 1, 1, 1)
    for name in ("flip", "vertical_flip", "jitter", "grayscale", "solarize", "blur"):
        config = dataclasses.replace(OFF, **{name: 0.3}, blur_sigma=(1.0, 2.0))
        (view,) = views(config, image)
        share = ((view.data - image / 255).abs().amax(dim=(1, 2, 3)) > 1e-3).double().mean()
        assert 0.2 < float(share) < 0.4, name


def test_grey_and_coloured_sources() -> None:
    grey, colour = picture(6, 1, 32), picture(6, 3, 32)
    for exact in (False, True):
        config = dataclasses.replace(BUSY, exact_colour=exact, noise=0.0, mean=(), std=())
        for image in (grey, grey.expand(-1, 3, -1, -1).contiguous()):
            reference = views(config, grey.repeat(1, 3, 1, 1))
            for ours, theirs in zip(views(config, image), reference, strict=True):
                torch.testing.assert_close(ours.data, theirs.data, atol=1e-4, rtol=0)
        luma = (views(dataclasses.replace(OFF, exact_colour=exact), colour, channels=1))[0].data
        expected = (colour / 255 * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(dim=1, keepdim=True)
        torch.testing.assert_close(luma, expected)
        assert views(config, colour, channels=1)[0].data.shape == (6, 1, 32, 32)


def test_layout_role_and_type() -> None:
    (view,) = views(OFF, picture(2, 3, 32), size=24)
    assert view.data.dtype == torch.float32
    assert view.data.shape == (2, 3, 24, 24)
    assert view.data.is_contiguous(memory_format=torch.channels_last)
    assert view.role == "global"
    assert view.geometry.size == 24
    (grey,) = views(OFF, picture(2, 1, 32), size=24, channels=1)
    assert grey.data.is_contiguous()


def test_input_stays_as_it_is_and_no_gradient_is_kept() -> None:
    image = picture(3, 3, 32)
    before = image.clone()
    made = views(BUSY, image)
    assert torch.equal(image, before)
    assert not made[0].data.requires_grad


def test_ragged_and_equal_sizes_give_the_same_views() -> None:
    image = picture(5, 3, 120)
    maker, index = ImageViews(BUSY, 96, 3), torch.arange(5)
    ragged = maker(Ragged.of(list(image)), index, Rng(1))
    for ours, theirs in zip(ragged, maker(image, index, Rng(1)), strict=True):
        assert torch.equal(ours.data, theirs.data)
    mixed = Ragged.of([picture(1, 3, 40)[0], picture(1, 3, 64)[0, :, :50], image[0]])
    made = maker(mixed, torch.arange(3), Rng(1))
    assert made[0].data.shape == (3, 3, 96, 96)
    assert made[0].geometry.source.tolist() == [[40, 40], [64, 50], [120, 120]]
    assert torch.equal(maker.plain(mixed)[2:], maker.plain(image[:1]))


@pytest.mark.parametrize(
    ("shape", "size", "resize"), [((200, 160), 112, 128), ((60, 90), 32, 32), ((150, 260), 224, 256)]
)
def test_plain_equals_resize_and_centre_crop(shape: tuple[int, int], size: int, resize: int) -> None:
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    image = torch.randint(0, 256, (3, 3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ours = ImageViews(ImageViewConfig(mean=MEAN, std=STD), size, 3).plain(image)
    x = functional.center_crop(functional.resize(image, [resize], antialias=True), [size, size])
    expected = functional.normalize(functional.to_dtype(x, torch.float32, scale=True), list(MEAN), list(STD))
    assert float((ours - expected).abs().max() * 0.229) < 2 / 255
    assert ours.is_contiguous(memory_format=torch.channels_last)


def test_plain_keeps_images_of_the_right_size() -> None:
    image = picture(4, 1, 28)
    torch.testing.assert_close(ImageViews(ImageViewConfig(), 28, 1).plain(image), image / 255)
    torch.testing.assert_close(ImageViews(ImageViewConfig(), 28, 3).plain(image), (image / 255).repeat(1, 3, 1, 1))


def test_autocast_leaves_views_alone() -> None:
    image = picture(4, 3, 32)
    plain = views(BUSY, image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = views(BUSY, image)
    assert all(torch.equal(a.data, b.data) for a, b in zip(plain, under, strict=True))


def test_more_samples_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    image = picture(11, 3, 40)
    whole = views(BUSY, image)
    monkeypatch.setattr("nearfar.views.images._CHUNK", 3 * 32 * 32 * 4)
    for ours, theirs in zip(views(BUSY, image), whole, strict=True):
        assert torch.equal(ours.data, theirs.data)


def test_makers_travel_to_other_processes() -> None:
    maker, image = ImageViews(BUSY, 32, 3), picture(2, 3, 32)
    copy = pickle.loads(pickle.dumps(maker))
    assert torch.equal(copy(image, torch.arange(2), Rng())[0].data, maker(image, torch.arange(2), Rng())[0].data)


def test_affine_steps_are_recognised() -> None:
    assert not spatial.is_affine(BUSY)
    for name in ("rotate", "zoom", "aspect", "shear", "shift"):
        assert spatial.is_affine(ImageViewConfig(**EFFECTS[name])), name


def test_bad_input_is_refused() -> None:
    maker, image, index = ImageViews(OFF, 32, 3), picture(2, 3, 32), torch.arange(2)
    with pytest.raises(TypeError, match=r"image: expected uint8, received torch\.float32"):
        maker(image.float(), index, Rng())
    with pytest.raises(ValueError, match=r"image: expected shape \[B, C, H, W\], received \(3, 32, 32\)"):
        maker(image[0], index, Rng())
    with pytest.raises(ValueError, match=r"image: expected 1 or 3 channels, the same in every sample, received \[2\]"):
        maker(image[:, :2], index, Rng())
    with pytest.raises(ValueError, match="image: expected at least one sample with pixels, received none"):
        maker(image[:0], index[:0], Rng())
    with pytest.raises(ValueError, match="image: expected at least one sample with pixels, received none"):
        maker.plain(image[:, :, :0])
    with pytest.raises(TypeError, match="image: expected a tensor or Ragged, received list"):
        maker([image[0]], index, Rng())
    with pytest.raises(ValueError, match=r"image: expected 1 or 3 channels, .* received \[1, 3\]"):
        maker(Ragged.of([image[0], image[0, :1]]), index, Rng())
    with pytest.raises(ValueError, match=r"image: expected Ragged with shapes \[B, 3\]"):
        maker(Ragged.of([image[0, 0], image[1, 0, :5]]), index, Rng())
    with pytest.raises(ValueError, match=r"index: expected shape \[2\], received \(3,\)"):
        maker(image, torch.arange(3), Rng())
    with pytest.raises(TypeError, match="index: expected integers"):
        maker(image, torch.zeros(2), Rng())


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match="channels: expected 1 or 3, received 4"):
        ImageViews(OFF, 32, 4)
    with pytest.raises(ValueError, match="size: expected 1 pixel or more, received 0"):
        ImageViews(OFF, 0, 3)
    with pytest.raises(ValueError, match=r"views\.mean: expected none or 1 values, received \(0.485"):
        ImageViews(ImageViewConfig(mean=MEAN, std=STD), 32, 1)
    with pytest.raises(ValueError, match=r"views\.blur_kernel: expected a reach below 4 pixels, received 4"):
        ImageViews(ImageViewConfig(blur=0.5, blur_kernel=9), 4, 3)
