"""Sinkhorn codes and the swapped prediction beside lightly's: the same numbers, time and memory.

    python benchmarks/sinkhorn.py [--samples 1024] [--prototypes 3000] [--views 8] [--batch 256] [--rounds 15]

Scores are cosines of random rows of 128 dimensions, eps 0.05, 3 iterations. The loss is timed forward and backward with
two assigned views of `--views`. Results go to results/sinkhorn.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import common
import torch
from torch import Tensor
from torch.nn import functional as F

SIZES = {"samples": 1024, "prototypes": 3000, "views": 8, "batch": 256}
DIM = 128


def scores(rows: int, prototypes: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x, c = (F.normalize(torch.randn(n, DIM, generator=generator), dim=1) for n in (rows, prototypes))
    return x @ c.T


def codes(samples: int, prototypes: int, **_: int) -> dict[str, Callable[[], Tensor]]:
    """Way -> codes of the same scores."""
    from lightly.loss.swav_loss import sinkhorn as peer

    from nearfar.prototypes import sinkhorn

    x = scores(samples, prototypes)
    return {"nearfar": lambda: sinkhorn(x), "nearfar_log": lambda: sinkhorn(x, form="log"), "lightly": lambda: peer(x)}


def losses(prototypes: int, views: int, batch: int, **_: int) -> dict[str, Callable[[], Tensor]]:
    """Library -> the gradient of its loss with respect to the same scores."""
    from lightly.loss import SwaVLoss

    from nearfar.prototypes import swapped_prediction

    x = scores(views * batch, prototypes).view(views, batch, prototypes)
    loss = SwaVLoss()

    def ours() -> Tensor:
        leaf = x.detach().requires_grad_()
        return torch.autograd.grad(swapped_prediction(leaf), leaf)[0]

    def peer() -> Tensor:
        leaves = [part.requires_grad_() for part in x.detach().unbind()]
        return torch.stack(torch.autograd.grad(loss(leaves[:2], leaves[2:]), leaves))

    return {"nearfar": ours, "lightly": peer}


CASES = {"codes": codes, "loss": losses}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (*SIZES.items(), ("rounds", 15)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--peak", nargs=2, metavar=("CASE", "WAY"), help="print one way's peak memory and stop")
    args = parser.parse_args()
    sizes = {name: getattr(args, name) for name in SIZES}
    if args.peak:
        case, way = args.peak
        print(json.dumps(common.peak_of(CASES[case](**sizes)[way])))
        return
    flags = [f"--{name}={value}" for name, value in sizes.items()]
    cases: dict[str, object] = {}
    for case, make in CASES.items():
        ways = make(**sizes)
        times = common.interleaved(ways, args.rounds)
        expected = ways["lightly"]()
        cases[case] = {
            "times": times,
            "times_as_fast": round(times["lightly"]["median_ms"] / times["nearfar"]["median_ms"], 2),
            "largest_difference": {way: float((run() - expected).abs().max()) for way, run in ways.items()},
            "peak_mb": {way: round(common.in_fresh_process(__file__, *flags, "--peak", case, way)) for way in ways},
        }
    result = {"metadata": common.metadata(("lightly",)), "settings": sizes | {"dim": DIM}, "cases": cases}
    common.write("sinkhorn", result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
