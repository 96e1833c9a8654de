"""The kNN classifier beside lightly's knn_predict: the same predictions, time and memory.

    python benchmarks/knn.py [--bank 20000] [--queries 2048] [--classes 1000] [--k 200] [--rounds 3]

Both vote with exp(cosine / 0.1) over the k nearest of random, weakly clustered features of 128 dimensions. lightly gets
its queries in batches of 256, as its online evaluator does; nearfar tiles by itself. Results go to results/knn.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

import common
import torch
from torch import Tensor
from torch.nn import functional as F

SIZES = {"bank": 20_000, "queries": 2048, "classes": 1000, "k": 200}
DIM, TEMPERATURE, BATCH = 128, 0.1, 256


def cases(bank: int, queries: int, classes: int, k: int) -> dict[str, Callable[[], Tensor]]:
    """Library -> its predictions for the same queries and bank, unit rows around the centre of their class."""
    from lightly.utils.benchmarking.knn import knn_predict

    from nearfar.evaluate import predict

    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, classes, (bank + queries,), generator=generator)
    centre = torch.randn(classes, DIM, generator=generator)
    x = F.normalize(centre[label] + 2 * torch.randn(len(label), DIM, generator=generator), dim=1)
    bank_x, bank_y, query_x = x[:bank], label[:bank], x[bank:]

    def ours() -> Tensor:
        return predict(bank_x, bank_y, query_x, k=k, weights="softmax", temperature=TEMPERATURE)

    def peer() -> Tensor:
        parts = query_x.split(BATCH)
        return torch.cat([knn_predict(part, bank_x.T, bank_y, classes, k, TEMPERATURE)[:, 0] for part in parts])

    return {"nearfar": ours, "lightly": peer}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (*SIZES.items(), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--peak", choices=("nearfar", "lightly"), help="print one library's peak memory and stop")
    args = parser.parse_args()
    sizes = {name: getattr(args, name) for name in SIZES}
    libraries = cases(**sizes)
    if args.peak:
        print(json.dumps(common.peak_of(libraries[args.peak])))
        return
    flags = [f"--{name}={value}" for name, value in sizes.items()]
    times = common.interleaved(libraries, args.rounds)
    peaks = {name: round(common.in_fresh_process(__file__, *flags, "--peak", name)) for name in libraries}
    same = float((libraries["nearfar"]() == libraries["lightly"]()).double().mean())
    result = {
        "settings": sizes | {"dim": DIM, "temperature": TEMPERATURE, "peer_batch": BATCH},
        "times": times,
        "peak_mb": peaks,
        "times_as_fast": round(times["lightly"]["median_ms"] / times["nearfar"]["median_ms"], 2),
        "same_predictions": same,
        "metadata": common.metadata(("lightly",)),
    }
    common.write("knn", result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
