"""iBOT's five oracles on its own method, its masks, and encoders with and without tokens.

Legend: B batch, V views, W views that the teacher sees, T patches, K prototypes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import scipy.special
import torch
from torch import Tensor

from nearfar.config import DataInfo, EncoderConfig, HeadConfig, ImageViewConfig
from nearfar.method import Progress
from nearfar.plugin import load_recipe
from nearfar.rng import Rng
from nearfar.views import ImageViews
from nearfar_images import encoders
from nearfar_images.methods._patches import block_mask, grid, painted, see
from nearfar_images.methods.ibot import IBOT
from nearfar_images.systems.ibot import IBOTConfig

B, K, SIDE = 5, 7, 16
SHAPE = (3, SIDE, SIDE)


def make(num_views: int = 2, encoder: str = "tiny-vit", **options: Any) -> IBOT:
    torch.manual_seed(0)
    head = HeadConfig(layers=2, hidden=9, dim=5, norm="none")
    config = dataclasses.replace(load_recipe("images/ibot").method, head=head, num_prototypes=K, **options)
    built = encoders.build(EncoderConfig(name=encoder, dim=16, width=4), SHAPE)
    views = ImageViews(ImageViewConfig(num_views=num_views), size=SIDE, channels=3)
    method = config.build(DataInfo(num_samples=100, shape=SHAPE), built, views)
    assert isinstance(method, IBOT)
    return method


def batch(step: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    pixels = torch.randint(0, 256, (B, *SHAPE), generator=generator, dtype=torch.uint8)
    return {"index": torch.arange(B) + B * step, "image": pixels}


def double(method: IBOT, views: dict[str, Any]) -> tuple[IBOT, dict[str, Any]]:
    for view in views["views"]:
        object.__setattr__(view, "data", view.data.double())
    return method.double(), views


@pytest.mark.oracle("ibot", 1)
def test_masked_term_equals_loops() -> None:
    method = make(3, mask_share=0.7)
    method, views = double(method, method.views(batch(), Rng()))
    method.patch_centre.copy_(torch.linspace(-0.3, 0.3, K))
    mask = views["mask"].flatten(2)
    assert mask.shape == (B, 2, 16)
    assert mask.any(2).sum() not in (0, 2 * B)  # some of both kinds
    total = 0.0
    for w in range(2):
        x = views["views"][w].data
        _, student = method.encoder.model.tokens(x, mask[:, w], method.mask_token)
        _, teacher = method.teacher_parts[0].model.tokens(x)
        for i in range(B):
            rows = mask[i, w].nonzero().flatten().tolist()
            losses = []
            for t in rows:
                s = method.head(student[i, t][None])[0].detach().numpy()
                p = method.teacher_parts[1](teacher[i, t][None])[0].detach().numpy()
                target = scipy.special.softmax((p - method.patch_centre.numpy()) / 0.04)
                losses.append(-(target * scipy.special.log_softmax(s / 0.1)).sum())
            total += np.mean(losses) if rows else 0.0
    terms = method.loss(method.encode(views), views, method.targets(views, Progress()), Progress())
    assert float(terms.values["patches"].detach()) == pytest.approx(total / (2 * B), rel=1e-9)
    assert terms.counts["patches"] == terms.counts["distillation"] == B


@pytest.mark.oracle("ibot", 2)
@pytest.mark.parametrize("encoder", ["tiny-vit", "convnet"])
def test_without_masks_it_is_dino(encoder: str) -> None:
    method = make(encoder=encoder, mask_share=0.0)
    views = method.views(batch(), Rng())
    plain = load_recipe("images/dino").method
    config = dataclasses.replace(plain, head=method.config.head, num_prototypes=K)
    dino = config.build(DataInfo(num_samples=100, shape=SHAPE), method.encoder, method.make_views)
    dino.head, dino.teacher = method.head, method.teacher  # the same weights
    method.eval()  # statistics of batch norms stay, since one of the two runs after the other
    ours = method.loss(method.encode(views), views, method.targets(views, Progress()), Progress())
    theirs = dino.loss(dino.encode(views), views, dino.targets(views, Progress()), Progress())
    assert float(ours.values["patches"].detach()) == 0.0
    torch.testing.assert_close(ours.total, theirs.total)
    weights = [*method.encoder.parameters(), *method.head.parameters()]
    found, expected = (torch.autograd.grad(terms.total, weights) for terms in (ours, theirs))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.oracle("ibot", 3)
@pytest.mark.parametrize("encoder", ["tiny-vit", "timm/test_vit", "timm/test_resnet"])
def test_who_sees_what(encoder: str) -> None:
    method = make(encoder=encoder, mask_share=1.0)
    views = method.views(batch(), Rng())
    mask = views["mask"]
    before = method.encode(views)
    keys = method.targets(views, Progress())
    views["mask"] = torch.zeros_like(mask)  # the teacher does not know of masks
    torch.testing.assert_close(method.targets(views, Progress())["patch"], keys["patch"])
    views["mask"] = mask
    for w in range(2):  # pixels under the mask change
        cells = torch.nn.functional.interpolate(mask[:, w, None].float(), (SIDE, SIDE)) > 0
        data = torch.where(cells, torch.rand(SHAPE), views["views"][w].data)
        object.__setattr__(views["views"][w], "data", data)
    after = method.encode(views)
    torch.testing.assert_close(after["patch"], before["patch"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after["embedding"], before["embedding"], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(method.targets(views, Progress())["patch"], keys["patch"], atol=1e-3)
    z = {name: value.detach().requires_grad_() for name, value in after.items()}
    terms = method.loss(z, views, keys, Progress())
    (grad,) = torch.autograd.grad(terms.values["patches"], z["patch"])
    moved = grad.abs().sum(-1) > 0
    assert torch.equal(moved, mask.flatten(2))


@pytest.mark.oracle("ibot", 4)
def test_masks_are_what_was_asked_for() -> None:
    index, side = torch.arange(4000), (8, 8)
    mask = block_mask(Rng(1), index, side, share=0.5, ratio=(0.1, 0.5))
    count = mask.flatten(1).sum(1)
    some = count > 0
    assert float(some.float().mean()) == pytest.approx(0.5, abs=0.03)
    assert count[some].min() == 6  # 6.4 patches
    assert count[some].max() == 32
    assert float(count[some].float().mean()) == pytest.approx(0.3 * 64, abs=0.5)
    part = torch.tensor([17, 3, 2500])
    assert torch.equal(block_mask(Rng(1), part, side, share=0.5, ratio=(0.1, 0.5)), mask[part])
    for other in (Rng(2), Rng(1, epoch=1), Rng(1, view=1)):
        assert not torch.equal(block_mask(other, index, side, share=0.5, ratio=(0.1, 0.5)), mask)

    def neighbours(m: Tensor) -> float:
        """Share of the pairs of a hidden patch and its right neighbour that are both hidden."""
        return float((m[:, :, 1:] & m[:, :, :-1]).sum() / m[:, :, :-1].sum())

    spread = torch.rand(4000, 64).argsort(1).argsort(1) < count[:, None]
    assert neighbours(mask) > neighbours(spread.unflatten(1, side)) + 0.25
    assert float(mask[some].float().mean(0).min()) > 0.05  # corners least often, as rectangles fit inside
    everything = block_mask(Rng(), index[:50], side, share=1.0, ratio=(1.0, 1.0))
    assert everything.all()
    assert block_mask(Rng(), index[:50], (1, 1), share=1.0, ratio=(0.1, 0.1)).all()  # one patch at least


@pytest.mark.oracle("ibot", 5)
def test_two_centres() -> None:
    method = make(centre_momentum=0.7)
    centres = {"centre": torch.zeros(K), "patch_centre": torch.zeros(K)}
    for step in range(4):
        views = method.views(batch(step), Rng(0, step))
        targets = method.targets(views, Progress())
        x = torch.cat([view.data for view in views["views"]])
        encoder, head = method.teacher_parts
        feature, patches = (part.detach() for part in see(encoder, x))
        means = {"centre": head(feature).mean(0), "patch_centre": head(patches.flatten(0, 1)).mean(0)}
        z = method.encode(views)
        method.after_update(z, targets, Progress(step=step))
        for name, mean in means.items():
            centres[name] = 0.7 * centres[name] + 0.3 * mean.detach()
            torch.testing.assert_close(method.get_buffer(name), centres[name], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(method.centre, method.patch_centre, atol=1e-3)


@pytest.mark.parametrize("name", ["convnet", "tiny-vit", "timm/test_vit", "timm/test_resnet", "torchvision/resnet18"])
def test_patches_of_every_kind_of_encoder(name: str) -> None:
    shape = (3, 32, 32)
    encoder = encoders.build(EncoderConfig(name=name, dim=16, width=4), shape).eval()
    side = grid(encoder, shape)
    x = torch.rand(2, *shape)
    feature, patches = see(encoder, x)
    assert patches.shape == (2, side[0] * side[1], encoder.feature_dim)
    torch.testing.assert_close(feature, encoder(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(patches, encoder.dense(x).flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-5)


def test_an_encoder_whose_patches_do_not_fit_is_refused() -> None:
    encoder = encoders.build(EncoderConfig(name="torchvision/mobilenet_v3_small"), (3, 32, 32)).eval()
    with pytest.raises(ValueError, match="encoder.name: expected an encoder whose patches are as wide"):
        see(encoder, torch.rand(2, 3, 32, 32))


def test_painted() -> None:
    x, colour = torch.rand(1, 3, 4, 6), torch.tensor([1.0, 2.0, 3.0])
    mask = torch.tensor([[[True, False, False], [False, False, True]]])
    found = painted(x, mask, colour)
    assert torch.equal(found[0, :, 0, 0], colour)
    assert torch.equal(found[0, :, 3, 5], colour)
    assert torch.equal(found[0, :, 2:, :4], x[0, :, 2:, :4])
    assert torch.equal(found[0, :, :2, 2:], x[0, :, :2, 2:])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"shuffle_keys": True}, "method.shuffle_keys: expected False"),
        ({"patch_weight": -1.0}, "method.patch_weight: expected 0 or more"),
        ({"mask_share": 1.5}, "method.mask_share: expected a number in"),
        ({"mask_ratio": (0.5, 0.1)}, "method.mask_ratio: expected two numbers"),
        ({"mask_ratio": (0.0, 0.1)}, "method.mask_ratio: expected two numbers"),
    ],
)
def test_config_refuses(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        IBOTConfig(**options)


def test_imagenet_recipe_is_the_papers() -> None:
    method = load_recipe("images/ibot_imagenet").method
    assert (method.num_prototypes, method.mask_ratio, method.mask_share) == (8192, (0.1, 0.5), 0.5)
    assert (method.teacher_temperature, method.teacher_temperature_end, method.teacher_warmup_epochs) == (
        0.04,
        0.07,
        30,
    )
