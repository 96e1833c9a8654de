"""Pixio: its forward against one written out, masks of blocks, targets, and the choice of images by their loss.

Legend: B batch, L patches.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor
from torch.nn import functional as F

from nearfar.config import DataConfig, DataInfo, EncoderConfig, ImageViewConfig, TrainerConfig
from nearfar.data import ArraySource, without_test
from nearfar.method import Progress
from nearfar.plugin import load_recipe
from nearfar.rng import Rng
from nearfar.train import Run
from nearfar.views import ImageViews
from nearfar_images import encoders
from nearfar_images.curation import Curated, curated, entropy, keep, statistics
from nearfar_images.methods._masked import masking, normalise_patches, patchify, pixel_loss, unpatchify
from nearfar_images.systems.pixio import PixioConfig

B, SIDE = 4, 32
SHAPE = (3, SIDE, SIDE)
NOW = Progress(steps=10)


def make(encoder: str = "tiny-vit", num_views: int = 1, **options: Any) -> Any:
    torch.manual_seed(0)
    config = PixioConfig(**{"num_cls": 3, "decoder_dim": 8, "decoder_depth": 2, "decoder_heads": 2} | options)
    built = encoders.build(EncoderConfig(name=encoder, dim=16, width=4), SHAPE)
    views = ImageViews(ImageViewConfig(num_views=num_views, jitter=0.0, grayscale=0.0), size=SIDE, channels=3)
    return config.build(DataInfo(num_samples=100, shape=SHAPE), built, views)


def batch(num: int = B) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (num, *SHAPE), generator=generator, dtype=torch.uint8)
    return {"index": torch.arange(num), "image": pixels}


def block(x: Tensor, one: Any) -> Tensor:
    """A transformer block written out for tokens [T, D]."""
    q, k, v = F.linear(F.layer_norm(x, x.shape[1:], one.norm_attention.weight, one.norm_attention.bias),
                       one.qkv.weight, one.qkv.bias).chunk(3, 1)  # fmt: skip
    heads = []
    for a, b, c in zip(*(part.chunk(one.heads, 1) for part in (q, k, v)), strict=True):
        heads.append((a @ b.T / a.shape[1] ** 0.5).softmax(1) @ c)
    x = x + F.linear(torch.cat(heads, 1), one.project.weight, one.project.bias)
    hidden = F.layer_norm(x, x.shape[1:], one.norm_mlp.weight, one.norm_mlp.bias)
    hidden = F.gelu(F.linear(hidden, one.mlp[0].weight, one.mlp[0].bias))
    return x + F.linear(hidden, one.mlp[2].weight, one.mlp[2].bias)


# -- oracles -----------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("pixio", 1)
def test_single_patches_and_one_class_token_are_the_masked_autoencoder() -> None:
    method = make(num_cls=1, block=1, decoder_depth=8)
    viewed = method.views(batch(), Rng(1))
    found = method.loss(method.encode(viewed), viewed, {}, NOW).total
    vit, decoder, total, count = method.encoder.model, method.decoder, 0.0, 0
    position = vit.positions[0].flatten(1).T
    for i in range(B):
        x = viewed["views"][0].data[i]
        cells = x.unfold(1, 4, 4).unfold(2, 4, 4).permute(1, 2, 0, 3, 4).reshape(64, 3, 4, 4)
        tokens = cells.flatten(1) @ vit.embed.weight.flatten(1).T + vit.embed.bias + position
        shuffle = viewed["noise"][i].argsort()
        kept = shuffle[:16]
        seen = torch.cat([vit.cls[0], tokens[kept]])
        for one in vit.blocks:
            seen = block(seen, one)
        seen = F.linear(vit.norm(seen), decoder.embed.weight, decoder.embed.bias)
        filled = torch.cat([seen[1:], decoder.mask_token.expand(48, -1)])[shuffle.argsort()]
        said = torch.cat([seen[:1], filled]) + decoder.positions[0]
        for one in decoder.blocks:
            said = block(said, one)
        said = F.linear(decoder.norm(said), decoder.out.weight, decoder.out.bias)[1:]
        target = cells.permute(0, 2, 3, 1).flatten(1)
        target = (target - target.mean(1, keepdim=True)) / (target.var(1, keepdim=True) + 1e-6) ** 0.5
        for p in shuffle[16:]:
            total = total + (said[p] - target[p]).square().mean()
            count += 1
    assert count == 48 * B
    torch.testing.assert_close(found, total / count)


@pytest.mark.oracle("pixio", 2)
@pytest.mark.parametrize(("block_side", "ratio"), [(1, 0.75), (2, 0.75), (4, 0.75), (2, 0.3), (4, 0.5)])
def test_blocks_are_kept_or_removed_whole(block_side: int, ratio: float) -> None:
    num = 64 // block_side**2
    found = masking(torch.rand(5, num), (8, 8), ratio, block=block_side)
    cells = found.mask.view(5, 8 // block_side, block_side, 8 // block_side, block_side)
    assert torch.equal(cells.any(4).any(2), cells.all(4).all(2))
    removed = num - int(num * (1 - ratio))
    assert found.mask.sum(1).tolist() == [removed * block_side**2] * 5
    patches = torch.arange(64).expand(5, -1)
    apart = torch.cat([patches.gather(1, found.kept), patches[found.mask].view(5, -1)], 1)
    assert torch.equal(apart.gather(1, found.restore), patches)


@pytest.mark.oracle("pixio", 2)
def test_the_blocks_with_the_least_noise_stay() -> None:
    noise = torch.rand(5, 16)
    found = masking(noise, (8, 8), 0.75, block=2)
    for i in range(5):
        stays = set(noise[i].argsort()[:4].tolist())
        expected = [p for p in range(64) if (p // 8 // 2) * 4 + p % 8 // 2 in stays]
        assert found.kept[i].tolist() == expected


@pytest.mark.oracle("pixio", 3)
def test_only_removed_patches_count() -> None:
    method = make()
    viewed = method.views(batch(), Rng(1))
    target = normalise_patches(patchify(viewed["views"][0].data, method.side))
    mask = method.masking(viewed).mask
    noise = torch.randn_like(target)
    perfect = torch.where(mask[:, :, None], target, noise)
    assert float(method.loss({"pixels": perfect}, viewed, {}, NOW).total) == 0
    z = method.encode(viewed)["pixels"]
    changed = torch.where(mask[:, :, None], z, noise)
    losses = [method.loss({"pixels": one}, viewed, {}, NOW).total for one in (z, changed)]
    assert torch.equal(*losses)
    torch.testing.assert_close(losses[0], pixel_loss(z, target, mask, power=2))


@pytest.mark.oracle("pixio", 4)
def test_patches_and_targets() -> None:
    x = torch.randn(3, *SHAPE, dtype=torch.float64).float()
    patches = patchify(x, (8, 8))
    assert torch.equal(unpatchify(patches, (8, 8), SHAPE), x)
    target = normalise_patches(patches)
    torch.testing.assert_close(target.mean(2), torch.zeros(3, 64), atol=1e-5, rtol=0)
    torch.testing.assert_close(target.var(2), torch.ones(3, 64), atol=1e-4, rtol=0)
    assert torch.equal(normalise_patches(torch.full((1, 2, 48), 7.0)), torch.zeros(1, 2, 48))


@pytest.mark.oracle("pixio", 5)
def test_images_come_as_often_as_they_are_hard() -> None:
    hardness = np.array([0.1, 0.5, 0.9, 1.0, 1.7, 0.0])
    drawn = keep(torch.from_numpy(hardness).repeat(4000), torch.rand(24000, dtype=torch.float64)).view(4000, 6)
    for k, share in enumerate(np.minimum(hardness, 1)):
        if 0 < share < 1:
            assert binomtest(int(drawn[:, k].sum()), 4000, share).pvalue > 1e-3
        else:
            assert int(drawn[:, k].sum()) == 4000 * share


# -- the rest ----------------------------------------------------------------------------------------------------------


def test_the_sampler_repeats_itself_and_draws_in_proportion() -> None:
    hardness = np.repeat([0.2, 0.6, 1.5, 0.0], 25)
    sampler = Curated(hardness, 10, seed=1)
    assert sampler.num_batches(0) == 4  # 5 + 15 + 25 images of a pass
    count = np.zeros(100)
    for epoch in range(200):
        batches = list(sampler.batches(epoch))
        assert [len(one) for one in batches] == [10] * 4
        np.add.at(count, np.concatenate(batches), 1)
    share = count.reshape(4, 25).sum(1) / count.sum()
    np.testing.assert_allclose(share, np.array([5, 15, 25, 0]) / 45, atol=0.02)
    assert np.array_equal(list(sampler.batches(7, 2)), list(Curated(hardness, 10, seed=1).batches(7))[2:])


def test_statistics_of_images() -> None:
    flat, noisy = torch.zeros(3, 8, 8, dtype=torch.uint8), torch.arange(192, dtype=torch.uint8).view(3, 8, 8)
    assert entropy(flat) == 0
    assert entropy(noisy) == pytest.approx(np.log2(192))
    method, images = make(), batch(6)["image"]
    found = statistics(method, ArraySource(images.numpy(), None, layout="nchw"), batch_size=4)
    assert found.side.tolist() == [32] * 6
    viewed = method.eval().views({"index": torch.arange(6), "image": images}, Rng(0))
    with torch.no_grad():
        errors = method.errors(method.encode(viewed), viewed)
    np.testing.assert_allclose(found.hardness, errors.numpy(), rtol=1e-5)


def test_curated_training(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (24, 16, 16, 3)).astype(np.uint8)
    pixels[:8] = 90  # no entropy: dropped
    data = without_test(ArraySource(pixels, None, name="toy"))
    trainer = TrainerConfig(
        epochs=1, batch_size=4, evaluate_every=0, evaluate_before=False, progress=False, device="cpu"
    )  # fmt: skip
    method = PixioConfig(num_cls=2, decoder_dim=8, decoder_depth=1, decoder_heads=2)
    small = dataclasses.replace(
        load_recipe("images/pixio_small"), method=method, data=DataConfig(image_size=16, channels=3),
        encoder=EncoderConfig(name="tiny-vit", dim=8), trainer=trainer,
    )  # fmt: skip
    run = curated(small, small, tmp_path / "work", least_side=16, data=data)
    assert Run(run).status["status"] == "finished"
    assert Run(run).status["step"] <= 4  # of 16 images at most
    assert curated(small, small, tmp_path / "work", least_side=16, data=data, resume=True) == run
    with pytest.raises(ValueError, match="batch_size: expected at most the 0 images kept"):
        curated(small, small, tmp_path / "work", least_side=320, data=data, resume=True)


@pytest.mark.parametrize("encoder", ["tiny-vit", "convnet", "timm/vit_tiny_patch16_224"])
def test_features_and_gradients(encoder: str) -> None:
    method = make(encoder, ratio=0.5)
    viewed = method.views(batch(), Rng(1))
    method.loss(method.encode(viewed), viewed, {}, NOW).total.backward()
    assert all(p.grad is not None for p in method.parameters())
    method.eval()
    with torch.no_grad():
        x = method.make_views.plain(batch()["image"])
        torch.testing.assert_close(method.features(batch()), method.encoder(x))
        if encoder == "tiny-vit":
            assert method.encoder.model.cls.shape == (1, 3, 16)
            torch.testing.assert_close(method.features(batch()), method.encoder.model._tokens(x)[0][:, :3].mean(1))


def test_blocks_by_default() -> None:
    assert (make().side, make().block) == ((8, 8), 2)
    config = load_recipe("images/pixio_imagenet").method
    assert isinstance(config, PixioConfig)
    assert (config.num_cls, config.ratio, config.decoder_dim, config.decoder_depth, config.decoder_heads) == (
        8, 0.75, 512, 32, 16,
    )  # fmt: skip


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="method.block: expected a divisor of both sides of the grid of 8 x 8"):
        make(block=3)
    with pytest.raises(ValueError, match="method.ratio: expected one that keeps one of the 4 blocks"):
        make(block=4, ratio=0.9)
    with pytest.raises(ValueError, match="views.num_views: expected 1, received 2"):
        make(num_views=2).views(batch(), Rng(0))
    with pytest.raises(ValueError, match="hardness: expected finite numbers of 0 or more"):
        Curated(np.array([0.5, -1.0]), 1)
    for name, value, expected in (
        ("ratio", 1.0, "a number in"), ("num_cls", 0, "1 or more"), ("block", -1, "0 or more"),
        ("decoder_depth", 0, "1 or more"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"method\.{name}.*: expected {expected}.* received"):
            PixioConfig(**{name: value})
