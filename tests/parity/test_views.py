"""Views beside torchvision's v2 pipeline and lightly's: random draws of all three have the same statistics."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nearfar.config import ImageViewConfig
from nearfar.rng import Rng
from nearfar.views import ImageViews

v2 = pytest.importorskip("torchvision.transforms.v2")

pytestmark = pytest.mark.parity

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
NUM, SIDE = 3000, 40


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    """One uint8 picture with structure at all scales and every colour."""
    generator = torch.Generator().manual_seed(0)
    parts = [
        F.interpolate(torch.rand((1, 3, side, side), generator=generator), (SIDE, SIDE), mode="bilinear")
        for side in (3, 8, SIDE)
    ]
    return ((0.5 * parts[0] + 0.3 * parts[1] + 0.2 * parts[2])[0] * 255).to(torch.uint8)


def statistics(views: torch.Tensor) -> dict[str, torch.Tensor]:
    """One number a view: level, spread, colourfulness, sharpness, left against right."""
    luma = views.mean(dim=1)
    return {
        "level": luma.mean(dim=(1, 2)),
        "spread": luma.flatten(1).std(dim=1),
        "colour": views.std(dim=1).mean(dim=(1, 2)),
        "sharpness": (luma[:, :, 1:] - luma[:, :, :-1]).abs().mean(dim=(1, 2)),
        "tilt": luma[:, :, :16].mean(dim=(1, 2)) - luma[:, :, 16:].mean(dim=(1, 2)),
    }


def distance(x: torch.Tensor, y: torch.Tensor) -> float:
    """Two-sample Kolmogorov-Smirnov distance."""
    both = torch.cat([x, y]).sort().values
    counts = [torch.searchsorted(part.sort().values, both, right=True) / len(part) for part in (x, y)]
    return float((counts[0] - counts[1]).abs().max())


@pytest.fixture(scope="module")
def peer(image: torch.Tensor) -> dict[str, torch.Tensor]:
    """Statistics of torchvision's views."""
    chain = v2.Compose(
        [
            v2.RandomResizedCrop(32, scale=(0.2, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(5, (0.1, 2.0))], p=0.5),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return statistics(torch.stack([chain(image) for _ in range(NUM)]))


# The exact path agrees in distribution (0.05 is p = 0.001); one clamp and hue turned in YIQ shift it a little.
@pytest.mark.parametrize(("exact", "allowed"), [(True, 0.05), (False, 0.08)])
def test_simclr_views_are_distributed_as_torchvisions(
    image: torch.Tensor, peer: dict[str, torch.Tensor], exact: bool, allowed: float
) -> None:
    config = ImageViewConfig(num_views=1, blur=0.5, mean=MEAN, std=STD, exact_colour=exact, blur_kernel=5)
    (ours,) = ImageViews(config, 32, 3)(image.expand(NUM, 3, SIDE, SIDE), torch.arange(NUM), Rng(1))
    for name, values in statistics(ours.data).items():
        assert distance(values, peer[name]) < allowed, name


def test_lightly_simclr_views_have_the_same_moments(image: torch.Tensor) -> None:
    transforms = pytest.importorskip("lightly.transforms")
    from torchvision.transforms.functional import to_pil_image

    config = ImageViewConfig(
        num_views=1, crop_scale=(0.08, 1.0), brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, mean=MEAN, std=STD,
        exact_colour=True,
    )  # fmt: skip
    (ours,) = ImageViews(config, 32, 3)(image.expand(NUM, 3, SIDE, SIDE), torch.arange(NUM), Rng(1))
    chain = transforms.SimCLRViewTransform(input_size=32, gaussian_blur=0.0)
    picture = to_pil_image(image)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        peer = torch.stack([chain(picture) for _ in range(NUM)])
    theirs = statistics(peer)
    for name, values in statistics(ours.data).items():
        mean, std = float(theirs[name].mean()), float(theirs[name].std())
        assert float(values.mean()) == pytest.approx(mean, abs=0.1 * std), name
        assert float(values.std()) == pytest.approx(std, rel=0.1), name
