from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nearfar.models import TinyViT
from nearfar.models.vit import Block


def test_a_block_equals_torchs_pre_norm_layer() -> None:
    torch.manual_seed(0)
    block = Block(12, 3)
    layer = nn.TransformerEncoderLayer(12, 3, 48, dropout=0.0, activation="gelu", batch_first=True, norm_first=True)
    layer.self_attn.in_proj_weight.data.copy_(block.qkv.weight)
    layer.self_attn.in_proj_bias.data.copy_(block.qkv.bias)
    layer.self_attn.out_proj.load_state_dict(block.project.state_dict())
    layer.linear1.load_state_dict(block.mlp[0].state_dict())
    layer.linear2.load_state_dict(block.mlp[2].state_dict())
    x = torch.randn(2, 7, 12)
    assert torch.allclose(block(x), layer(x), atol=1e-5)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_shapes_other_sizes_and_gradients(pooling: str) -> None:
    net = TinyViT(3, 16, dim=16, depth=2, heads=2, pooling=pooling)
    for height, width in ((16, 16), (8, 8), (24, 12)):
        x = torch.randn(2, 3, height, width)
        assert net(x).shape == (2, net.feature_dim) == (2, 16)
        assert net.dense(x).shape == (2, 16, height // 4, width // 4)
    net(torch.randn(4, 3, 24, 24)).square().mul(torch.rand(16)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    if pooling == "mean":
        x = torch.randn(2, 3, 16, 16)
        assert torch.allclose(net(x), net.dense(x).mean((2, 3)), atol=1e-5)


def test_rows_do_not_depend_on_each_other() -> None:
    net = TinyViT(1, 16, dim=16, depth=2)
    x = torch.randn(5, 1, 16, 16)
    assert torch.allclose(net(x)[:2], net(x[:2]), atol=1e-5)


def test_positions_are_seen_and_interpolated() -> None:
    torch.manual_seed(0)
    net = TinyViT(1, 16, dim=16, depth=1, pooling="mean")
    x = torch.randn(1, 1, 16, 16)
    shuffled = x.unflatten(3, (4, 4)).flip(3).flatten(3)  # patches of every row in reverse
    assert not torch.allclose(net(x), net(shuffled), atol=1e-4)
    nn.init.zeros_(net.positions)
    assert torch.allclose(net(x), net(shuffled), atol=1e-5)
    nn.init.constant_(net.positions, 0.5)  # a constant stays one at any size

    def without(x: Tensor) -> Tensor:
        patches = net.embed(x).add(0.5).flatten(2).transpose(1, 2)
        return net.norm(net.blocks[0](patches)).mean(1)

    bigger = torch.randn(2, 1, 24, 20)
    assert torch.allclose(net(bigger), without(bigger), atol=1e-5)


def test_it_learns_to_tell_two_patterns_apart() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(TinyViT(1, 16, dim=16, depth=2), nn.Linear(16, 2))
    optimiser = torch.optim.AdamW(net.parameters(), 1e-2)
    y = torch.arange(32) % 2
    stripes = torch.arange(16).remainder(4).lt(2).float().expand(16, 16)
    x = torch.where(y.view(-1, 1, 1, 1) == 0, stripes, stripes.T) + 0.3 * torch.randn(32, 1, 16, 16)
    for _ in range(15):
        optimiser.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimiser.step()
    assert (net(x).argmax(1) == y).all()


def test_the_batch_size_stays_free_in_an_export() -> None:
    net = TinyViT(1, 16, dim=16, depth=1).eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(net, (torch.randn(3, 1, 16, 16),), dynamic_shapes=({0: batch},))
    x = torch.randn(5, 1, 16, 16)
    assert torch.allclose(program.module()(x), net(x), atol=1e-5)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="size: expected a multiple of the patch of 4 pixels, received 30"):
        TinyViT(1, 30)
    with pytest.raises(ValueError, match="dim: expected a multiple of 4 heads, received 30"):
        TinyViT(1, 32, dim=30)
    with pytest.raises((ValueError, TypeError), match="pooling"):
        TinyViT(1, 32, pooling="max")
    with pytest.raises(ValueError, match="depth"):
        TinyViT(1, 32, depth=0)
    with pytest.raises(ValueError, match=r"x: expected shape \[B, 1, H, W\], H and W multiples of 4"):
        TinyViT(1, 32, dim=16)(torch.zeros(1, 1, 32, 30))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_tokens_are_the_features_and_the_patches(pooling: str) -> None:
    torch.manual_seed(0)
    net = TinyViT(3, 16, dim=16, depth=2, heads=2, pooling=pooling)
    x = torch.randn(2, 3, 16, 24)
    feature, patches = net.tokens(x)
    assert torch.allclose(feature, net(x), atol=1e-6)
    assert torch.allclose(patches.transpose(1, 2).unflatten(2, (4, 6)), net.dense(x), atol=1e-6)


def test_masked_patches_are_not_seen() -> None:
    torch.manual_seed(0)
    net = TinyViT(1, 16, dim=16, depth=2, heads=2)
    x, mask, token = torch.randn(3, 1, 16, 16), torch.zeros(3, 16, dtype=torch.bool), torch.randn(16)
    mask[0, 5], mask[1, :3] = True, True
    feature, patches = net.tokens(x, mask, token.requires_grad_())
    changed = x.clone()
    changed[0, :, 4:8, 4:8] += 3  # patch 5 is in the second row and column
    changed[1, :, :4, :12] += 3
    torch.testing.assert_close(net.tokens(changed, mask, token), (feature, patches))
    whole = net.tokens(x)
    torch.testing.assert_close(patches[2], whole[1][2])
    assert not torch.allclose(patches[0], whole[1][0], atol=1e-3)
    assert not torch.allclose(net.tokens(x, mask, 2 * token)[1][0], patches[0], atol=1e-3)
    (grad,) = torch.autograd.grad(patches[:2].square().mul(torch.rand(16)).sum(), token)
    assert grad.abs().sum() > 0
    # a token that is the patch's own embedding changes nothing
    own = net.embed(x)[0, :, 1, 1].detach()
    torch.testing.assert_close(net.tokens(x[:1], mask[:1], own)[1], whole[1][:1])


def test_tokens_refuse() -> None:
    net, x = TinyViT(1, 16, dim=16, depth=1), torch.randn(2, 1, 16, 16)
    with pytest.raises(ValueError, match=r"mask: expected shape \(2, 16\)"):
        net.tokens(x, torch.zeros(2, 9, dtype=torch.bool), torch.zeros(16))
    with pytest.raises(ValueError, match="mask_token: expected a tensor"):
        net.tokens(x, torch.zeros(2, 16, dtype=torch.bool))
