from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nearfar.models import ConvNet


@pytest.mark.parametrize("field", [8, 16])
@pytest.mark.parametrize("size", [4, 8, 9, 28, 32, 96])
def test_sizes_and_widths(size: int, field: int) -> None:
    net = ConvNet(3, width=8, dim=20, field=field)
    x = torch.randn(2, 3, size, size)
    side = size
    for _ in range(3 if field == 8 else 4):
        side = (side + 1) // 2
    assert net.dense(x).shape == (2, 20, side, side)
    assert net(x).shape == (2, net.feature_dim) == (2, 20)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_features_are_the_mean_of_the_dense_ones_and_every_parameter_learns(norm: str) -> None:
    net = ConvNet(1, width=4, dim=12, norm=norm)
    net(torch.randn(8, 1, 16, 16)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    net.eval()
    x = torch.randn(3, 1, 16, 16)
    assert torch.allclose(net(x), net.dense(x).mean((2, 3)), atol=1e-6)


def test_group_norm_makes_rows_independent() -> None:
    x = torch.randn(6, 1, 16, 16)
    grouped, batched = ConvNet(1, width=4, norm="group"), ConvNet(1, width=4)
    assert torch.allclose(grouped(x)[:2], grouped(x[:2]), atol=1e-6)
    assert not torch.allclose(batched(x)[:2], batched(x[:2]), atol=1e-3)
    assert any(isinstance(m, nn.GroupNorm) for m in ConvNet(1, width=5, norm="group").modules())  # odd widths too


def test_it_learns_to_tell_two_patterns_apart() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(ConvNet(1, width=4, dim=8, field=8), nn.Linear(8, 2))
    optimiser = torch.optim.AdamW(net.parameters(), 1e-2)
    y = torch.arange(32) % 2
    stripes = torch.arange(16).remainder(4).lt(2).float().expand(16, 16)
    x = torch.where(y.view(-1, 1, 1, 1) == 0, stripes, stripes.T) + 0.3 * torch.randn(32, 1, 16, 16)
    for _ in range(15):
        optimiser.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimiser.step()
    assert (net(x).argmax(1) == y).all()


def test_state_dict_and_seed() -> None:
    torch.manual_seed(3)
    first = ConvNet(1, width=4)
    torch.manual_seed(3)
    second = ConvNet(1, width=4)
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(first.eval()(x), second.eval()(x))
    third = ConvNet(1, width=4).eval()
    third.load_state_dict(first.state_dict())
    assert torch.equal(first(x), third(x))
    assert all(value.is_contiguous() for value in first.state_dict().values())  # as safetensors asks


def test_the_batch_size_stays_free_in_an_export() -> None:
    net = ConvNet(1, width=4).eval()
    batch = torch.export.Dim("batch")
    program = torch.export.export(net, (torch.randn(3, 1, 16, 16),), dynamic_shapes=({0: batch},))
    x = torch.randn(5, 1, 16, 16)
    assert torch.allclose(program.module()(x), net(x), atol=1e-5)


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"x: expected shape \[B, 1, H, W\], received \(1, 3, 8, 8\)"):
        ConvNet(1)(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="width: expected 1 or more, received 0"):
        ConvNet(1, width=0)
    with pytest.raises((ValueError, TypeError), match="field"):
        ConvNet(1, field=4)
    with pytest.raises((ValueError, TypeError), match="norm"):
        ConvNet(1, norm="layer")
