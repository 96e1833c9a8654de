"""One optimiser step, whole: precision, accumulation, reduction over processes, clipping, and what is not applied."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nearfar import distributed
from nearfar.batch import Batch, split
from nearfar.batch import size as batch_size
from nearfar.config import OptimiserConfig, TrainerConfig
from nearfar.method import Method, Progress, Terms
from nearfar.schedules import Schedule, scaled_lr
from nearfar.train import optim

if TYPE_CHECKING:
    from accelerate import Accelerator


class Engine:
    """Runs updates of a method; what `Method.update` and `Method.on_epoch` are given.

    Args:
        accelerator: device, precision and process group.
        method: the system.
        config: clipping, accumulation, precision.
        optimiser: options of every optimiser of the method.
        steps: optimiser steps of the whole run; steps_per_epoch: of one pass.
        features: extracts features of the whole data, for `on_epoch`.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        method: Method,
        config: TrainerConfig,
        optimiser: OptimiserConfig,
        *,
        steps: int,
        steps_per_epoch: int,
        features: Callable[..., tuple[Tensor, Tensor]],
    ) -> None:
        self.accelerator, self.method, self.config = accelerator, method, config
        self.frozen = optim.freeze(method, optimiser.freeze)
        self.schedule = Schedule(optimiser, steps, steps_per_epoch)
        self.peak = scaled_lr(optimiser, config.batch_size)
        self.rate = 0.0
        self.gradient_norm = 0.0
        self.applied = True
        self.reduced: dict[str, float] = {}
        self.embedding: Tensor | None = None
        self.progress = Progress(steps=steps)
        self.features = features
        self._parameters = {name: list(params) for name, params in method.optimisers().items()}
        built = {n: optim.build(method, p, optimiser, self.peak) for n, p in self._parameters.items()}
        prepared = accelerator.prepare(method, *built.values())
        self.wrapped = prepared[0]
        if isinstance(self.wrapped, nn.parallel.DistributedDataParallel):
            # Every process computes the same queues, teachers and batch statistics; none needs another's. Set here,
            # since the constructor's argument has had two names.
            self.wrapped.broadcast_buffers = False
        self.optimisers = dict(zip(built, prepared[1:], strict=True))

    # -- what a Method may call ----------------------------------------------------------------------------------------

    def call(self, name: str, *args: Any) -> Any:
        """Calls a method of the wrapped module through its forward."""
        return self.wrapped(name, *args)

    def minimize(self, method: Method, batch: Batch) -> Terms:
        """One optimiser step on encode -> loss; `after_update` follows when the step was applied."""
        parts = (
            split(batch, _chunk(batch_size(batch), self.config.accumulate)) if self.config.accumulate > 1 else [batch]
        )
        with torch.no_grad():
            targets = [self.call("targets", part, self.progress) for part in parts]
        outputs, terms = [], Terms()
        for i, part in enumerate(parts):
            last = i == len(parts) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                z, terms = self.call("terms", part, targets[i], self.progress)
                self.backward(terms, share=1 / len(parts))
            outputs.append({name: value.detach() for name, value in z.items()})
        self.step()
        z, merged = _merge(outputs), _merge(targets)
        self.embedding = z.get("embedding")
        if self.applied:
            with torch.no_grad():
                method.after_update(z, merged, self.progress)
        return terms

    def backward(self, terms: Terms, *, name: str = "main", share: float = 1.0) -> None:
        """Backward of the terms as one loss over all processes; nothing flows back from a non-finite one."""
        total = self._reduce(terms)
        self.applied = bool(torch.isfinite(torch.tensor(self.reduced["loss"])))
        if self.applied:
            self.accelerator.backward(total * share)

    def step(self, name: str = "main") -> bool:
        """Clips, steps and zeroes one optimiser; False when loss or gradient were not finite."""
        optimiser, params = self.optimisers[name], self._parameters[name]
        scaled = self.config.precision == "fp16"
        if self.applied:
            if scaled:
                self.accelerator.unscale_gradients(optimiser)
            self.method.on_gradients(self.progress)
            if self.config.clip_norm:
                norm = self.accelerator.clip_grad_norm_(params, self.config.clip_norm)
            else:
                norm = optim.gradient_norm(params)
            self.gradient_norm = float(norm)  # type: ignore[arg-type]
            finite = self.gradient_norm < float("inf")
            if finite or scaled:  # the scaler itself leaves out an overflown step and lowers its scale
                self.rate = self.schedule(self.progress.step) * self.peak
                optim.set_rate(optimiser, self.rate)
                optimiser.step()
            self.applied = finite and not optimiser.step_was_skipped
        optimiser.zero_grad(set_to_none=True)
        return self.applied

    # -- reduction -----------------------------------------------------------------------------------------------------

    def _reduce(self, terms: Terms) -> Tensor:
        """This process's share of the loss over all processes, times their number (gradients are averaged)."""
        names = list(terms.values)
        values = torch.stack([terms.values[n].float() for n in names])
        weights = values.new_tensor([terms.weights[n] for n in names])
        counts = values.new_tensor([terms.counts[n] for n in names])
        if distributed.world() == 1:
            means, total = values.detach(), (weights * values).sum()
        else:
            local = torch.where(counts > 0, counts * values.detach(), torch.zeros_like(values))
            sums = distributed.reduce_sum(torch.stack([counts, local]))
            everyone = sums[0].clamp(min=torch.finfo(torch.float32).tiny)
            means = sums[1] / everyone
            total = (weights * values * (counts / everyone)).sum() * distributed.world()
        self.reduced = {"loss": float((weights * means).sum())}
        if len(names) > 1:
            self.reduced |= {name: float(mean) for name, mean in zip(names, means, strict=True)}
        return total

    def train_mode(self) -> None:
        """Training mode, but for frozen parts."""
        self.method.train()
        for module in self.frozen:
            module.eval()


def _chunk(num: int, parts: int) -> list[int]:
    """Sizes of `parts` nearly equal pieces of a batch."""
    if num < parts:
        raise ValueError(
            f"trainer.accumulate: expected at most the {num} samples of a process's batch, received {parts}"
        )
    return [num // parts + (i < num % parts) for i in range(parts)]


def _merge(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Joins the accumulated parts along the batch; a value that is no tensor comes from the last part."""
    if len(parts) == 1:
        return parts[0]
    return {
        name: torch.cat([part[name] for part in parts]) if isinstance(value, Tensor) and value.ndim else value
        for name, value in parts[-1].items()
    }
