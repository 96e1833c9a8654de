"""A step of the queue of former keys beside lightly's MemoryBankModule: read all rows, then write a batch.

    python benchmarks/queues.py [--size 65536] [--batch 256] [--rounds 20]

128 dimensions. Three cases: the step alone; the step with the scores of a batch against all rows, forward and backward
of a cross-entropy; and the same scores against a plain tensor, the floor. nearfar writes after the backward, as its
queue asks; lightly copies the bank, then writes. Peak: memory of the step alone in a fresh process. Rows: how many of a
batch that runs over the end of the queue are found in it afterwards. Results go to results/queues.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import common
import torch
from torch import Tensor
from torch.nn import functional as F

SIZES = {"size": 65_536, "batch": 256}
DIM, TEMPERATURE = 128, 0.1


def batch_of(num: int, seed: int) -> Tensor:
    """Unit rows."""
    return F.normalize(torch.randn(num, DIM, generator=torch.Generator().manual_seed(seed)), dim=1)


def score(query: Tensor, key: Tensor, bank_KD: Tensor) -> None:
    """Forward and backward of the loss of MoCo."""
    query = query.requires_grad_()
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ bank_KD.T], dim=1) / TEMPERATURE
    F.cross_entropy(logits, torch.zeros(len(query), dtype=torch.long)).backward()


def full(size: int) -> tuple[Any, Any]:
    """A queue of each library, filled with the same rows."""
    from lightly.models.modules.memory_bank import MemoryBankModule

    from nearfar.memory import Queue

    rows = batch_of(size, 0)
    ours, theirs = Queue(size, key=DIM), MemoryBankModule(size=(size, DIM))
    ours.push(key=rows)
    theirs.bank.copy_(rows)
    return ours, theirs


def cases(size: int, batch: int) -> dict[str, dict[str, Callable[[], Any]]]:
    """Case -> library -> one step."""
    ours, theirs = full(size)
    query, key = batch_of(batch, 1), batch_of(batch, 2)

    def our_step() -> None:
        ours.view("key")
        ours.push(key=key)

    def our_scores() -> None:
        score(query, key, ours.view("key"))
        ours.push(key=key)

    def their_step() -> None:
        theirs(key, update=True)

    def their_scores() -> None:
        _, bank_DK = theirs(key, update=True)
        score(query, key, bank_DK.T)

    plain = batch_of(size, 0)
    return {
        "step": {"nearfar": our_step, "lightly": their_step},
        "scores": {"nearfar": our_scores, "lightly": their_scores, "floor": lambda: score(query, key, plain)},
    }


def kept_over_the_end(batch: int) -> dict[str, int]:
    """Rows of a batch found in a queue that it runs over the end of; its size is no multiple of the batch."""
    size = batch + batch // 2
    ours, theirs = full(size)
    for seed in (1, 2):
        rows = batch_of(batch, seed)
        ours.push(key=rows)
        theirs(rows, update=True)
    found = {"nearfar": ours.view("key"), "lightly": theirs.bank}
    return {name: int((bank[:, None] == rows).all(-1).any(0).sum()) for name, bank in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (*SIZES.items(), ("rounds", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--peak", choices=("nearfar", "lightly"), help="print one library's peak memory and stop")
    args = parser.parse_args()
    sizes = {name: getattr(args, name) for name in SIZES}
    steps = cases(**sizes)
    if args.peak:
        small = cases(args.batch, args.batch)["step"][args.peak]
        small()  # what the first call loads is no memory of the step
        print(json.dumps(common.peak_of(steps["step"][args.peak])))
        return
    queue, _ = full(args.size)
    view = queue.view("key")
    flags = [f"--{name}={value}" for name, value in sizes.items()]
    times = {case: common.interleaved(libraries, args.rounds) for case, libraries in steps.items()}
    result = {
        "settings": sizes | {"dim": DIM, "bank_mb": round(args.size * DIM * 4 / 2**20, 1)},
        "times": times,
        "peak_mb": {
            n: round(common.in_fresh_process(__file__, *flags, "--peak", n), 1) for n in ("nearfar", "lightly")
        },
        "view_is_the_buffer": view.data_ptr() == queue.key.data_ptr() and view.is_contiguous(),
        "rows_kept_over_the_end": kept_over_the_end(args.batch) | {"of": args.batch},
        "times_as_fast": {
            case: round(t["lightly"]["median_ms"] / max(t["nearfar"]["median_ms"], 0.01), 2)
            for case, t in times.items()
        },
        "metadata": common.metadata(("lightly",)),
    }
    common.write("queues", result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
