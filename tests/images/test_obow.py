"""OBoW's method on small images: what the teacher sees, what becomes a word, what predictions pay.

Legend: B images, V views, C features, D channels, K words, h w positions.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch.nn.functional import avg_pool2d

from nearfar.config import DataInfo, EncoderConfig, HeadConfig, ImageViewConfig
from nearfar.method import Progress
from nearfar.models import ConvNet
from nearfar.plugin import load_recipe
from nearfar.prototypes import bag_of_words, word_distances
from nearfar.rng import Rng
from nearfar.testing import check_method
from nearfar.views import ImageViews
from nearfar_images import encoders
from nearfar_images.methods._maps import stage_maps
from nearfar_images.systems.obow import OBoWConfig

NOW = Progress(steps=10)
SIDE, WORDS = 24, 10


def made(views: ImageViewConfig | None = None, **options: Any) -> tuple[Any, dict[str, Any]]:
    """OBoW around a tiny net, whose maps of 24 pixels have 12, 6, 3 and 2 positions a side, and raw images."""
    torch.manual_seed(0)
    config = OBoWConfig(**{"num_words": WORDS, "num_levels": 2, "sharpness": 2.0} | options)
    maker = ImageViews(views or ImageViewConfig(jitter=0.0, local_views=1), size=SIDE, channels=1)
    method = config.build(DataInfo(num_samples=9, shape=(1, SIDE, SIDE)), ConvNet(1, width=4, dim=8), maker)
    return method, {"image": torch.randint(0, 256, (4, 1, SIDE, SIDE), dtype=torch.uint8), "index": torch.arange(4)}


def test_levels_are_the_coarsest_maps_with_five_positions() -> None:
    method, _ = made()
    assert method.levels == [0, 1]
    assert [method.words.view(f"word{level}").shape for level in range(2)] == [(WORDS, 4), (WORDS, 8)]
    assert made(num_levels=1)[0].levels == [1]
    assert all(float(method.words.view(f"word{level}").min()) >= 0 for level in range(2))
    with pytest.raises(ValueError, match=r"method\.num_levels: expected at most the 2 feature maps of 5 x 5"):
        made(num_levels=3)


@pytest.mark.parametrize(
    ("name", "shape", "sides"),
    [("convnet", (1, 32, 32), [16, 8, 4, 2]), ("tiny-vit", (1, 32, 32), [8]),
     ("timm/resnet18", (3, 64, 64), [32, 16, 8, 4, 2]), ("torchvision/resnet18", (3, 64, 64), [32, 16, 8, 4, 2])],
)  # fmt: skip
def test_stage_maps_end_in_the_encoders_own(name: str, shape: tuple[int, ...], sides: list[int]) -> None:
    encoder = encoders.build(EncoderConfig(name=name, width=4, dim=8), shape).eval()
    with torch.no_grad():
        x = torch.rand(2, *shape)
        maps = stage_maps(encoder, x)
        torch.testing.assert_close(maps[-1], encoder.dense(x))
    assert [one.shape[2] for one in maps] == sides


def test_an_encoder_without_maps_is_refused() -> None:
    with pytest.raises(TypeError, match="encoder: expected one with feature maps, received Linear"):
        stage_maps(torch.nn.Linear(2, 2), torch.zeros(1, 2))


@pytest.mark.oracle("obow", 3)
def test_the_loss_by_loops() -> None:
    method, raw = made()
    viewed = method.views(raw, Rng(0))
    targets, z = method.targets(viewed, NOW), method.encode(viewed)
    terms = method.loss(z, viewed, targets, NOW)
    f, expected = z["embedding"].detach().double(), {"global": [], "local": []}
    for level in range(2):
        weight = method.generators[level](method.words.view(f"word{level}")).detach().double()
        bag = targets[f"bag{level}"].double()
        for b in range(4):
            for v, role in enumerate(("global", "global", "local")):
                p = (method.config.kappa * (weight @ f[b, v])).softmax(0)
                pays = [float(y * (y / q).log()) if y > 0 else 0.0 for y, q in zip(bag[b], p, strict=True)]
                expected[role].append(sum(pays))
    for role, pays in expected.items():
        assert float(terms.values[role].detach()) == pytest.approx(sum(pays) / len(pays), rel=1e-4)
    assert terms.counts == {"global": 4.0, "local": 4.0}
    assert float(terms.total.detach()) == pytest.approx(sum(sum(p) / len(p) for p in expected.values()), rel=1e-4)


@pytest.mark.parametrize("options", [{}, {"assignment": "hard"}, {"pool": "mean"}])
def test_bags_are_what_the_teacher_sees_in_the_whole_image(options: dict[str, Any]) -> None:
    method, raw = made(flip=0.0, **options)
    viewed = method.views(raw, Rng(0))
    torch.testing.assert_close(viewed["whole"], raw["image"] / 255)
    targets = method.targets(viewed, NOW)
    for level in range(2):
        encoder = copy.deepcopy(method.encoder).train()
        x = viewed["whole"]
        for block in encoder.blocks[: level + 1]:
            x = block(x)
        distance = word_distances(x[:, :, 1:-1, 1:-1].flatten(2).mT, method.words.view(f"word{level}"))
        nearest = 0.99 * 0.5 + 0.01 * float(distance.amin(2).mean())
        expected = bag_of_words(distance, sharpness=2.0 / nearest, hard=method.config.assignment == "hard",
                                pool=method.config.pool)  # fmt: skip
        torch.testing.assert_close(targets[f"bag{level}"], expected)
        assert float(targets[f"nearest{level}"]) == pytest.approx(nearest, rel=1e-5)
    with torch.no_grad():
        method.after_update({}, targets, NOW)
    torch.testing.assert_close(method.nearest, torch.stack([targets["nearest0"], targets["nearest1"]]))


@pytest.mark.oracle("obow", 4)
def test_permuted_words_leave_the_loss_as_it_is() -> None:
    method, raw = made()
    viewed = method.views(raw, Rng(0))
    z = method.encode(viewed)
    loss = method.loss(z, viewed, method.targets(viewed, NOW), NOW).total
    order = torch.randperm(WORDS)
    assert not torch.equal(order, torch.arange(WORDS))
    for level in range(2):
        words = method.words.get_buffer(f"word{level}")
        words.copy_(words[order])
    torch.testing.assert_close(method.loss(z, viewed, method.targets(viewed, NOW), NOW).total, loss)


@pytest.mark.oracle("obow", 5)
def test_a_step_replaces_the_oldest_words_and_moves_the_teacher_only() -> None:
    method, raw = made()
    viewed = method.views(raw, Rng(0))
    before = copy.deepcopy(method.words.state_dict())
    targets, z = method.targets(viewed, NOW), method.encode(viewed)
    method.loss(z, viewed, targets, NOW).total.backward()
    assert all(p.grad is None for p in method.teacher.parameters())
    assert all(p.grad is not None for part in (method.encoder, method.generators) for p in part.parameters())
    assert not any(name.startswith("words") for name, _ in method.named_parameters())
    maps = stage_maps(copy.deepcopy(method.encoder).train(), viewed["whole"])
    for step in range(3):
        method.after_update({}, targets, NOW)
        places = [(4 * step + k) % WORDS for k in range(4)]
        for level in range(2):
            name, pooled = f"word{level}", avg_pool2d(maps[level][:, :, 1:-1, 1:-1], 3, stride=1).flatten(2)
            words = method.words.get_buffer(name)
            same = [k for k in range(WORDS) if torch.equal(words[k], before[name][k])]
            if step == 0:
                assert same == list(range(4, WORDS))
            for k, place in enumerate(places):
                gaps = (pooled[k] - words[place][:, None]).detach().abs().amax(0)
                assert float(gaps.min()) < 1e-5  # the mean of 3 x 3 positions of image k, somewhere


def test_places_differ_by_image_and_epoch_and_whole_maps_can_be_words() -> None:
    method, raw = made()
    first, later = method.views(raw, Rng(0))["place"], method.views(raw, Rng(0, 1))["place"]
    assert len(torch.cat([first, later]).unique()) == 8
    method, raw = made(word="whole", num_levels=1)
    viewed = method.views(raw, Rng(0))
    maps = stage_maps(copy.deepcopy(method.encoder).train(), viewed["whole"])
    torch.testing.assert_close(method.targets(viewed, NOW)["word0"], maps[1][:, :, 1:-1, 1:-1].mean((2, 3)))


@pytest.mark.oracle("obow", 5)
def test_a_teacher_of_momentum_one_stays() -> None:
    method, raw = made(momentum=1.0)
    was = copy.deepcopy(method.teacher.module)
    targets = method.targets(method.views(raw, Rng(0)), NOW)
    for parameter in method.encoder.parameters():
        parameter.data.add_(1)
    method.after_update({}, targets, NOW)
    for now, then in zip(method.teacher.module.parameters(), was.parameters(), strict=True):
        assert torch.equal(now, then)


def test_the_image_of_the_teacher_is_mirrored_at_times() -> None:
    method, raw = made()
    raw = {"image": raw["image"][:1].repeat(60, 1, 1, 1), "index": torch.arange(60)}
    whole = method.views(raw, Rng(0))["whole"]
    mirrored = (whole == raw["image"].flip(-1) / 255).all(dim=(1, 2, 3))
    assert bool((mirrored | (whole == raw["image"] / 255).all(dim=(1, 2, 3))).all())
    assert 15 < int(mirrored.sum()) < 45


def test_the_contract() -> None:
    check_method(*made())


def test_perplexities_are_logged() -> None:
    method, raw = made(num_levels=1)
    viewed = method.views(raw, Rng(0))
    targets = method.targets(viewed, NOW) | {"bag0": torch.eye(WORDS)[:4]}
    logs = method.loss(method.encode(viewed), viewed, targets, NOW).logs
    assert float(logs["image_perplexity"]) == pytest.approx(1)
    assert float(logs["batch_perplexity"]) == pytest.approx(4)


def test_recipes_are_the_papers() -> None:
    large, vanilla = load_recipe("images/obow_imagenet"), load_recipe("images/obow_imagenet_vanilla")
    method = large.method
    assert isinstance(method, OBoWConfig)
    assert (method.num_words, method.num_levels, method.sharpness, method.kappa) == (8192, 2, 15, 8)
    assert (method.momentum, method.momentum_end) == (0.99, 1.0)
    assert (large.views.global_size, large.views.local_size, large.data.image_size) == (160, 96, 224)
    assert large.optimiser.lr * large.optimiser.final_lr == pytest.approx(3e-5)
    assert vanilla.method == dataclasses.replace(method, num_levels=1, sharpness=10.0, kappa=5.0)


def test_bad_input_is_refused() -> None:
    for name, value, expected in (
        ("num_words", 1, "2 or more"), ("num_levels", 0, "1 or more"), ("kappa", 0.0, "a finite number > 0"),
        ("sharpness", -1.0, "a finite number > 0"), ("key_encoder", "shared", "'ema'"), ("queue", 5, "0"),
        ("head", HeadConfig(), "'none'"), ("predictor", HeadConfig(), "'none'"), ("flip", 2.0, r"a number in \[0, 1\]"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"method\.{name}.*: expected {expected}.* received"):
            OBoWConfig(**{name: value})
