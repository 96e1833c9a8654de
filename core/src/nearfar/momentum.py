"""A teacher that follows its student by an exponential moving average."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nearfar.checks import expect, expect_choice


class Teacher(nn.Module):
    """A copy of a module whose parameters trail it: teacher <- m * teacher + (1 - m) * student.

    Args:
        student: copied at once; the teacher holds no reference to it.
        momentum: m in [0, 1]; 0 copies the student, 1 never moves.
        mode: "train" normalises by the statistics of the teacher's own batch, as MoCo does; "eval" by the running
            ones; dropout follows the mode too. The choice is the teacher's own: calling train() or eval() on a module
            around it does not change it. Modules that the student held in eval mode when it was copied (frozen batch
            norms) stay in eval mode.
        buffers: "copy" takes the student's buffers at every update; "average" moves those of floating dtype like
            parameters and takes the others. Buffers that the teacher's own forward writes (batch statistics in mode
            "train") are replaced by this too.

    Raises:
        ValueError: momentum outside [0, 1], an unknown mode, or, in `update`, a student of another structure.

    Notes:
        An update is one fused pass over all parameters. The average runs in the dtype of the teacher, so keep it in
        fp32: with m = 0.999 half precision would round most steps away. The state dict holds the whole teacher.
        Source: He et al., Momentum Contrast, CVPR 2020.
    """

    def __init__(
        self,
        student: nn.Module,
        momentum: float = 0.999,
        *,
        mode: Literal["train", "eval"] = "train",
        buffers: Literal["copy", "average"] = "copy",
    ) -> None:
        super().__init__()
        _expect_momentum(momentum)
        expect_choice("mode", mode, ("train", "eval"))
        expect_choice("buffers", buffers, ("copy", "average"))
        self.momentum, self.mode, self.buffers_rule = momentum, mode, buffers
        self.module = copy.deepcopy(student).requires_grad_(False)
        # eval mode inside a module that trains was set on purpose; by name, since a conversion may replace modules
        self._frozen = [name for name, m in student.named_modules() if student.training and not m.training]
        self.train(self.training)

    def train(self, mode: bool = True) -> Teacher:
        """Marks the teacher itself; the copy keeps the mode it was made with."""
        self.training = mode
        self.module.train(self.mode == "train")
        for name in self._frozen:
            self.module.get_submodule(name).eval()
        return self

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the teacher says, without gradient."""
        return self.module(*args, **kwargs)

    @torch.no_grad()
    def update(self, student: nn.Module, momentum: float | None = None) -> None:
        """One step towards the student; `momentum` overrides the teacher's own, for schedules."""
        m = self.momentum if momentum is None else momentum
        _expect_momentum(m)
        ours, theirs = dict(self.module.named_parameters()), dict(student.named_parameters())
        _expect_same("parameters", ours, theirs)
        if ours:
            targets = [theirs[name].to(parameter) for name, parameter in ours.items()]
            torch._foreach_lerp_(list(ours.values()), targets, 1.0 - m)  # type: ignore[reportPrivateImportUsage]
        ours, theirs = dict(self.module.named_buffers()), dict(student.named_buffers())
        _expect_same("buffers", ours, theirs)
        for name, buffer in ours.items():
            if self.buffers_rule == "average" and buffer.dtype.is_floating_point:
                buffer.lerp_(theirs[name].to(buffer), 1.0 - m)
            else:
                buffer.copy_(theirs[name])


def cosine_momentum(fraction: float, start: float = 0.996, end: float = 1.0) -> float:
    """Momentum at a share of the run: end - (end - start) * (1 + cos(pi * fraction)) / 2; BYOL's schedule.

    Args:
        fraction: how much of the run is done, in [0, 1].
        start, end: momentum at 0 and at 1.
    """
    expect(0 <= fraction <= 1, "fraction", "a number in [0, 1]", fraction)
    _expect_momentum(start)
    _expect_momentum(end)
    return end - (end - start) * (1 + math.cos(math.pi * fraction)) / 2


def _expect_momentum(momentum: float) -> None:
    expect(0 <= momentum <= 1, "momentum", "a number in [0, 1]", momentum)


def _expect_same(kind: str, ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    odd = sorted(ours.keys() ^ theirs.keys()) or [k for k, v in ours.items() if v.shape != theirs[k].shape]
    expect(not odd, "student", f"the {kind} of the module the teacher was copied from", f"others at {odd}")
