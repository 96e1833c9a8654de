"""The networks that translate: antialiasing, numbered layers, what a score sees, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import convolve1d

from nearfar_images.translation import Block, Down, Generator, PatchDiscriminator, PatchHeads, Score, Up


def test_halving_is_a_binomial_blur_of_every_other_pixel() -> None:
    x = torch.randn(2, 3, 9, 12)
    blurred = x.numpy()
    for axis in (2, 3):
        blurred = convolve1d(blurred, np.array([0.25, 0.5, 0.25]), axis=axis, mode="mirror")
    np.testing.assert_allclose(Down()(x).numpy(), blurred[:, :, ::2, ::2], atol=1e-6)


def test_doubling_is_zeros_between_pixels_and_a_blur() -> None:
    x = torch.randn(2, 1, 5, 6)
    row = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 4
    padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
    expected = F.conv_transpose2d(padded, (row[:, None] * row)[None, None], stride=2)[:, :, 3:-3, 3:-3]
    torch.testing.assert_close(Up()(x), expected)


def test_layers_are_numbered_as_documented() -> None:
    net = Generator(3, width=8, num_blocks=9)
    assert net.num_taps == 21
    assert all(isinstance(net.layers[k], Block) for k in range(12, 21))
    x = torch.rand(2, 3, 16, 24) * 2 - 1
    maps = net.taps(x, (0, 4, 8, 12, 16))
    assert [tuple(m.shape) for m in maps] == [
        (2, 3, 16, 24), (2, 16, 16, 24), (2, 32, 8, 12), (2, 32, 4, 6), (2, 32, 4, 6),
    ]  # fmt: skip
    assert torch.equal(maps[0], x)
    seen = []
    hook = net.layers[16].register_forward_hook(lambda module, given, found: seen.append(found))
    made = net(x)
    hook.remove()
    assert torch.equal(seen[0], maps[4])
    assert made.shape == x.shape
    assert float(made.detach().abs().max()) <= 1


def test_an_image_does_not_depend_on_its_batch() -> None:
    x = torch.rand(4, 3, 16, 16)
    for net in (Generator(3, width=4, num_blocks=1), PatchDiscriminator(3, width=4, num_layers=2)):
        torch.testing.assert_close(net(x)[1:3], net(x[1:3]))


@pytest.mark.parametrize(("num_layers", "sees"), [(1, 18), (2, 40), (3, 84)])
def test_what_a_score_sees(num_layers: int, sees: int) -> None:
    net = PatchDiscriminator(1, width=2, num_layers=num_layers, norm=False)
    for layer in net.modules():
        if isinstance(layer, (torch.nn.Conv2d, Score)):
            torch.nn.init.constant_(layer.weight, 0.1)
    x = torch.ones(1, 1, 200, 200, requires_grad=True)
    scores = net(x)
    (slope,) = torch.autograd.grad(scores[0, 0, scores.shape[2] // 2, scores.shape[3] // 2], x)
    rows = slope[0, 0].abs().sum(1).nonzero()[:, 0]
    assert int(rows[-1] - rows[0]) + 1 == sees


def test_the_smallest_picture_a_discriminator_takes() -> None:
    for num_layers in (1, 2, 3):
        net = PatchDiscriminator(3, width=2, num_layers=num_layers)
        assert net(torch.rand(1, 3, net.least, net.least)).shape == (1, 1, 1, 1)
        with pytest.raises(ValueError, match=f"picture: expected {net.least} pixels a side for {num_layers} layers"):
            net(torch.rand(1, 3, net.least - 1, 64))


def test_heads_take_their_places() -> None:
    heads = PatchHeads([3, 5], dim=4)
    maps = [torch.randn(2, 3, 4, 6), torch.randn(2, 5, 2, 3)]
    places = [torch.tensor([[0, 23, 7], [5, 6, 1]]), torch.tensor([[5], [2]])]
    found = heads(maps, places)
    assert [tuple(f.shape) for f in found] == [(2, 3, 4), (2, 1, 4)]
    for b, p, (row, column) in ((0, 1, (3, 5)), (1, 0, (0, 5)), (0, 2, (1, 1))):
        torch.testing.assert_close(found[0][b, p], heads.heads[0](maps[0][b, :, row, column]))
    torch.testing.assert_close(found[1][1, 0], heads.heads[1](maps[1][1, :, 0, 2]))


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_that_do_not_fit_are_refused(channels: int) -> None:
    net = Generator(channels, width=4, num_blocks=1)
    assert net(torch.zeros(1, channels, 8, 12)).shape == (1, channels, 8, 12)
    other = 4 - channels
    with pytest.raises(ValueError, match=rf"picture: expected shape \[B, {channels}, H, W\], for which the generator"):
        net(torch.zeros(1, other, 8, 8))
    for shape, sides in (((10, 8), "10 x 8"), ((8, 9), "8 x 9"), ((4, 8), "4 x 8")):
        with pytest.raises(ValueError, match=f"picture: expected sides that are multiples of 4, .* received {sides}"):
            net.taps(torch.zeros(1, channels, *shape), (0,))
    with pytest.raises(ValueError, match="num_blocks: expected 1 or more"):
        Generator(3, num_blocks=0)
    with pytest.raises(ValueError, match="channels: expected 1 or 3, received 2"):
        Generator(2)
    with pytest.raises(ValueError, match="num_layers: expected 1 or more"):
        PatchDiscriminator(3, num_layers=0)
    with pytest.raises(ValueError, match="dim: expected 1 or more"):
        PatchHeads([3], dim=0)
