"""The learning rate over a run, as a closed form of the step."""

from __future__ import annotations

import math

from nearfar.checks import expect
from nearfar.config import OptimiserConfig


def scaled_lr(config: OptimiserConfig, batch_size: int) -> float:
    """The peak learning rate at a global batch size: lr, lr * batch/256 or lr * sqrt(batch/256)."""
    expect(batch_size >= 1, "batch_size", "1 or more", batch_size)
    share = batch_size / 256
    return config.lr * {"none": 1.0, "linear": share, "sqrt": math.sqrt(share)}[config.lr_scaling]


class Schedule:
    """Multiplier of the peak learning rate at a step.

    Linear from 0 to 1 over the warm-up of w = warmup_epochs * steps_per_epoch steps: s / w. Afterwards, with the share
    h = hold of the other steps at the peak, t = max(0, ((s - w) / (steps - w) - h) / (1 - h)) and f = final_lr:
    f + (1 - f) * (1 + cos(pi t)) / 2 for "cosine", 1 - (1 - f) t for "linear", 1 for "constant".

    Args:
        config: its warm-up, shape and final share.
        steps: optimiser steps of the whole run.
        steps_per_epoch: optimiser steps of one epoch.

    Notes:
        Step s is the number of steps already taken, so the first step of a warm-up has learning rate 0 and the last
        step of a run comes just before the final value. Beyond `steps` the final value holds. A run shorter than its
        warm-up only warms up. It keeps no state: a resumed run asks for its step.
    """

    def __init__(self, config: OptimiserConfig, steps: int, steps_per_epoch: int) -> None:
        expect(steps >= 1, "steps", "1 or more", steps)
        expect(steps_per_epoch >= 1, "steps_per_epoch", "1 or more", steps_per_epoch)
        self.config, self.steps = config, steps
        self.warmup = config.warmup_epochs * steps_per_epoch

    def __call__(self, step: int) -> float:
        expect(step >= 0, "step", "0 or more", step)
        if step < self.warmup:
            return step / self.warmup
        done = 1.0 if step >= self.steps else (step - self.warmup) / (self.steps - self.warmup)
        done = max(0.0, (done - self.config.hold) / (1 - self.config.hold))
        final = self.config.final_lr
        if self.config.schedule == "cosine":
            return final + (1 - final) * (1 + math.cos(math.pi * done)) / 2
        if self.config.schedule == "linear":
            return 1 - (1 - final) * done
        return 1.0
