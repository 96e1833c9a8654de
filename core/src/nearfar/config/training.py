"""The optimiser, the trainer and the scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nearfar.checks import expect, expect_positive
from nearfar.config._checks import fraction


@dataclass(frozen=True, kw_only=True)
class OptimiserConfig:
    """One optimiser and its learning rate over the run."""

    name: Literal["adamw", "sgd", "lars"] = "adamw"
    lr: float = 2e-3
    """peak learning rate; with lr_scaling its value at a batch of 256"""
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    """linear: times batch/256; sqrt: times sqrt(batch/256)"""
    weight_decay: float = 1e-4
    """left out for biases, norms and scalars"""
    momentum: float = 0.9
    """of sgd and lars"""
    betas: tuple[float, float] = (0.9, 0.999)
    """of adamw"""
    nesterov: bool = False
    trust: float = 1e-3
    """trust coefficient of lars"""
    warmup_epochs: float = 0.0
    schedule: Literal["cosine", "constant", "linear"] = "cosine"
    """after the warm-up"""
    hold: float = 0.0
    """share of the steps after the warm-up at the peak, before the schedule begins to fall"""
    final_lr: float = 0.0
    """learning rate at the end as a share of the peak"""
    layer_decay: float = 1.0
    """learning rate of a layer = lr * layer_decay^(layers above it)"""
    freeze: tuple[str, ...] = ()
    """parameters whose name starts with one of these stay as they are, their modules in eval mode"""

    def __post_init__(self) -> None:
        expect_positive("optimiser.lr", self.lr)
        expect(self.weight_decay >= 0, "optimiser.weight_decay", "0 or more", self.weight_decay)
        expect(0 <= self.momentum < 1, "optimiser.momentum", "a number in [0, 1)", self.momentum)
        expect(self.warmup_epochs >= 0, "optimiser.warmup_epochs", "0 or more", self.warmup_epochs)
        expect(0 < self.layer_decay <= 1, "optimiser.layer_decay", "a number in (0, 1]", self.layer_decay)
        fraction("optimiser.final_lr", self.final_lr)
        expect(0 <= self.hold < 1, "optimiser.hold", "a share in [0, 1)", self.hold)


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How long, how big, how often."""

    epochs: int = 100
    max_steps: int = 0
    """stop after this many optimiser steps; 0: after the epochs"""
    batch_size: int = 256
    """samples an optimiser step sees, over all processes and accumulated parts together"""
    accumulate: int = 1
    """parts a batch is cut into; candidates are those of the same part"""
    cache: int = 0
    """samples a process encodes at a time, with the loss and gradient of the whole batch; 0: all at once"""
    cache_batch_norm: Literal["refuse", "chunk", "freeze"] = "refuse"
    """of an encoder whose batch is cached: chunk: statistics of each chunk, inexact; freeze: the running statistics"""
    drop_last: bool = True
    """leave out a last batch that is smaller than the others"""
    seed: int = 0
    precision: Literal["no", "bf16", "fp16"] = "no"
    clip_norm: float = 0.0
    """largest gradient norm; 0: not clipped"""
    device: Literal["auto", "cpu"] = "auto"
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """over several processes: ddp: each holds the whole model; fsdp: each holds a part of parameters, gradients and
    optimiser states; in one process it says nothing"""
    compile: bool = False
    """torch.compile the method"""
    sync_batch_norm: bool = True
    """batch statistics over all processes"""
    output: str = ""
    """run folder; empty: runs/<system>-<date>"""
    checkpoint_every: int = 0
    """steps between checkpoints; 0: every epoch"""
    keep: int = 2
    """newest checkpoints kept, besides the best"""
    evaluate_every: int = 10
    """epochs between evaluations on the validation split; 0: only at the end"""
    evaluate_before: bool = True
    """score the untrained features too, to compare with"""
    monitor: str = "knn"
    """evaluation score that chooses the best checkpoint"""
    patience: int = 0
    """evaluations without a better score before the run stops early; 0: never"""
    log_every: int = 10
    """steps between rows of metrics.jsonl"""
    report: bool = True
    """write report.html at the end, with a map of the features and nearest neighbours"""
    trackers: tuple[str, ...] = ()
    """Accelerate trackers by name, e.g. tensorboard, wandb"""
    max_bad_steps: int = 5
    """non-finite losses that are skipped before the run stops"""
    progress: bool = True

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "keep", "log_every"):
            expect(getattr(self, name) >= 1, f"trainer.{name}", "1 or more", getattr(self, name))
        for name in (
            "max_steps", "cache", "clip_norm", "checkpoint_every", "evaluate_every", "patience", "max_bad_steps"
        ):  # fmt: skip
            expect(getattr(self, name) >= 0, f"trainer.{name}", "0 or more", getattr(self, name))
        expect(
            self.cache == 0 or self.accumulate == 1,
            "trainer.accumulate", "1 with trainer.cache, which bounds memory already and keeps every candidate",
            self.accumulate,
        )  # fmt: skip
        whole = self.parallel == "ddp"
        expect(whole or not self.compile, "trainer.compile", "off with trainer.parallel 'fsdp'", self.compile)
        expect(
            whole or self.precision != "fp16",
            "trainer.precision", "'no' or 'bf16' with trainer.parallel 'fsdp'", self.precision,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Scores of frozen features."""

    num_neighbours: int = 5
    """of the kNN classifier"""
    per_class: int = 10
    """labels a class of the few-label probe"""
    few_label_draws: int = 5
    """random draws of those labels"""
    clusterings: int = 0
    """k-means runs whose agreement with the labels is scored (nmi, ari); 0: none"""
    confidence: float = 0.95
    """of the intervals"""

    def __post_init__(self) -> None:
        expect(self.num_neighbours >= 1, "evaluate.num_neighbours", "1 or more", self.num_neighbours)
        expect(self.per_class >= 1, "evaluate.per_class", "1 or more", self.per_class)
        expect(self.clusterings >= 0, "evaluate.clusterings", "0 or more", self.clusterings)
        expect(0 < self.confidence < 1, "evaluate.confidence", "a number in (0, 1)", self.confidence)
