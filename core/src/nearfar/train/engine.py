"""One optimiser step, whole: precision, accumulation, cache, reduction, clipping, and what is not applied."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import convert_to_fp32
from torch import Tensor, nn

from nearfar import distributed
from nearfar.batch import Batch, split
from nearfar.batch import size as batch_size
from nearfar.checks import expect
from nearfar.config import OptimiserConfig, TrainerConfig
from nearfar.gradcache import GradCache
from nearfar.method import Method, Progress, Terms
from nearfar.schedules import Schedule, scaled_lr
from nearfar.train import cache, optim, sharding

if TYPE_CHECKING:
    from accelerate import Accelerator

    from nearfar.data import Source
    from nearfar.evaluate import Score


class Engine:
    """Runs updates of a method; what `Method.update` and `Method.on_epoch` are given.

    Args:
        accelerator: device, precision and process group.
        method: the system.
        config: clipping, accumulation, cache, precision.
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
        self.sharded = config.parallel == "fsdp" and distributed.world() > 1
        if self.sharded:
            sharding.shard(method, accelerator.device)
        self._parameters = {name: list(params) for name, params in method.optimisers().items()}
        built = {n: optim.build(method, p, optimiser, self.peak) for n, p in self._parameters.items()}
        self.wrapped: Any = method if self.sharded else accelerator.prepare(method)
        self.optimisers: dict[str, Any] = {name: accelerator.prepare_optimizer(one) for name, one in built.items()}
        if isinstance(self.wrapped, nn.parallel.DistributedDataParallel):
            # Every process computes the same queues, teachers and batch statistics; none needs another's. Set here,
            # since the constructor's argument has had two names.
            self.wrapped.broadcast_buffers = False
        self.cache = GradCache(
            partial(self.call, "encode"),
            wrapper=self.wrapped,
            batch_norm="chunk" if config.cache_batch_norm == "chunk" else "refuse",
        )
        self._probed = False

    # -- what a Method may call ----------------------------------------------------------------------------------------

    def call(self, name: str, *args: Any) -> Any:
        """Calls a method of the wrapped module through its forward."""
        if not self.sharded:
            return self.wrapped(name, *args)
        with self.accelerator.autocast():  # which `prepare` has put around the forward of the others
            result = self.wrapped(name, *args)
        return result if self.config.precision == "no" else convert_to_fp32(result)

    def embed(self, batch: Batch, output: str) -> Tensor:
        """The method's `features` in full precision, through the forward where parameters are sharded."""
        if not self.sharded:
            return self.method.features(batch, output)
        features = self.wrapped("features", batch, output)
        self.wrapped.reshard()  # no backward follows that would
        return features

    def scores(self, source: Source) -> dict[str, Score]:
        """The method's `scores`, through the forward where parameters are sharded."""
        if not self.sharded:
            return self.method.scores(source, self.accelerator.device)
        found = self.wrapped("scores", source, self.accelerator.device)
        self.wrapped.reshard()
        return found

    def minimize(self, method: Method, batch: Batch) -> Terms:
        """One optimiser step on encode -> loss; `after_update` follows when the step was applied."""
        if self.config.cache and not self._probed:
            self._probe(batch)
        sizes = cache.chunk_sizes(batch_size(batch), self.config.cache)
        z, targets, terms = self._plain(batch) if len(sizes) == 1 else self._cached(batch, sizes)
        self.step()
        self.embedding = z.get("embedding")
        if self.applied:
            with torch.no_grad():
                method.after_update(z, targets, self.progress)
        return terms

    def backward(self, terms: Terms, *, name: str = "main") -> None:
        """Backward of the terms as one loss over all processes; nothing flows back from a non-finite one."""
        self._expect_whole()
        self._backward(terms, self.accelerator.backward)

    def account(self, terms: Terms) -> bool:
        """Instead of `backward`, where a method puts gradients in place itself: the terms of all processes are shown.

        Returns:
            Whether they are finite; if not, no gradient may be made, and the next `step` is not applied.
        """
        self._expect_whole()
        name = type(self.method).__name__
        expect(self.config.precision == "no", "trainer.precision",
               f"'no', since {name} puts its gradients in place itself", repr(self.config.precision))  # fmt: skip
        expect(
            not self.sharded, "trainer.parallel", f"'ddp', since {name} puts its gradients in place itself", "'fsdp'"
        )
        self._reduce(terms)
        self.applied = bool(torch.isfinite(torch.tensor(self.reduced["loss"])))
        return self.applied

    def _expect_whole(self) -> None:
        """That a method which makes its own updates has whole batches."""
        expect(
            self.config.cache == 0,
            "trainer.cache", f"0, since {type(self.method).__name__} makes its own updates", self.config.cache,
        )  # fmt: skip
        expect(
            self.config.accumulate == 1, "trainer.accumulate",
            f"1, since {type(self.method).__name__} makes its own updates", self.config.accumulate,
        )  # fmt: skip

    def step(self, name: str = "main") -> bool:
        """Clips, steps and zeroes one optimiser; False when loss or gradient were not finite."""
        optimiser, params = self.optimisers[name], self._parameters[name]
        scaled = self.config.precision == "fp16"
        if self.applied:
            if scaled:
                self.accelerator.unscale_gradients(optimiser)
            if self.sharded:
                sharding.average_scalars(params)
            self.method.on_gradients(self.progress)
            self.gradient_norm = float(self._clipped_norm(params))
            finite = self.gradient_norm < float("inf")
            if finite or scaled:  # the scaler itself leaves out an overflown step and lowers its scale
                self.rate = self.schedule(self.progress.step) * self.peak
                optim.set_rate(optimiser, self.rate)
                optimiser.step()
            self.applied = finite and not optimiser.step_was_skipped
        optimiser.zero_grad(set_to_none=True)
        if self.sharded:
            self.wrapped.reshard()  # of a step whose loss was not finite; no-op after a backward
        return self.applied

    def _clipped_norm(self, params: list[nn.Parameter]) -> Tensor:
        """Norm of the gradients before clipping, over all processes."""
        largest = self.config.clip_norm
        if largest and not self.sharded:
            return self.accelerator.clip_grad_norm_(params, largest)  # type: ignore[return-value]
        norm = optim.gradient_norm(params)
        if largest:
            sharding.clip(params, norm, largest)
        return norm

    # -- the gradient of a batch ---------------------------------------------------------------------------------------

    def _plain(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Any], Terms]:
        """Embeddings, targets and last terms of a batch whose gradients are now in place, part by part."""
        num = self.config.accumulate
        parts = split(batch, _chunk(batch_size(batch), num)) if num > 1 else [batch]
        with torch.no_grad():
            targets = [self.call("targets", part, self.progress) for part in parts]
        outputs, terms = [], Terms()
        for i, part in enumerate(parts):
            last = i == len(parts) - 1
            with nullcontext() if last else self.cache.no_sync():
                z, terms = self.call("terms", part, targets[i], self.progress)
                self._backward(terms, self.accelerator.backward, share=1 / len(parts))
            outputs.append({name: value.detach() for name, value in z.items()})
        return _merge(outputs), _merge(targets), terms

    def _cached(self, batch: Batch, sizes: list[int]) -> tuple[dict[str, Tensor], dict[str, Any], Terms]:
        """The same through the gradient cache: one loss over the whole batch, the graph of one chunk at a time."""
        with torch.no_grad():
            targets = self.call("targets", batch, self.progress)
        z = self.cache(split(batch, sizes))
        with self.cache.no_sync():
            terms = self.call("loss", z, batch, targets, self.progress)
        self._backward(terms, partial(self.cache.backward, backward=self.accelerator.backward))
        return {name: value.detach() for name, value in z.items()}, targets, terms

    def _probe(self, batch: Batch) -> None:
        """Before the first update: tries what the method declares, and holds batch norms still where asked."""
        norms = cache.probe(self.method, partial(self.call, "encode"), batch, self.config)
        if self.config.cache_batch_norm == "freeze":
            self.frozen += norms
            self.train_mode()
        self._probed = True

    def _backward(self, terms: Terms, run: Callable[[Tensor], Any], share: float = 1.0) -> None:
        total = self._reduce(terms)
        self.applied = bool(torch.isfinite(torch.tensor(self.reduced["loss"])))
        if self.applied:
            run(total * share)

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
