"""The contract between a system and the trainer: what is encoded, what it costs, and what happens between updates.

The trainer knows only this. A system fills in `encode` and `loss`; everything else has a default. `encode` and `loss`
are pure: they read the module and change nothing in it (batch statistics apart), so that the trainer may split, cache,
repeat or distribute them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from nearfar.batch import Batch, View
from nearfar.rng import Rng

if TYPE_CHECKING:
    from nearfar.data import Source
    from nearfar.evaluate import Score

# How `Method.cache` begins where batch statistics are the only reason; `trainer.cache_batch_norm` may overrule it.
BATCH_NORM = "no: batch normalisation"


@dataclass(frozen=True)
class Progress:
    """Where training stands. `epoch` counts whole passes, `fraction` runs from 0 to 1 over the whole run."""

    step: int = 0
    epoch: int = 0
    fraction: float = 0.0
    steps: int = 0


@dataclass
class Terms:
    """Named, weighted scalars of one forward pass, and what is worth showing.

    A term is a mean over `count` of this process's anchors (or whatever it averages). The engine weighs it by the share
    of all processes' anchors, so that several processes with uneven batches give the loss and gradient of one.
    """

    values: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, float] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    logs: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, value: Tensor, *, weight: float = 1.0, count: float = 1.0) -> Terms:
        """Adds a scalar term; returns self so that calls chain."""
        if value.ndim != 0:
            raise ValueError(f"term {name!r}: expected a scalar, received shape {tuple(value.shape)}")
        self.values[name], self.weights[name], self.counts[name] = value, weight, float(count)
        return self

    def log(self, **values: Tensor | float) -> Terms:
        """Adds values to show; they carry no gradient."""
        for name, value in values.items():
            self.logs[name] = value.detach() if isinstance(value, Tensor) else torch.as_tensor(float(value))
        return self

    @property
    def total(self) -> Tensor:
        """The weighted sum of this process's terms."""
        if not self.values:
            raise ValueError("terms: expected at least one term, received none")
        parts = [self.weights[name] * value for name, value in self.values.items()]
        return torch.stack([part.float() for part in parts]).sum()


@runtime_checkable
class Views(Protocol):
    """What makes views of one modality, e.g. `nearfar.views.ImageViews`."""

    def __call__(self, data: Any, index: Tensor, rng: Rng) -> list[View]:
        """Random views of a batch; a function of (rng, index) alone."""
        ...

    def plain(self, data: Any) -> Tensor:
        """The batch as evaluation sees it, without randomness."""
        ...


@runtime_checkable
class Engine(Protocol):
    """What a Method may ask of the trainer."""

    def minimize(self, method: Method, batch: Batch) -> Terms:
        """One optimiser step on encode -> loss, with precision, accumulation, clipping and reduction; the default."""
        ...

    def backward(self, terms: Terms, *, name: str = "main") -> None:
        """Backward of the reduced terms, scaled for the precision in use."""
        ...

    def account(self, terms: Terms) -> bool:
        """Instead of `backward`, for gradients put in place otherwise: what the terms are; False if not finite."""
        ...

    def step(self, name: str = "main") -> bool:
        """Clips, steps and zeroes one optimiser; False when the step was not applied."""
        ...

    def call(self, name: str, *args: Any) -> Any:
        """Calls a method of the wrapped module through its forward, so that DDP and FSDP hooks fire."""
        ...

    def features(self, output: str = "default", *, train: bool = True) -> tuple[Tensor, Tensor]:
        """Features and indices of the whole data without augmentation, in evaluation mode, in index order."""
        ...

    @property
    def progress(self) -> Progress: ...


class Method(nn.Module):
    """A system's trainable form. All but `encode`, `loss` and `features` have defaults.

    Class attributes:
        cache: "exact" when every row of `encode` depends on its own sample only, else "no: <reason>".
        shard: "batch" when several processes may each take a part of a batch; "none" refuses more than one.
        outputs: names that `features` answers to.

    `cache` says whether `trainer.cache` may encode a batch in chunks; `views`, `targets` and `loss` see the whole batch
    anyhow. The trainer tries "exact" on the first batch, and asks that `update` is `engine.minimize`. A reason that
    begins with BATCH_NORM may be overruled by `trainer.cache_batch_norm`.
    """

    cache: str = "no: not declared"
    shard: str = "batch"
    outputs: tuple[str, ...] = ("default",)

    def views(self, batch: Batch, rng: Rng) -> Batch:
        """The batch with its views, made on the device; pure, and a function of (seed, epoch, sample) alone."""
        return batch

    def targets(self, batch: Batch, progress: Progress) -> dict[str, Any]:
        """Teacher keys, assignments, statistics: once an update, without gradient; may write buffers."""
        return {}

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Embeddings of the batch, batch dimension first; pure."""
        raise TypeError(f"{type(self).__name__} does not define encode")

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        """The terms of the loss; pure."""
        raise TypeError(f"{type(self).__name__} does not define loss")

    def update(self, batch: Batch, engine: Engine) -> Terms:
        """One training update; the default is one optimiser step."""
        return engine.minimize(self, batch)

    def on_gradients(self, progress: Progress) -> None:
        """Called before the optimiser's step, for instance to hold prototypes still."""

    def after_update(self, z: Mapping[str, Tensor], targets: Mapping[str, Any], progress: Progress) -> None:
        """Called only when the step was applied: moves the teacher, fills queues."""

    def on_epoch(self, engine: Engine) -> None:
        """Called before each epoch, for work over the whole data."""

    def optimisers(self) -> dict[str, Iterable[nn.Parameter]]:
        """Named groups of parameters, one optimiser each."""
        return {"main": [p for p in self.parameters() if p.requires_grad]}

    def features(self, batch: Batch, output: str = "default") -> Tensor:
        """What users keep of a batch [B, D]; call in evaluation mode without gradient."""
        raise TypeError(f"{type(self).__name__} does not define features")

    def scores(self, source: Source, device: torch.device | str = "cpu") -> dict[str, Score]:
        """Scores of a system's own on held-out samples, in evaluation mode; empty: its features are scored instead."""
        return {}

    def forward(self, call: str, *args: Any) -> Any:
        """Dispatches to a method by name, so that wrappers see every pass as a forward."""
        handler: Callable[..., Any] = getattr(self, call)
        return handler(*args)

    def terms(self, batch: Batch, targets: Mapping[str, Any], progress: Progress) -> tuple[dict[str, Tensor], Terms]:
        """Encode and loss in one pass: what a wrapped forward runs in a plain step."""
        z = self.encode(batch)
        return z, self.loss(z, batch, targets, progress)
