"""The kNN classifier beside lightly's knn_predict: the same predictions, time and memory.

    python benchmarks/knn.py [--bank 20000] [--queries 2048] [--classes 1000] [--k 200] [--repeats 3]

Both vote with exp(cosine / 0.1) over the k nearest of random, weakly clustered features of 128 dimensions. lightly gets
its queries in batches of 256, as its online evaluator does; nearfar tiles by itself. Runs alternate and medians are
compared. Results go to results/knn.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import common
import torch
from lightly.utils.benchmarking.knn import knn_predict
from torch import Tensor
from torch.nn import functional as F

from nearfar.evaluate import predict

RESULTS = Path(__file__).parent / "results" / "knn.json"
DIM, TEMPERATURE, BATCH = 128, 0.1, 256


def features(num: int, classes: int, generator: torch.Generator, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Unit rows around the centre of their class."""
    label = torch.randint(0, classes, (num,), generator=generator)
    return F.normalize(centres[label] + 2 * torch.randn(num, DIM, generator=generator), dim=1), label


def timed(function: Callable[[], Tensor]) -> tuple[float, Tensor]:
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("bank", 20_000), ("queries", 2048), ("classes", 1000), ("k", 200), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(args.classes, DIM, generator=generator)
    bank_x, bank_y = features(args.bank, args.classes, generator, centres)
    query_x, _ = features(args.queries, args.classes, generator, centres)

    def ours() -> Tensor:
        return predict(bank_x, bank_y, query_x, k=args.k, weights="softmax", temperature=TEMPERATURE)

    def peer() -> Tensor:
        parts = [
            knn_predict(part, bank_x.T, bank_y, args.classes, args.k, TEMPERATURE)[:, 0]
            for part in query_x.split(BATCH)
        ]
        return torch.cat(parts)

    seconds: dict[str, list[float]] = {"nearfar": [], "lightly": []}
    base = peak()
    _, ours_predicted = timed(ours)  # first, so that its peak is its own
    extra = {"nearfar": peak() - base}
    _, peer_predicted = timed(peer)
    extra["lightly"] = peak() - base
    for _ in range(args.repeats):
        seconds["nearfar"].append(timed(ours)[0])
        seconds["lightly"].append(timed(peer)[0])
    median = {name: statistics.median(values) for name, values in seconds.items()}
    agree = float((ours_predicted == peer_predicted).double().mean())
    result = {
        "settings": vars(args) | {"dim": DIM, "temperature": TEMPERATURE, "peer_batch": BATCH},
        "seconds": {name: round(value, 3) for name, value in median.items()},
        "extra_mib": {name: round(value) for name, value in extra.items()},
        "faster": round(median["lightly"] / median["nearfar"], 2),
        "same_predictions": agree,
        "peer": f"lightly {version('lightly')}",
        "environment": common.metadata(),
    }
    RESULTS.write_text(json.dumps(result, indent=2) + "\n")
    print(
        f"{args.queries} queries, bank {args.bank}, {args.classes} classes, k {args.k}: nearfar "
        f"{median['nearfar']:.2f} s (+{extra['nearfar']:.0f} MiB), lightly {median['lightly']:.2f} s "
        f"(+{extra['lightly']:.0f} MiB), {result['faster']} times as fast, {agree:.2%} equal predictions"
    )


def peak() -> float:
    """Largest resident memory of this process so far, in MiB."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / 2**20 if sys.platform == "darwin" else size / 2**10


if __name__ == "__main__":
    main()
