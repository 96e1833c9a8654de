"""SimCLR views a second on one core, beside lightly's transform on PIL images and torchvision's v2 on tensors.

    python benchmarks/views.py [--repeats 5]

All three crop, flip, jitter, grey, blur (224 pixels only) and normalise with the same probabilities and strengths, from
images that are decoded already. Runs alternate, medians are compared. Results go to results/views.json.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable

import common
import torch
import torch.nn.functional as F
from lightly.transforms import SimCLRTransform
from torchvision.transforms import v2
from torchvision.transforms.functional import to_pil_image

from nearfar.config import ImageViewConfig
from nearfar.rng import Rng
from nearfar.views import ImageViews

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# side of a view, side of its source, probability of blur, images for nearfar, images for the peers, bar over lightly
CASES = {
    "32 px": (32, 32, 0.0, 512, 128, 6.0),
    "32 px with blur": (32, 32, 0.5, 512, 128, 6.0),
    "224 px from 256 with blur": (224, 256, 0.5, 24, 16, 2.0),
}


def pictures(num: int, side: int) -> torch.Tensor:
    """uint8 [num, 3, side, side] with smooth colours and some grain."""
    generator = torch.Generator().manual_seed(0)
    smooth = F.interpolate(torch.rand((num, 3, 8, 8), generator=generator), side, mode="bicubic")
    return (255 * (0.8 * smooth + 0.2 * torch.rand((num, 3, side, side), generator=generator))).clamp(0, 255).byte()


def torchvision_chain(size: int, blur: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.2, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(size // 10 | 1, (0.1, 2.0))], p=blur),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )


def contenders(
    size: int, side: int, blur: float, num_ours: int, num_peers: int
) -> dict[str, tuple[int, Callable[[], object]]]:
    """Name -> views a call makes, and the call."""
    image = pictures(max(num_ours, num_peers), side)
    batch, index = image[:num_ours], torch.arange(num_ours)
    few = list(image[:num_peers])
    pil = [to_pil_image(x) for x in few]
    config = {"blur": blur, "mean": MEAN, "std": STD}
    fast = ImageViews(ImageViewConfig(**config), size, 3)
    exact = ImageViews(ImageViewConfig(**config, exact_colour=True), size, 3)
    lightly = SimCLRTransform(
        input_size=size, cj_bright=0.4, cj_contrast=0.4, cj_sat=0.4, cj_hue=0.1, min_scale=0.2, gaussian_blur=blur
    )
    chain, seeds = torchvision_chain(size, blur), itertools.count()
    return {
        "nearfar": (2 * num_ours, lambda: fast(batch, index, Rng(next(seeds)))),
        "nearfar, exact colour": (2 * num_ours, lambda: exact(batch, index, Rng(next(seeds)))),
        "lightly": (2 * num_peers, lambda: [lightly(x) for x in pil]),
        "torchvision v2": (2 * num_peers, lambda: [(chain(x), chain(x)) for x in few]),
    }


def measure(repeats: int, *case: float) -> dict[str, float]:
    """Median views a CPU second of every contender."""
    rates: dict[str, list[float]] = {}
    parts = contenders(*case)
    for repeat in range(repeats + 1):
        for name, (num, call) in parts.items():
            start = time.process_time()  # of this process alone: whoever shares the core does not count
            call()
            if repeat:  # the first round warms up
                rates.setdefault(name, []).append(num / (time.process_time() - start))
    return {name: round(statistics.median(values), 1) for name, values in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    result = {
        "metadata": common.metadata(("torchvision", "lightly", "pillow")),
        "unit": "views a CPU second, one thread",
        "repeats": repeats,
        "cases": {},
    }
    for name, (*case, bar) in CASES.items():
        rates = measure(repeats, *case)
        ratio = round(rates["nearfar"] / rates["lightly"], 2)
        result["cases"][name] = {"rates": rates, "times_lightly": ratio, "bar": bar, "met": ratio >= bar}
        print(f"{name}: {ratio} x lightly (bar {bar}); {rates}")
    common.write("views", result)


if __name__ == "__main__":
    main()
