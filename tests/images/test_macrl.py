"""MACRL: masks, pixels and the decoder against loops, the loss against MoCo's, where gradients go, bad input.

Legend: B batch, L patches, K kept patches, P pixels of a patch.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from nearfar.config import ContrastConfig, DataInfo, EncoderConfig, HeadConfig, ImageViewConfig
from nearfar.method import Progress
from nearfar.models import TinyViT
from nearfar.rng import Rng
from nearfar.views import ImageViews
from nearfar_images import encoders
from nearfar_images.methods._masked import (
    masking,
    normalise_patches,
    patch_grid,
    patchify,
    pixel_loss,
    unpatchify,
    visible,
)
from nearfar_images.systems.macrl import MACRLConfig

B, SIDE = 5, 16
SHAPE = (3, SIDE, SIDE)
NOW = Progress(steps=10)
HEAD = HeadConfig(layers=2, hidden=9, dim=6, norm="none")
VIEWS = ImageViewConfig(jitter=0.8, blur=0.0)


def built(name: str = "tiny-vit") -> Any:
    torch.manual_seed(0)
    return encoders.build(EncoderConfig(name=name, dim=16, width=4), SHAPE)


def make(encoder: str = "tiny-vit", **options: Any) -> Any:
    options = {"head": HEAD, "queue": 9, "decoder_dim": 8, "decoder_depth": 1, "decoder_heads": 2} | options
    config = MACRLConfig(**options)
    views = ImageViews(VIEWS, size=SIDE, channels=3)
    return config.build(DataInfo(num_samples=100, shape=SHAPE), built(encoder), views)


def batch(num: int = B) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "index": torch.arange(num),
        "image": torch.randint(0, 256, (num, *SHAPE), generator=generator, dtype=torch.uint8),
    }


# -- oracles -----------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("macrl", 1)
@pytest.mark.parametrize("filled", [True, False])
def test_without_masks_and_pixels_it_is_moco(filled: bool) -> None:
    own = make(weight_a=0.0, weight_b=0.0, ratio_a=0.0, ratio_b=0.0, asymmetric=False)
    plain = ContrastConfig(loss="info_nce", temperature=0.2, head=HEAD, key_encoder="ema", queue=9, symmetric=False)
    moco = plain.build(own_info(), built(), ImageViews(VIEWS, size=SIDE, channels=3))
    moco.load_state_dict(own.state_dict())
    viewed = own.views(batch(), Rng(1))
    if filled:
        for one in (own, moco):
            one.queue.push(key=torch.nn.functional.normalize(torch.arange(54.0).view(9, 6).sin(), dim=1))
    losses = [m.loss(m.encode(viewed), viewed, m.targets(viewed, NOW), NOW).total for m in (own, moco)]
    torch.testing.assert_close(*losses)
    assert own.decoder is None


def own_info() -> DataInfo:
    return DataInfo(num_samples=100, shape=SHAPE)


@pytest.mark.oracle("macrl", 2)
def test_without_contrast_it_is_a_masked_autoencoder_with_l1() -> None:
    method = make(contrast_weight=0.0, weight_b=0.0)
    viewed = method.views(batch(), Rng(1))
    terms = method.loss(method.encode(viewed), viewed, method.targets(viewed, NOW), NOW)
    assert list(terms.values) == ["pixels_a"]
    x, noise, vit, decoder = viewed["views"][0].data, viewed["noise"][:, 0], method.encoder.model, method.decoder
    losses = []
    for i in range(B):  # one image at a time, patch by patch
        kept = sorted(noise[i].argsort()[:4].tolist())
        position = vit.positions.flatten(2).transpose(1, 2)[0]
        tokens = vit.embed(x[i : i + 1]).flatten(2).transpose(1, 2)[0] + position
        encoded = torch.cat([vit.cls[0], tokens[kept]])[None]
        for block in vit.blocks:
            encoded = block(encoded)
        seen = decoder.embed(vit.norm(encoded))[0]
        row = [seen[0]] + [seen[1 + kept.index(p)] if p in kept else decoder.mask_token for p in range(16)]
        said = decoder.out(decoder.norm(decoder.blocks(torch.stack(row)[None] + decoder.positions)))[0, 1:]
        for p in set(range(16)) - set(kept):
            top, left = 4 * (p // 4), 4 * (p % 4)
            patch = x[i, :, top : top + 4, left : left + 4].permute(1, 2, 0).flatten()
            losses.append((said[p] - patch).abs().mean())
    torch.testing.assert_close(terms.total, torch.stack(losses).mean())


@pytest.mark.oracle("macrl", 2)
@pytest.mark.oracle("macrl", 5)
def test_only_removed_patches_count_and_by_their_distance() -> None:
    target, mask = torch.randn(3, 8, 12), torch.rand(3, 8) < 0.5
    off = torch.where(mask[:, :, None], 0.0, 5.0)
    assert float(pixel_loss(target + off, target, mask, power=1)) == 0
    for c in (0.3, -0.7):
        shifted = torch.where(mask[:, :, None], target + c, torch.randn_like(target))
        assert float(pixel_loss(shifted, target, mask, power=1)) == pytest.approx(abs(c), rel=1e-5)
    assert float(pixel_loss(target, target + 1, torch.zeros_like(mask), power=1)) == 0  # nothing removed: not NaN


@pytest.mark.oracle("macrl", 3)
def test_where_gradients_go() -> None:
    method = make()
    viewed = method.views(batch(), Rng(1))
    targets = method.targets(viewed, NOW)
    terms = method.loss(method.encode(viewed), viewed, targets, NOW)
    assert not targets["key"].requires_grad
    terms.values["contrast"].backward(retain_graph=True)
    assert all(p.grad is None for p in method.decoder.parameters())
    assert all(p.grad is None for p in method.teacher.parameters())
    assert any(p.grad is not None for p in method.encoder.parameters())
    method.zero_grad()
    terms.values["pixels_b"].backward()
    assert all(p.grad is not None for p in method.decoder.parameters())
    assert all(p.grad is None for p in [*method.teacher.parameters(), *method.head.parameters()])
    assert method.encoder.model.embed.weight.grad is not None
    assert not method.queue.view("key").requires_grad


@pytest.mark.oracle("macrl", 4)
@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.75, 0.9])
def test_masks_have_their_share_and_can_be_repeated(ratio: float) -> None:
    method = make(ratio_a=ratio, ratio_b=ratio)
    viewed, again = method.views(batch(), Rng(1)), method.views(batch(), Rng(1))
    first, second = method.maskings(viewed)
    for found in (first, second):
        assert found.mask.sum(1).tolist() == [16 - int(16 * (1 - ratio))] * B
        assert found.kept.shape == (B, int(16 * (1 - ratio)))
        assert not found.mask.gather(1, found.kept).any()
    assert torch.equal(first.mask, method.maskings(again)[0].mask)
    if ratio:
        assert not torch.equal(first.mask, second.mask)
        assert not torch.equal(first.mask, method.maskings(method.views(batch(), Rng(1, 1)))[0].mask)
        assert len({tuple(row.tolist()) for row in first.mask}) > 1


# -- parts -------------------------------------------------------------------------------------------------------------


def test_the_second_view_keeps_its_colours() -> None:
    views = ImageViewConfig(
        crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0, jitter=1.0, brightness=0.9, grayscale=0.0
    )  # fmt: skip
    for asymmetric in (True, False):
        config = MACRLConfig(head=HEAD, queue=9, asymmetric=asymmetric)
        method = config.build(own_info(), built(), ImageViews(views, size=SIDE, channels=3))
        first, second = (view.data for view in method.views(batch(), Rng(1))["views"])
        plain = batch()["image"] / 255
        assert torch.allclose(second, plain, atol=1e-5) == asymmetric
        assert not torch.allclose(first, plain, atol=1e-2)


def test_crops_of_the_two_views_differ() -> None:
    first, second = make(asymmetric=True).views(batch(), Rng(1))["views"]
    assert not torch.equal(first.geometry.matrix, second.geometry.matrix)


def test_all_patches_kept_is_the_encoder_itself() -> None:
    x = torch.rand(3, *SHAPE)
    for name in ("tiny-vit", "timm/vit_tiny_patch16_224", "convnet"):
        encoder = built(name).eval()
        side = patch_grid(encoder, SHAPE)
        assert side == ((1, 1) if name.startswith("timm") else (4, 4))
        whole = masking(torch.rand(3, side[0] * side[1]), side, 0.0)
        feature, prefix, patches = visible(encoder, x, whole, side, torch.zeros(3))
        torch.testing.assert_close(feature, encoder(x))
        dense = encoder.dense(x).flatten(2).transpose(1, 2)
        torch.testing.assert_close(patches, dense if name != "convnet" else dense.expand(-1, 16, -1))
        assert prefix.shape == (3, 1, encoder.feature_dim)


def test_grids_of_encoders_without_patches() -> None:
    encoder = built("convnet")
    for size, expected in ((16, 4), (28, 4), (32, 4), (64, 4), (96, 6), (224, 14), (7, 7)):
        assert patch_grid(encoder, (3, size, size)) == (expected, expected)


def test_several_class_tokens() -> None:
    torch.manual_seed(0)
    vit, x = TinyViT(3, 16, dim=8, heads=2, depth=2, num_cls=3), torch.rand(2, *SHAPE)
    feature, cls, patches = vit.visible(x, torch.arange(16).expand(2, -1))
    assert cls.shape == (2, 3, 8)
    torch.testing.assert_close(feature, cls.mean(1))
    torch.testing.assert_close(vit(x), feature)
    torch.testing.assert_close(vit.dense(x).flatten(2).transpose(1, 2), patches)
    assert not torch.allclose(cls[:, 0], cls[:, 1], atol=1e-3)


def test_patches_there_and_back() -> None:
    x = torch.rand(2, 3, 8, 12)
    patches = patchify(x, (2, 3))
    assert patches.shape == (2, 6, 48)
    assert torch.equal(patches[0, 4].view(4, 4, 3), x[0, :, 4:, 4:8].permute(1, 2, 0))
    assert torch.equal(unpatchify(patches, (2, 3), (3, 8, 12)), x)
    scaled = normalise_patches(patches)
    torch.testing.assert_close(scaled.mean(2), torch.zeros(2, 6), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="x: expected sides that are multiples of 3 and 3 patches"):
        patchify(x, (3, 3))


@pytest.mark.parametrize("options", [
    {"loss": "nt_xent", "key_encoder": "shared", "queue": 0, "symmetric": True, "momentum_end": 0.0},
    {"symmetric": True}, {"normalise": True},
])  # fmt: skip
def test_other_settings_train(options: dict[str, Any]) -> None:
    method = make("convnet", **options)
    viewed = method.views(batch(), Rng(1))
    terms = method.loss(method.encode(viewed), viewed, method.targets(viewed, NOW), NOW)
    assert set(terms.values) == {"contrast", "pixels_a", "pixels_b"}
    terms.total.backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)
    assert torch.isfinite(terms.total)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="method.ratio_a: expected one that keeps one of the 16 blocks"):
        make(ratio_a=0.95)
    with pytest.raises(ValueError, match="method.decoder_dim: expected a multiple of method.decoder_heads 3"):
        make(decoder_heads=3)
    views = ImageViews(dataclasses.replace(VIEWS, num_views=3), size=SIDE, channels=3)
    with pytest.raises(ValueError, match="views.num_views: expected 2, received 3"):
        MACRLConfig().build(own_info(), built(), views)
    for name, value, expected in (
        ("ratio_b", 1.0, "a number in"), ("weight_a", -1.0, "0 or more"), ("decoder_depth", 0, "1 or more"),
        ("shuffle_keys", True, "off"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"method\.{name}.*: expected {expected}.* received"):
            MACRLConfig(**{name: value})
    with pytest.raises(ValueError, match="method.contrast_weight: expected above 0"):
        MACRLConfig(contrast_weight=0.0, weight_a=0.0, weight_b=0.0)
