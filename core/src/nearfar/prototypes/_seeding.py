"""Where k-means starts: the same centroids on every process, however the rows lie on them.

Legend: S sampled rows, D features, K clusters, T trials.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from nearfar.checks import expect, expect_choice
from nearfar.distributed import gather
from nearfar.prototypes._rows import Rows, from_first
from nearfar.rng import Rng

SAMPLED = 64
"""rows a cluster among which k-means++ looks for centroids"""


def initial(rows: Rows, num: int, init: str | Tensor, spherical: bool, rng: Rng, far: bool) -> Tensor:
    """[K, D], of unit length where spherical."""
    if isinstance(init, Tensor):
        shape = (num, rows.x.shape[1])
        expect(tuple(init.shape) == shape, "init", f"shape {shape}", tuple(init.shape))
        expect(bool(init.isfinite().all()), "init", "finite centroids", "others")
        start = init.detach().to(rows.x)
        return F.normalize(start, dim=1) if spherical else start
    expect_choice("init", init, ("k-means++", "random"))
    generator = rng.generator("seeding")
    if init == "random":
        return from_first(_sample(rows, num, generator, far), far)
    found = _plus_plus(_sample(rows, min(rows.total, SAMPLED * num), generator, far), num, generator)
    return from_first(found, far)


def _sample(rows: Rows, num: int, generator: torch.Generator, far: bool) -> Tensor:
    """Rows drawn from those of all processes without replacement, in the order of the draw."""
    chosen = torch.randperm(rows.total, generator=generator)[:num] - rows.first
    place = ((chosen >= 0) & (chosen < len(rows.x))).nonzero().flatten()
    x = rows.x[chosen[place].to(rows.x.device)]
    if not far:
        return x
    return gather(x, grad=False)[gather(place, grad=False).argsort().to(x.device)]


def _plus_plus(x: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """k-means++, greedy: of T rows drawn by their squared distance to the nearest centroid, the one that helps most."""
    trials = 2 + int(math.log(num))
    draws = torch.rand(num, trials, generator=generator, dtype=torch.float64).to(x.device)
    rows, x = x, x - x.mean(0)  # as in `nearest`
    square_S = x.square().sum(1)
    first = min(int(draws[0, 0] * len(x)), len(x) - 1)
    chosen = [torch.tensor(first, device=x.device)]
    distance_S = (x - x[first]).square().sum(1)
    for turn in range(1, num):
        reach_S = distance_S.double().cumsum(0)
        drawn = torch.searchsorted(reach_S, draws[turn] * reach_S[-1], right=True).clamp_(max=len(x) - 1)
        to_TS = torch.addmm(square_S, x[drawn], x.T, alpha=-2).add_(square_S[drawn, None]).clamp_(min=0)
        best_TS = torch.minimum(to_TS, distance_S)
        best = best_TS.sum(1).argmin()
        distance_S = best_TS[best]
        chosen.append(drawn[best])
    return rows[torch.stack(chosen)]
