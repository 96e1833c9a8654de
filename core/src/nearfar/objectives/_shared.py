"""What several objectives share: stacked views, where an anchor's own row stands, and the temperature of a Module.

Legend: B batch, N gathered batch, V views, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from nearfar.checks import expect, expect_positive


def stack(name: str, views: Tensor | Sequence[Tensor], *, least: int = 2, least_samples: int = 1) -> tuple[Tensor, int]:
    """Views as one matrix [V * B, D], view after view, and their number.

    `views` is [V, B, D], or V tensors [B, D].
    """
    if isinstance(views, Tensor):
        expect(views.ndim == 3, name, "shape [V, B, D]", tuple(views.shape))
        num, flat = views.shape[0], views.flatten(0, 1)
    else:
        num = len(views)
        shapes = {tuple(view.shape) for view in views}
        expect(len(shapes) == 1 and views[0].ndim == 2, name, "views of one shape [B, D]", sorted(shapes))
        flat = torch.cat(list(views)) if num > 1 else views[0]
    expect(num >= least, name, f"{least} or more views", num)
    expect(flat.shape[0] >= num * least_samples, name, "one or more samples", flat.shape[0])
    return flat, num


@dataclass(frozen=True)
class Place:
    """Where the anchors [V * B] of this batch stand among the candidates [V * N] gathered from all batches."""

    num_views: int
    num_local: int
    num_all: int
    offset: int
    device: torch.device

    def __post_init__(self) -> None:
        last = self.num_all - self.num_local
        expect(
            0 <= self.offset <= last, "offset", f"0 to {last}, so that local rows are among the gathered", self.offset
        )

    def sample(self) -> Tensor:
        """Number of every anchor's sample among all samples, [V * B]."""
        local = torch.arange(self.num_local, device=self.device) + self.offset
        return local.repeat(self.num_views)

    def samples(self) -> Tensor:
        """The same of the candidates, [V * N]."""
        return torch.arange(self.num_all, device=self.device).repeat(self.num_views)

    def own(self) -> Tensor:
        """Candidate that is the anchor itself, [V * B]."""
        view = torch.arange(self.num_views, device=self.device).repeat_interleave(self.num_local)
        return view * self.num_all + self.sample()

    def partner(self) -> Tensor:
        """Candidate that is the other view of the anchor, of two views, [2 * B]."""
        return (self.own() + self.num_all) % (2 * self.num_all)

    def positives(self) -> dict[str, Any]:
        """The other views of the same sample, as arguments of a contrast with candidates given."""
        if self.num_views == 2:
            return {"targets": self.partner()}
        return {"labels": (self.sample(), self.samples())}


def gather_views(gathered: Tensor | Sequence[Tensor], num_views: int) -> Tensor:
    """Gathered views as one matrix [V * N, D]."""
    flat, num = stack("gathered", gathered, least=1)
    expect(num == num_views, "gathered", f"{num_views} views, as many as the anchors have", num)
    return flat


def as_views(z: Tensor | Sequence[Tensor]) -> Tensor | Sequence[Tensor]:
    """Views, of which [B, D] alone is one."""
    return (z,) if isinstance(z, Tensor) and z.ndim == 2 else z


def met_targets(target: Tensor, num_views: int, all_pairs: bool) -> tuple[Tensor, int]:
    """Sum of the targets that each of `num_views` views meets [V, B, D], of targets [W, B, D], and the number of pairs.

    The target of number w belongs to the view of that number, which does not meet it, unless `all_pairs`.
    """
    num, total = len(target), target.sum(0)
    if all_pairs:
        return total.expand(num_views, *total.shape), num_views * num
    others = total - target
    if num_views > num:
        others = torch.cat([others, total.expand(num_views - num, *total.shape)])
    return others, num_views * num - num


def check_targets(name: str, views: Tensor, target: Tensor, all_pairs: bool) -> None:
    """That targets [W, B, D] fit views [V, B, D], and that at least one pair meets."""
    for label, x in ((name, views), ("target", target)):
        expect(x.ndim == 3 and x.numel() > 0, label, "shape [V, B, D], none of them 0", tuple(x.shape))
        expect(x.is_floating_point(), label, "floating point", x.dtype, TypeError)
    expect(target.shape[1:] == views.shape[1:], "target", f"shape [W, {views.shape[1]}, {views.shape[2]}]",
           tuple(target.shape))  # fmt: skip
    num, most = len(target), len(views)
    expect(all_pairs or num <= most, "target", f"at most {most} views, those of the same numbers (or all_pairs)", num)
    expect(all_pairs or most > 1, name, "2 or more views (or all_pairs)", most)


def reduced(loss_B: Tensor, reduction: str) -> Tensor:
    """The losses of anchors that all count: their "mean", their "sum", or as they are ("none")."""
    return loss_B if reduction == "none" else loss_B.mean() if reduction == "mean" else loss_B.sum()


def add_constant(loss: Tensor, extra_B: Tensor, num_anchors: int, reduction: str) -> Tensor:
    """Adds a term per anchor (zero where the anchor does not count) to a loss reduced over `num_anchors`."""
    if reduction == "none":
        return loss + extra_B
    return loss + (extra_B.sum() / num_anchors if reduction == "mean" else extra_B.sum())


class Temperature(nn.Module):
    """A fixed number, or exp of a learnt logarithm that is held at `minimum` or above.

    Args:
        initial: temperature at the start.
        learnable: whether it is learnt; its logarithm is the parameter `log_value`.
        minimum: lowest value that a learnt temperature takes; a gradient that would go below is stopped.
    """

    def __init__(self, initial: float, learnable: bool, minimum: float = 0.01) -> None:
        super().__init__()
        expect_positive("temperature", initial)
        expect_positive("minimum", minimum)
        self.initial, self.minimum = float(initial), float(minimum)
        self.log_value = nn.Parameter(torch.tensor(math.log(initial))) if learnable else None

    def forward(self) -> float | Tensor:
        if self.log_value is None:
            return self.initial
        return _AtLeast.apply(self.log_value, math.log(self.minimum)).exp()

    def extra_repr(self) -> str:
        return f"{self.initial}, learnable={self.log_value is not None}"


class _AtLeast(Function):
    """max(x, low) whose gradient leads back from below, where that of clamp is zero and x would be stuck."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, low: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.low = low
        return x.clamp_min(low)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return torch.where((x < ctx.low) & (grad > 0), 0.0, grad), None
