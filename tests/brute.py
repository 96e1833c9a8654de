"""The contrast by loops over Python numbers, and the kinds of positives and options that tests go through.

Legend: B anchors, N candidates, D embedding.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

B, N, D = 6, 8, 5
F64 = torch.float64


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def cosine(x: list[float], y: list[float]) -> float:
    dot = sum(a * b for a, b in zip(x, y, strict=True))
    return dot / math.sqrt(sum(a * a for a in x)) / math.sqrt(sum(b * b for b in y))


def brute(
    anchor: Tensor, candidate: Tensor, *, is_positive: Any, exists: Any = lambda i, j: True,
    positives: str = "mean", in_denominator: Any = None, decoupled: bool = False, t: Any = lambda i: 0.1,
    pt: Any = None, margin: float = 0.0, log_weight: Any = lambda i, j: 0.0, further: Any = lambda i: (),
    further_weight: Any = lambda i: None, own_positive: Any = lambda i: [], anchor_weight: Any = lambda i: 1.0,
    weight: Any = None,
) -> list[float | None]:  # fmt: skip
    """Loss of every anchor by loops over Python numbers; None for an anchor without a positive."""
    pt = pt or t
    losses: list[float | None] = []
    a, shared = anchor.tolist(), candidate.tolist()
    for i in range(len(a)):
        c, num = shared + own_positive(i), len(shared)
        mine = list(range(num, len(c)))
        pairs = [j for j in range(num) if exists(i, j)] + mine
        pos = [j for j in pairs if j in mine or is_positive(i, j)]

        def weigh(j: int, i: int = i, num: int = num) -> float:
            return log_weight(i, j) if j < num else 0.0

        def entry(j: int, i: int = i, pos: list[int] = pos, c: list[list[float]] = c) -> float:
            s = cosine(a[i], c[j])
            return (s - margin) / pt(i) if j in pos else s / t(i)

        kept = [
            j for j in pairs
            if not (decoupled and j in pos) and (j in mine or in_denominator is None or in_denominator(i, j))
        ]  # fmt: skip
        others = further(i)
        more = [
            math.exp(cosine(a[i], e) / t(i) + w)
            for e, w in zip(others, further_weight(i) or [0.0] * len(others), strict=True)
        ]
        total = sum(math.exp(entry(j) + weigh(j)) for j in kept) + sum(more)
        if not pos or (decoupled and total == 0):  # nothing to be told from
            losses.append(None)
        elif positives == "mean":
            losses.append(math.log(total) - sum(entry(j) for j in pos) / len(pos))
        elif positives == "sum":
            losses.append(math.log(total) - math.log(sum(math.exp(entry(j)) for j in pos)))
        elif positives == "each":
            rest = sum(math.exp(entry(j) + weigh(j)) for j in kept if j not in pos) + sum(more)
            terms = [math.log(rest + (math.exp(entry(j) + weigh(j)) if j in kept else 0.0)) - entry(j) for j in pos]
            losses.append(sum(terms) / len(pos))
        else:
            losses.append(sum(weight[i][j] * (math.log(total) - entry(j)) for j in pos))
        losses[-1] = None if losses[-1] is None else losses[-1] * anchor_weight(i)
    return losses


def mean(losses: list[float | None]) -> float:
    known = [x for x in losses if x is not None]
    return sum(known) / len(known)


LABELS = (torch.tensor([0, 1, 2, 0, 1, 5]), torch.tensor([1, 0, 0, 2, 1, 3, 3, 1]))
TARGETS = torch.tensor([3, 0, -1, 7, 2, 0])
POSITIVE = torch.rand(B, N, generator=torch.Generator().manual_seed(3)) < 0.3
GROUP = (torch.tensor([0, 1, 0, 1, 0, 0]), torch.tensor([0, 1, 0, 1, 0, 0, 1, 0]))
OWN = torch.tensor([4, 1, -1, 2, 7, 0])
KINDS = {
    "targets": ({"targets": TARGETS}, lambda i, j: int(TARGETS[i]) == j),
    "labels": ({"labels": LABELS}, lambda i, j: int(LABELS[0][i]) == int(LABELS[1][j])),
    "positive": ({"positive": POSITIVE}, lambda i, j: bool(POSITIVE[i, j])),
}
EXTRA = (draw(3, D, seed=5), draw(2, D, seed=6))
PER_ANCHOR = draw(B, 2, D, seed=7)
WEIGHT_N, WEIGHT_BN = draw(N, seed=8), draw(B, N, seed=9)
MASK = torch.rand(B, N, generator=torch.Generator().manual_seed(4)) < 0.8
TEMPERATURE_B = torch.rand(B, generator=torch.Generator().manual_seed(2), dtype=F64) + 0.3
LABELS_2 = (torch.tensor([3, 4, 5, 3, 4, 6]), torch.tensor([4, 7, 3, 8, 5, 5, 9, 4]))
POOL, INDEX = draw(5, D, seed=10), torch.tensor([[0, 1, -1], [4, 4, 2], [-1, -1, 3], [0, 2, 3], [1, -1, 0], [2, 2, 2]])
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "none": ({}, {}),
    "group": ({"group": GROUP}, {"exists": lambda i, j: int(GROUP[0][i]) == int(GROUP[1][j])}),
    "own": ({"own": OWN}, {"exists": lambda i, j: int(OWN[i]) != j}),
    "extra": ({"extra": EXTRA}, {"further": lambda i: [*EXTRA[0].tolist(), *EXTRA[1].tolist()]}),
    "per_anchor": ({"per_anchor": PER_ANCHOR}, {"further": lambda i: PER_ANCHOR[i].tolist()}),
    "log_weight": ({"log_weight": WEIGHT_N}, {"log_weight": lambda i, j: float(WEIGHT_N[j])}),
    "log_weights": ({"log_weight": WEIGHT_BN}, {"log_weight": lambda i, j: float(WEIGHT_BN[i, j])}),
    "temperature": ({"temperature": 0.4}, {"t": lambda i: 0.4}),
    "temperatures": ({"temperature": TEMPERATURE_B}, {"t": lambda i: float(TEMPERATURE_B[i])}),
    "positive_temperature": ({"positive_temperature": 0.3}, {"pt": lambda i: 0.3}),
    "margin": ({"margin": 0.2}, {"margin": 0.2}),
    "margin and weights": (
        {"margin": -0.1, "log_weight": WEIGHT_N, "temperature": 0.5},
        {"margin": -0.1, "log_weight": lambda i, j: float(WEIGHT_N[j]), "t": lambda i: 0.5},
    ),
    "ignore": ({"ignore": GROUP}, {"exists": lambda i, j: int(GROUP[0][i]) != int(GROUP[1][j])}),
    "ignore two": (
        {"ignore": [GROUP, LABELS_2]},
        {"exists": lambda i, j: GROUP[0][i] != GROUP[1][j] and LABELS_2[0][i] != LABELS_2[1][j]},
    ),
    "extra_ids": (
        {"ignore": LABELS_2, "extra": EXTRA, "extra_ids": (torch.tensor([3, 4, 9]), None)},
        {"exists": lambda i, j: LABELS_2[0][i] != LABELS_2[1][j],
         "further": lambda i: [e for e, k in zip(EXTRA[0].tolist(), (3, 4, 9), strict=True) if k != LABELS_2[0][i]]
         + EXTRA[1].tolist()},
    ),
    "own_positive": ({"own_positive": PER_ANCHOR}, {"own_positive": lambda i: PER_ANCHOR[i].tolist()}),
    "own_positive and more": (
        {"own_positive": PER_ANCHOR, "margin": 0.1, "positive_temperature": 0.3, "log_weight": WEIGHT_N},
        {"own_positive": lambda i: PER_ANCHOR[i].tolist(), "margin": 0.1, "pt": lambda i: 0.3,
         "log_weight": lambda i, j: float(WEIGHT_N[j])},
    ),
    "pool": (
        {"per_anchor": (POOL, INDEX), "per_anchor_log_weight": draw(B, 3, seed=11)},
        {"further": lambda i: POOL[INDEX[i][INDEX[i] >= 0]].tolist(),
         "further_weight": lambda i: draw(B, 3, seed=11)[i][INDEX[i] >= 0].tolist()},
    ),
    "per_anchor_log_weight": (
        {"per_anchor": PER_ANCHOR, "per_anchor_log_weight": draw(B, 2, seed=11)},
        {"further": lambda i: PER_ANCHOR[i].tolist(), "further_weight": lambda i: draw(B, 2, seed=11)[i].tolist()},
    ),
    "anchor_weight": ({"anchor_weight": TEMPERATURE_B}, {"anchor_weight": lambda i: float(TEMPERATURE_B[i])}),
    "mask": ({"denominator": MASK}, {"in_denominator": lambda i, j: bool(MASK[i, j])}),
}  # fmt: skip
