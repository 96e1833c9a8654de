"""Views of several sizes in one forward a size."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nearfar.batch import View
from nearfar.methods import encode_views
from nearfar.models import ConvNet, TinyViT


def views(*sides: int, num: int = 3) -> list[View]:
    generator = torch.Generator().manual_seed(0)
    return [View(torch.rand(num, 1, side, side, generator=generator)) for side in sides]


def test_rows_keep_the_order_of_the_views() -> None:
    calls: list[int] = []

    def module(x: Tensor) -> Tensor:
        calls.append(len(x))
        return torch.stack([x.mean(dim=(1, 2, 3)), x.new_full((len(x),), float(x.shape[2]))], 1)

    given = views(8, 4, 8, 6, 4, 4)
    z_BVD = encode_views(module, given)
    assert z_BVD.shape == (3, 6, 2)
    assert calls == [6, 9, 3]  # one forward a size
    for number, view in enumerate(given):
        torch.testing.assert_close(z_BVD[:, number, 0], view.data.mean(dim=(1, 2, 3)))
        assert bool((z_BVD[:, number, 1] == view.data.shape[2]).all())


def test_equal_sizes_take_one_forward() -> None:
    given = views(8, 8)
    torch.manual_seed(0)
    model = ConvNet(1, width=4, dim=8)
    expected = model(torch.cat([view.data for view in given])).unflatten(0, (2, 3)).transpose(0, 1)
    assert torch.equal(encode_views(model, given), expected)


@pytest.mark.parametrize("kind", ["convnet", "tiny-vit"])
def test_gradient_is_that_of_each_view_by_itself(kind: str) -> None:
    model = ConvNet(1, width=4, dim=8, norm="group") if kind == "convnet" else TinyViT(1, 16, dim=8, depth=1, heads=2)
    given = views(16, 8, 16)
    (encode_views(model, given) ** 2).sum().backward()
    found = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    sum((model(view.data) ** 2).sum() for view in given).backward()  # type: ignore[union-attr]
    for ours, theirs in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs.grad, rtol=1e-4, atol=1e-5)
