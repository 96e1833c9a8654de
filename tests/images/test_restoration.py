"""Sharper and blurrier pictures, crops, and networks that enlarge, against Pillow, torchvision and published sizes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms.v2 import functional as tv

from nearfar.batch import Ragged
from nearfar.rng import Rng
from nearfar.wavelet import haar_edges
from nearfar_images import restoration, upscalers


def pictures(num: int = 4, channels: int = 3) -> Tensor:
    """Noise that is somewhat smooth, away from black and white so that nothing is clamped."""
    noise = torch.rand(num, channels, 24, 24, generator=torch.Generator().manual_seed(0))
    return functional.avg_pool2d(noise, 3, 1, 1) * 0.4 + 0.3


def energy(image: Tensor) -> Tensor:
    return haar_edges(image).square().sum((1, 2, 3))


@pytest.mark.oracle("pcl_sr", 4)
def test_identities_of_sharpening_and_blurring() -> None:
    image = pictures()
    ones, narrow = torch.ones(4), torch.zeros(4, 2)
    assert torch.equal(restoration.sharpen(image, ones), image)
    torch.testing.assert_close(restoration.blur(image, narrow, torch.full((4, 2), 11)), image)
    before = energy(image)
    for factor in (1.5, 3.0):
        assert (energy(restoration.sharpen(image, factor * ones)) > before).all()
    assert (energy(restoration.sharpen(image, 0.5 * ones)) < before).all()
    for sigma in (0.5, 2.0):
        assert (energy(restoration.blur(image, narrow + sigma, torch.full((4, 2), 11))) < before).all()


def test_sharpening_is_that_of_pillow_and_torchvision() -> None:
    image = restoration.quantise(torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0)))
    found = restoration.sharpen(image, torch.tensor([2.5]))
    other = tv.adjust_sharpness(image, 2.5)
    torch.testing.assert_close(found[..., 1:-1, 1:-1], other[..., 1:-1, 1:-1], atol=2 / 255, rtol=0)  # it rounds inside
    pil = Image.fromarray((image[0] * 255).byte().permute(1, 2, 0).numpy())
    theirs = np.asarray(ImageEnhance.Sharpness(pil).enhance(2.5)).transpose(2, 0, 1)
    np.testing.assert_allclose(found[0, :, 1:-1, 1:-1] * 255, theirs[:, 1:-1, 1:-1], atol=2)


def test_blur_is_that_of_torchvision_axis_by_axis() -> None:
    image = pictures(2)
    sigma, kernel = torch.tensor([[0.7, 1.8], [1.2, 0.3]]), torch.tensor([[3, 9], [11, 5]])
    found = restoration.blur(image, sigma, kernel)
    for i in range(2):
        theirs = tv.gaussian_blur(image[i], kernel[i].tolist(), sigma[i].tolist())
        torch.testing.assert_close(found[i], theirs)


def test_references_are_in_8_bits_and_depend_on_the_sample_alone() -> None:
    image, index = pictures(), torch.tensor([5, 9, 2, 7])
    made = [
        restoration.sharpened(image, index, Rng(1), 3, (1.0, 3.0)),
        restoration.blurred(image, index, Rng(1), 3, (0.1, 2.0)),
    ]
    for found in made:
        assert found.shape == (4, 3, *image.shape[1:])
        steps = found * 255
        torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)
    again = restoration.sharpened(image[1:3], index[1:3], Rng(1), 3, (1.0, 3.0))
    torch.testing.assert_close(again, made[0][1:3])
    torch.testing.assert_close(restoration.blurred(image[1:3], index[1:3], Rng(1), 3, (0.1, 2.0)), made[1][1:3])
    assert not torch.equal(made[0], restoration.sharpened(image, index, Rng(2), 3, (1.0, 3.0)))
    assert (energy(made[0].flatten(0, 1)).view(4, 3) > energy(made[1].flatten(0, 1)).view(4, 3)).all()


def test_crops_of_pictures_of_several_sizes() -> None:
    image = Ragged.of([torch.full((3, 16, 40), 7, dtype=torch.uint8), torch.full((3, 50, 17), 9, dtype=torch.uint8)])
    found = restoration.crops(image, torch.tensor([3, 4]), Rng(0), 16)
    assert (found[0] == 7 / 255).all()
    assert (found[1] == 9 / 255).all()
    with pytest.raises(ValueError, match="picture 4: expected at least 17 pixels a side .* received 16 x 17"):
        restoration.crops(Ragged.of([image[1], image[1][:, :16]]), torch.tensor([3, 4]), Rng(0), 17)


@pytest.mark.parametrize("kind", ["edsr", "rcan"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_networks_begin_at_bicubic_and_learn_everywhere(kind: str, scale: int) -> None:
    torch.manual_seed(0)
    network = upscalers.build(kind, scale, 3, width=8, blocks=2, groups=2)
    low = torch.rand(2, 3, 7, 5)
    made = network(low)
    assert torch.equal(made, upscalers.enlarge(low, scale))
    assert made.shape == (2, 3, 7 * scale, 5 * scale)
    nn.init.normal_(network.tail[-1].weight, std=0.1)
    network(low).square().sum().backward()
    still = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert all(".weigh." in name for name in still), still  # few units, which may all be off for so small pictures


def test_sizes_of_the_networks_that_were_published() -> None:
    def count(network: nn.Module) -> float:
        return sum(p.numel() for p in network.parameters()) / 1e6

    with torch.device("meta"):
        assert count(upscalers.edsr(2)) == pytest.approx(1.37, abs=0.01)
        assert count(upscalers.edsr(2, width=256, blocks=32)) == pytest.approx(40.7, abs=0.1)
        assert count(upscalers.rcan(4)) == pytest.approx(15.6, abs=0.1)


def test_tiles_give_what_the_whole_gives() -> None:
    torch.manual_seed(0)
    network = upscalers.edsr(3, width=4, blocks=2)
    nn.init.normal_(network.tail[-1].weight, std=0.1)
    low = torch.rand(1, 3, 45, 31)
    torch.testing.assert_close(upscalers.tiled(network, low, 3, tile=16), upscalers.tiled(network, low, 3))
    with pytest.raises(ValueError, match="network: expected pictures .* at scale 2, received"):
        upscalers.tiled(network, low, 2)


def test_bad_input_is_refused() -> None:
    image = pictures(2)
    with pytest.raises(ValueError, match="factor: expected finite numbers of 0 or more"):
        restoration.sharpen(image, torch.tensor([1.0, -0.1]))
    with pytest.raises(ValueError, match=r"factor: expected shape \[2\]"):
        restoration.sharpen(image, torch.ones(3))
    with pytest.raises(ValueError, match="kernel: expected odd numbers from 1 to 11"):
        restoration.blur(image, torch.ones(2, 2), torch.full((2, 2), 4))
    with pytest.raises(ValueError, match="sigma: expected 0 or more"):
        restoration.blur(image, -torch.ones(2, 2), torch.full((2, 2), 3))
    with pytest.raises(ValueError, match="high: expected sides that 5 divides, received 24 x 24 pixels"):
        upscalers.reduce(image, 5)
    with pytest.raises(ValueError, match="scale: expected 2, 3 or 4, received 5"):
        upscalers.edsr(5)
    with pytest.raises(ValueError, match="image: expected the size of the true picture"):
        restoration.compare(image[:1], image[:1, :, 2:])
