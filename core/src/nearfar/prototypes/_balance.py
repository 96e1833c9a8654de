"""The plan behind balanced codes: log prices of prototypes, found by scaling vectors or in the log domain.

Legend: N samples of this process, K prototypes, n x K one block of rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nearfar._similarity import accumulation
from nearfar.checks import expect, expect_choice, expect_positive
from nearfar.distributed import gather, reduce_sum

SPREAD = {torch.float32: 60.0, torch.float64: 600.0}
"""largest (max - min) / eps whose exponentials, and scalings that undo them, stay inside the type with room to spare"""


class Plan(NamedTuple):
    """What `solve` found.

    Args:
        price_K: g, in log, for scores counted from `top`.
        eps: the smoothness it was found for.
        top: the largest score, or 0 where exponentials need no shift.
        scaled_NK, scale_K: exp((scores - top) / eps) of all rows and exp(-g), where the scaling form ran.
    """

    price_K: Tensor
    eps: float
    top: float
    scaled_NK: Tensor | None = None
    scale_K: Tensor | None = None

    def codes(self, scores: Tensor) -> Tensor:
        """softmax((scores - top) / eps - g) of any rows, also such as took no part."""
        return (scores.to(self.price_K.dtype) - self.top).mul_(1 / self.eps).sub_(self.price_K).softmax(1)

    def take(self, scores: Tensor) -> Tensor:
        """The codes of all rows that took part; of the scaling form they take the place of its matrix."""
        if self.scaled_NK is None or self.scale_K is None:
            return self.codes(scores)
        for block in self.scaled_NK.split(rows_of(self.scaled_NK)):
            sum_n = block @ self.scale_K
            block.mul_(self.scale_K).div_(sum_n[:, None])
        return self.scaled_NK


def solve(
    parts: Sequence[Tensor],
    eps: float,
    num_iterations: int,
    share_K: Tensor | None,
    weight_N: Tensor | None,
    form: str,
    distributed: bool,
) -> Plan:
    """The plan for the rows of `parts` [n, K] one after another; arguments as for `sinkhorn`."""
    expect_positive("eps", eps)
    expect(num_iterations >= 1, "num_iterations", "1 or more", num_iterations)
    expect_choice("form", form, ("auto", "scaling", "log"))
    first = parts[0]
    expect(first.ndim == 2 and first.shape[1] >= 1, "scores", "shape [N, K], K of 1 or more", tuple(first.shape))
    dtype = accumulation(first)
    num, width = sum(len(part) for part in parts), first.shape[1]
    weight_N = _weights(weight_N, num, first.device, dtype)
    low, top, total = _bounds(parts, weight_N, width, distributed)
    share_K = _shares(share_K, width, first.device, dtype) * total
    spread = (top - low) / eps
    fits = spread <= SPREAD[dtype]
    expect(fits or form != "scaling", "form", f"'log' for scores that spread over more than {SPREAD[dtype]:g} eps",
           f"'scaling' with {spread:.3g}")  # fmt: skip
    if fits and form != "log":
        return _scale(parts, eps, num_iterations, share_K, weight_N, low, top, distributed)
    return _log(parts, eps, num_iterations, share_K, weight_N, top, distributed)


def rows_of(x: Tensor) -> int:
    """Rows of a block: on the CPU what stays in a core's cache, elsewhere what fills the device."""
    return max(1, (3 << 17 if x.device.type == "cpu" else 1 << 26) // max(1, x.shape[1]))


def _scale(
    parts: Sequence[Tensor],
    eps: float,
    num_iterations: int,
    share_K: Tensor,
    weight_N: Tensor,
    low: float,
    top: float,
    far: bool,
) -> Plan:
    if max(abs(low), abs(top)) / eps <= SPREAD[share_K.dtype] / 2:
        top = 0.0
    to_log2 = 1 / (eps * math.log(2))
    scaled = torch.empty(len(weight_N), len(share_K), dtype=share_K.dtype, device=share_K.device)
    sum_K = torch.zeros_like(share_K)
    for rows, start, stop in _blocks(parts):
        block = scaled[start:stop]
        if top == 0:
            torch.mul(rows.to(scaled.dtype), to_log2, out=block)
        else:
            torch.sub(rows.to(scaled.dtype), top, out=block).mul_(to_log2)
        block.exp2_()  # a third of exp's time on the CPU
        sum_K += block.T @ weight_N[start:stop]
    for _ in range(num_iterations - 1):
        scale_K = share_K / (reduce_sum(sum_K) if far else sum_K)
        sum_K = torch.zeros_like(share_K)
        for _, start, stop in _blocks((scaled,)):
            block = scaled[start:stop]
            sum_K += block.T @ (weight_N[start:stop] / (block @ scale_K))
    scale_K = share_K / (reduce_sum(sum_K) if far else sum_K)
    return Plan(-scale_K.log(), eps, top, scaled, scale_K)


def _log(
    parts: Sequence[Tensor], eps: float, num_iterations: int, share_K: Tensor, weight_N: Tensor, top: float, far: bool
) -> Plan:
    price_K: Tensor | None = None  # in log2 here, as everything below
    weight_N1, to_log2 = weight_N.log2()[:, None], 1 / (eps * math.log(2))
    for _ in range(num_iterations):
        sum_K = torch.full_like(share_K, -torch.inf)
        for rows, start, stop in _blocks(parts):
            # counted from the top, where the entries that matter are exact
            logits = (rows.to(share_K.dtype) - top).mul_(to_log2)
            mass = weight_N1[start:stop]
            if price_K is not None:
                mass = mass - _log2_sum(logits - price_K, 1)
            sum_K = _log2_sum(torch.stack([sum_K, _log2_sum(logits.add_(mass), 0)[0]]), 0)[0]
        price_K = (_log2_sum(gather(sum_K[None], grad=False), 0)[0] if far else sum_K) - share_K.log2()
    assert price_K is not None  # one iteration or more
    return Plan(price_K * math.log(2), eps, top)


def _log2_sum(x: Tensor, dim: int) -> Tensor:
    """log2 sum 2^x along a dimension that stays, where exp2 is three times as fast as exp; may overwrite x."""
    most = x.amax(dim, keepdim=True).clamp_(min=torch.finfo(x.dtype).min)  # of nothing but -inf: stays -inf
    return x.sub_(most).exp2_().sum(dim, keepdim=True).log2_().add_(most)


def _blocks(parts: Sequence[Tensor]) -> Iterator[tuple[Tensor, int, int]]:
    """(rows, first, last + 1) of every block of all parts, numbered through."""
    start = 0
    for part in parts:
        for rows in part.split(rows_of(part)) if len(part) else ():
            yield rows, start, start + len(rows)
            start += len(rows)


def _bounds(parts: Sequence[Tensor], weight_N: Tensor, width: int, far: bool) -> tuple[float, float, float]:
    """Smallest and largest score and the sum of weights, of all processes; complains on all of them alike."""
    ends = [torch.stack(torch.aminmax(part)).double() for part in parts if part.numel()]
    ends.append(torch.tensor(EMPTY, dtype=torch.float64, device=weight_N.device))
    low, top = torch.stack([end[0] for end in ends]).amin(), torch.stack([end[1] for end in ends]).amax()
    good = ((weight_N >= 0) & weight_N.isfinite()).all()
    total = torch.where(good, weight_N.double().sum(), torch.nan)
    mine = torch.stack([low, top, total, low.new_tensor(width)])[None]
    every = gather(mine, grad=False) if far else mine
    lows, tops, totals, widths = every.T.tolist()
    expect(len(set(widths)) == 1, "scores", "the same number of prototypes on every process", widths)
    # no comparison holds for nan
    odd = [(a, b) for a, b in zip(lows, tops, strict=True) if not -torch.inf < a <= b < torch.inf and (a, b) != EMPTY]
    expect(not odd, "scores", "finite numbers", f"values from {odd[0][0]} to {odd[0][1]}" if odd else "")
    expect(min(lows) != torch.inf, "scores", "one row or more", "none")
    total = float(sum(totals))
    expect(total > 0, "sample_weight", "finite numbers >= 0, not all 0", f"others, with the sum {total}")
    return min(lows), max(tops), total


EMPTY = (torch.inf, -torch.inf)
"""bounds of no rows"""


def _weights(weight: Tensor | None, num: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    if weight is None:
        return torch.ones(num, dtype=dtype, device=device)
    expect(tuple(weight.shape) == (num,), "sample_weight", f"shape {(num,)}", tuple(weight.shape))
    return weight.to(device, dtype)


def _shares(share: Tensor | None, num: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """[num] with sum 1."""
    if share is None:
        return torch.full((num,), 1 / num, dtype=dtype, device=device)
    expect(tuple(share.shape) == (num,), "prototype_share", f"shape {(num,)}", tuple(share.shape))
    expect(bool(((share > 0) & share.isfinite()).all()), "prototype_share", "finite numbers > 0", "others")
    share = share.to(device, dtype)
    return share / share.sum()
