"""A method that learns from a labelled and an unlabelled source at once, and a run of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nearfar.batch import Batch, by_source
from nearfar.config import EvaluateConfig, OptimiserConfig, SamplerConfig, TrainerConfig
from nearfar.data import Concat, Data
from nearfar.method import Progress, Terms
from nearfar.samplers import make_sampler
from nearfar.train import Run, Trainer
from toys import Toy, Vectors

ZIPPED = {"kind": "zipped", "shares": ("labelled=4", "unlabelled=12"), "length": "unlabelled"}
ALTERNATING = {"kind": "single-group", "shares": ("labelled=1", "unlabelled=2"), "order": "interleave"}


class Bare(Vectors):
    """The vectors without their labels, and with a field that the others lack."""

    name, num_classes, class_names = "bare", 0, ()

    def __init__(self, num: int, seed: int) -> None:
        super().__init__(num, seed)
        self.labels = None

    def __getitem__(self, i: int) -> dict[str, Any]:
        return {"index": i, "x": self.x[i], "weight": 1.0 + i % 3}


class Semi(Toy):
    """Contrast over all samples, cross-entropy of those with a label, a penalty of those with a weight."""

    def __init__(self, *, dropout: float = 0.0) -> None:
        super().__init__(dropout=dropout, centre=True)
        self.classify = nn.Linear(8, 3)
        self.seen: list[dict[str, int]] = []

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        terms = super().loss(z, batch, targets, progress)
        parts = by_source(batch)
        self.seen.append({name: len(part["index"]) for name, part in parts.items()})
        labelled, weighted = (batch[f"present.{field}"] for field in ("label", "weight"))
        logits = self.classify(z["embedding"][labelled, 0])
        nll = nn.functional.cross_entropy(logits, parts["labelled"]["label"], reduction="sum")
        terms.add("classify", nll / max(len(logits), 1), count=len(logits))
        sizes = (z["embedding"][weighted, 0].square().mean(1) * parts["unlabelled"]["weight"]).sum()
        return terms.add("shrink", sizes / max(int(weighted.sum()), 1), weight=0.1, count=int(weighted.sum()))


def train(
    output: str, sampler: dict[str, Any], resume: bool = False, kill_at: int = 0, dropout: float = 0.0, **changes: Any
) -> tuple[Run, Semi]:
    """Two epochs over 10 labelled and 48 bare vectors in batches of 16, killed at a step if asked."""
    torch.set_num_threads(1)
    torch.manual_seed(5)
    source = Concat({"labelled": Vectors(10), "unlabelled": Bare(48, seed=2)})

    def callback(trainer: Trainer, row: dict[str, Any]) -> None:
        if kill_at and trainer.step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    options: dict[str, Any] = {
        "epochs": 2, "batch_size": 16, "log_every": 1, "evaluate_every": 1, "checkpoint_every": 1, "progress": False,
        "device": "cpu", "output": output,
    } | changes  # fmt: skip
    config = TrainerConfig(**options)
    method = Semi(dropout=dropout)
    trainer = Trainer(
        method, Data(train=source, test=Vectors(15, seed=3)), config, optimiser=OptimiserConfig(lr=0.01),
        evaluate=EvaluateConfig(num_neighbours=3, per_class=2, few_label_draws=2), callbacks=[callback],
        sampler=make_sampler(SamplerConfig(**sampler), source, config.batch_size, seed=config.seed),
    )  # fmt: skip
    return trainer.fit(resume), method


def job(output: str, sampler: dict[str, Any], resume: bool = False, kill_at: int = 0) -> None:
    """For a process of its own."""
    train(output, sampler, resume, kill_at, dropout=0.3, batch_size=16 if sampler["kind"] == "zipped" else 8)


def outcome(output: str, sampler: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Weights and losses, for comparing numbers of processes."""
    run, method = train(output, sampler, **changes)
    rows = [row for row in run.metrics if "loss" in row]
    return {
        "state": {name: value.clone() for name, value in method.state_dict().items()},
        "losses": [[row["loss"], row["classify"], row["shrink"]] for row in rows],
        "knn": run.scores["after"]["knn"]["value"],
        "seen": [[seen["labelled"], seen["unlabelled"]] for seen in method.seen],
    }
