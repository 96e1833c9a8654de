"""NT-Xent and CLIP beside lightly and open_clip, forward and backward: time against plain products, and memory.

    python benchmarks/objectives.py                  both cases, written to results/objectives.json
    python benchmarks/objectives.py --rounds 3       a short look
    python benchmarks/objectives.py --no-write       print only

Values and gradients are compared before anything is timed. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
from common import in_fresh_process, interleaved, metadata, peak_of, write
from torch import Tensor
from torch.nn.functional import normalize

from nearfar.objectives import clip, nt_xent

THREADS = 2
DIM = 128
SIZES = {"nt_xent": 4096, "clip": 8192}
BARS = {"nt_xent": {"of_products": 0.85, "speedup": 5.0, "extra_mb": 96.0}, "clip": {"speedup": 2.0, "extra_mb": 128.0}}


def inputs(size: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(2, size, DIM, generator=generator)
    return draw[0].clone().requires_grad_(), draw[1].clone().requires_grad_()


def losses(case: str) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Ours and the peer's, as functions of two views."""
    if case == "nt_xent":
        from lightly.loss import NTXentLoss

        return {"nearfar": lambda a, b: nt_xent(a, b, temperature=0.1), "lightly": NTXentLoss(temperature=0.1)}
    from open_clip.loss import ClipLoss

    peer = ClipLoss()
    return {
        "nearfar": lambda a, b: clip(a, b, scale=14.0),
        "open_clip": lambda a, b: peer(normalize(a, dim=1), normalize(b, dim=1), 14.0),
    }


def products(rows: int) -> Callable[[], None]:
    """The three products that any gradient of a full matrix of logits takes, into memory that is there already."""
    z = normalize(torch.randn(rows, DIM, generator=torch.Generator().manual_seed(1)), dim=1)
    logits, grad = torch.empty(rows, rows), torch.empty(rows, DIM)

    def run() -> None:
        torch.mm(z, z.t(), out=logits)
        torch.mm(logits, z, out=grad)
        torch.mm(logits.t(), z, out=grad)

    return run


def step(loss: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Callable[[], None]:
    def run() -> None:
        a.grad = b.grad = None
        loss(a, b).backward()

    return run


def agree(case: str, size: int = 256) -> dict[str, float]:
    """Largest differences of value and gradient between ours and the peer's."""
    a, b = inputs(size)
    found = [(value, *torch.autograd.grad(value, (a, b))) for value in (loss(a, b) for loss in losses(case).values())]
    worst = [float((x.detach() - y.detach()).abs().max()) for x, y in zip(*found, strict=True)]
    return {"value": worst[0], "gradient": max(worst[1:])}


def memory(case: str, name: str) -> float:
    """Megabytes of one step above inputs and their gradients; in this process, which should be fresh."""
    torch.set_num_threads(THREADS)
    loss = losses(case)[name]
    step(loss, *inputs(300))()
    a, b = inputs(SIZES[case])
    extra = peak_of(step(loss, a, b))
    return extra - 2 * a.numel() * a.element_size() / 2**20


def run(case: str, rounds: int) -> dict[str, Any]:
    size = SIZES[case]
    names = list(losses(case))
    a, b = inputs(size)
    times = interleaved(
        {name: step(loss, a, b) for name, loss in losses(case).items()}
        | {"products": products(2 * size if case == "nt_xent" else size)},
        rounds,
    )
    extra = {name: round(in_fresh_process(__file__, "--memory", case, name), 1) for name in names}
    ours, peer = (times[name] for name in names)
    return {
        "case": case, "batch": size, "dim": DIM, "agreement": agree(case), "times": times, "extra_mb": extra,
        "of_products": {k: round(ours[k] / times["products"][k], 3) for k in ("median_ms", "min_ms")},
        "speedup": {k: round(peer[k] / ours[k], 2) for k in ("median_ms", "min_ms")}, "bars": BARS[case],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--no-write", action="store_true")
    parser.add_argument("--memory", nargs=2, metavar=("CASE", "NAME"), help="print one figure of memory and stop")
    options = parser.parse_args()
    if options.memory:
        print(json.dumps(memory(*options.memory)))
        return
    torch.set_num_threads(THREADS)
    result = {"metadata": metadata(("lightly", "open_clip_torch")), "cases": [run(c, options.rounds) for c in SIZES]}
    print(json.dumps(result, indent=2))
    if not options.no_write:
        print(write("objectives", result))


if __name__ == "__main__":
    main()
