"""A step through the gradient cache beside the plain step: time, peak memory, and the error of its gradient.

    python benchmarks/gradcache.py                           batch 1024 in chunks of 64, into results/gradcache.json
    python benchmarks/gradcache.py --batch 128 --chunk 16 --rounds 1 --no-write

A step is the forward and backward of NT-Xent on two views of every image: vision transformer (TinyViT: 4 blocks of
width 128), 32 pixels, patches of 4, head with layer norm. `accumulated` is what the same chunks give as losses of their
own. Memory is that of one step in a fresh process, above what the process held before. Run it on a machine that does
nothing else.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

import torch
from common import in_fresh_process, interleaved, metadata, peak_of, write
from torch import Tensor, nn

from nearfar.config import HeadConfig
from nearfar.gradcache import GradCache
from nearfar.heads import Head
from nearfar.models import TinyViT
from nearfar.objectives import nt_xent

THREADS = 2
TEMPERATURE = 0.1
BARS = {"times_the_plain_time": 1.45, "share_of_the_plain_memory": 1 / 3, "relative_gradient_error": 1e-5}


def parts() -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """The model, and the embedding [b, 2, D] of images [b, 2, 3, 32, 32]."""
    torch.manual_seed(0)
    encoder = TinyViT(3, 32, patch=4)
    model = nn.Sequential(encoder, Head(encoder.feature_dim, HeadConfig(dim=128, norm="layer")))
    return model, lambda x: model(x.flatten(0, 1)).unflatten(0, (-1, 2))


def steps(batch: int, chunk: int) -> tuple[nn.Module, dict[str, Callable[[], None]]]:
    model, encode = parts()
    x = torch.randn(batch, 2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    cache = GradCache(encode, wrapper=model)

    def loss(z_BVD: Tensor) -> Tensor:
        return nt_xent(z_BVD.transpose(0, 1), temperature=TEMPERATURE)

    def plain() -> None:
        model.zero_grad()
        loss(encode(x)).backward()

    def gradcache() -> None:
        model.zero_grad()
        cache.backward(loss(cache(x.split(chunk))))

    def accumulated() -> None:
        model.zero_grad()
        for part in x.split(chunk):
            (loss(encode(part)) * len(part) / batch).backward()

    return model, {"plain": plain, "gradcache": gradcache, "accumulated": accumulated}


def gradients(batch: int, chunk: int) -> dict[str, float]:
    """Norm of the difference to the plain gradient, over the plain gradient's norm."""
    model, cases = steps(batch, chunk)
    found = {}
    for name, case in cases.items():
        case()
        found[name] = torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])
    plain = found.pop("plain")
    return {name: float((grad - plain).norm() / plain.norm()) for name, grad in found.items()}


def memory(name: str, batch: int, chunk: int) -> float:
    """Megabytes of one step above model, gradients and images; in this process, which should be fresh."""
    torch.set_num_threads(THREADS)
    steps(4, 2)[1][name]()
    _, cases = steps(batch, chunk)
    return peak_of(cases[name])


def run(batch: int, chunk: int, rounds: int) -> dict[str, Any]:
    sizes = ("--batch", str(batch), "--chunk", str(chunk))
    peaks = {name: round(in_fresh_process(__file__, *sizes, "--memory", name), 1) for name in ("plain", "gradcache")}
    errors = gradients(batch, chunk)
    _, cases = steps(batch, chunk)
    times = interleaved({name: cases[name] for name in ("plain", "gradcache")}, rounds)
    reached = {
        "times_the_plain_time": round(times["gradcache"]["median_ms"] / times["plain"]["median_ms"], 3),
        "share_of_the_plain_memory": round(peaks["gradcache"] / peaks["plain"], 3),
        "relative_gradient_error": errors["gradcache"],
    }
    return {
        "batch": batch, "chunk": chunk, "times": times, "extra_mb": peaks, "error_of_gradient": errors, **reached,
        "bars": BARS, "met": {name: reached[name] <= bar for name, bar in BARS.items()},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--chunk", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-write", action="store_true")
    parser.add_argument("--memory", metavar="NAME", help="print one figure of memory and stop")
    options = parser.parse_args()
    if options.memory:
        print(json.dumps(memory(options.memory, options.batch, options.chunk)))
        return
    torch.set_num_threads(THREADS)
    result = {"metadata": metadata()} | run(options.batch, options.chunk, options.rounds)
    print(json.dumps(result, indent=2))
    if not options.no_write:
        print(write("gradcache", result))


if __name__ == "__main__":
    main()
