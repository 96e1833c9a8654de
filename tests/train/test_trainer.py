from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import jobs
from nearfar.batch import Batch
from nearfar.config import OptimiserConfig, TrainerConfig
from nearfar.method import Method, Progress, Terms
from nearfar.train import Run, Trainer
from toys import Toy, Vectors


def fit(method: Method, output: Path, source: Any = None, **options: Any) -> Run:
    options = {"epochs": 2, "batch_size": 8, "log_every": 1, "progress": False, "evaluate_every": 0} | options
    config = TrainerConfig(output=str(output), device="cpu", **options)
    return Trainer(method, source or Vectors(), config, optimiser=OptimiserConfig(lr=0.01)).fit()


def test_loss_falls_and_clusters_separate(tmp_path: Path) -> None:
    run = jobs.train_toy(str(tmp_path / "run"), changes={"epochs": 12})
    losses = [r["loss"] for r in run.metrics if "loss" in r]
    assert sum(losses[-5:]) < sum(losses[:5]) - 0.5
    assert run.scores["after"]["knn"]["value"] >= 0.9


def test_a_plain_loop_gives_the_same_weights(tmp_path: Path) -> None:
    """The trainer against twenty lines of torch with the same views, order and rates."""
    from nearfar.batch import collate
    from nearfar.rng import Rng
    from nearfar.samplers import Shuffle

    torch.manual_seed(0)
    method, source = Toy(), Vectors()
    torch.manual_seed(0)
    plain = Toy()
    fit(method, tmp_path / "run", source)
    optimiser = torch.optim.AdamW(plain.parameters(), lr=0.01, weight_decay=0.0)
    decay, rest = [p for p in plain.parameters() if p.ndim > 1], [p for p in plain.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW([{"params": decay, "weight_decay": 1e-4}, {"params": rest, "weight_decay": 0.0}])
    step = 0
    sampler = Shuffle(40, 8, seed=0, drop_last=True)
    for epoch in range(2):
        for rows in sampler.batches(epoch):
            batch = plain.views(collate([source[int(i)] for i in rows]), Rng(0, epoch))
            for group in optimiser.param_groups:
                group["lr"] = 0.01 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / 10)).item())
            loss = plain.loss(plain.encode(batch), batch, {}, Progress()).total
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            step += 1
    for ours, theirs in zip(method.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_accumulated_parts_give_the_mean_of_their_gradients(tmp_path: Path) -> None:
    class Linear(Toy):
        """A loss that is a mean over samples: parts of equal size then equal the whole."""

        def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Any, progress: Progress) -> Terms:
            return Terms().add("square", z["embedding"].pow(2).mean(), count=len(batch["index"]))

    torch.manual_seed(0)
    whole = Linear()
    parts = Linear()
    parts.load_state_dict(whole.state_dict())
    fit(whole, tmp_path / "a")
    fit(parts, tmp_path / "b", accumulate=4)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_clipping_bounds_the_step(tmp_path: Path, accumulate: int) -> None:
    norms = []

    class Watch(Toy):
        def after_update(self, z: Any, targets: Any, progress: Progress) -> None:
            norms.append(1.0)

    run = fit(Watch(), tmp_path / "run", clip_norm=1e-3, accumulate=accumulate)
    assert len(norms) == 10
    assert all(r["gradient_norm"] > 1e-3 for r in run.metrics if "loss" in r)  # the norm before clipping is shown


def test_early_stop_and_best(tmp_path: Path) -> None:
    run = jobs.train_toy(str(tmp_path / "run"), changes={"epochs": 40, "patience": 2})
    assert run.status["step"] < 200
    assert run.best["step"] in {int(p.name.split("-")[1]) for p in run.checkpoints}
    assert run.checkpoint("best").is_dir()
    scores = {r["step"]: r["scores"]["knn"] for r in run.metrics if "scores" in r}
    assert run.best["score"] == max(scores.values())


class Faulty(Toy):
    """Loses its head at chosen steps."""

    def __init__(self, bad: set[int], kind: str) -> None:
        super().__init__()
        self.bad, self.kind, self.updates = bad, kind, 0

    def views(self, batch: Batch, rng: Any) -> Batch:
        batch = super().views(batch, rng)
        if self.kind == "batch" and self.updates in self.bad:
            batch["views"][0].data[2, 1] = float("nan")
        self.updates += 1
        return batch

    def loss(self, z: Any, batch: Batch, targets: Any, progress: Progress) -> Terms:
        terms = super().loss(z, batch, targets, progress)
        if self.kind == "loss" and progress.step in self.bad:
            terms.values["contrast"] = terms.values["contrast"] * float("inf")
        return terms


@pytest.mark.parametrize("kind", ["batch", "loss"])
def test_a_non_finite_step_is_not_applied_and_written_down(tmp_path: Path, kind: str) -> None:
    seen = []

    class Spy(Faulty):
        def after_update(self, z: Any, targets: Any, progress: Progress) -> None:
            seen.append(progress.step)

    run = fit(Spy({3}, kind), tmp_path / "run")
    assert seen == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    (fault,) = run.faults
    assert fault["step"] == 4
    assert ("1 samples" in fault["fault"]) == (kind == "batch")
    assert Path(fault["batch"]).is_file()
    state = run.checkpoint("last") / "model.safetensors"
    from safetensors.torch import load_file

    assert all(torch.isfinite(t).all() for t in load_file(state).values())


def test_too_many_non_finite_steps_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"3 steps in a row could not be applied.*optimiser.lr"):
        fit(Faulty(set(range(2, 10)), "loss"), tmp_path / "run", max_bad_steps=3)
    assert Run(tmp_path / "run").status["status"] == "failed"


def test_collapse_is_said_in_plain_words(tmp_path: Path) -> None:
    class Collapsed(Toy):
        def encode(self, batch: Batch) -> dict[str, Tensor]:
            z = super().encode(batch)["embedding"]
            return {"embedding": 1e-6 * z + torch.ones(8)}

    run = fit(Collapsed(), tmp_path / "run")
    assert any("collaps" in fault["fault"] for fault in run.faults)


def test_bfloat16_trains(tmp_path: Path) -> None:
    run = fit(Toy(), tmp_path / "run", precision="bf16", epochs=6)
    losses = [r["loss"] for r in run.metrics if "loss" in r]
    assert losses[-1] < losses[0]


def test_tensorboard_through_accelerate(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    fit(Toy(), tmp_path / "run", trackers=("tensorboard",))
    assert list((tmp_path / "run").rglob("events.out.tfevents*"))


def test_compile(tmp_path: Path) -> None:
    method = Toy()
    compiled = []
    method.encoder.compile = lambda: compiled.append(True)  # what torch then does is not ours to test
    fit(method, tmp_path / "run", compile=True, epochs=1)
    assert compiled == [True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 64}, "batch_size: expected at most the 40 samples there are, or drop_last=False, received 64"),
        ({"precision": "fp16"}, "trainer.precision: expected 'no' or 'bf16' on a CPU"),
        ({"accumulate": 9}, "trainer.batch_size: expected at least one sample a process and part"),
    ],
)
def test_what_cannot_run_is_said_before_it_starts(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(Toy(), tmp_path / "run", **options)


def test_one_sample_is_no_data(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="data: expected at least 2 training samples, received 1"):
        fit(Toy(), tmp_path / "run", Vectors(1))


def test_the_untrained_features_are_scored_unless_told_not_to(tmp_path: Path) -> None:
    scores = [
        jobs.train_toy(str(tmp_path / str(i)), changes={"epochs": 1, "evaluate_before": bool(i)}).scores
        for i in range(2)
    ]
    assert [sorted(found) for found in scores] == [["after"], ["after", "before"]]
    assert scores[0]["after"] == scores[1]["after"]


def test_a_run_without_a_report(tmp_path: Path) -> None:
    runs = [
        jobs.train_toy(str(tmp_path / str(i)), changes={"epochs": 1, "report": bool(i)}) for i in range(2)
    ]  # fmt: skip
    assert [run.report.exists() for run in runs] == [False, True]
    assert [run.status["status"] for run in runs] == ["finished"] * 2
    assert runs[0].scores == runs[1].scores


def test_monitoring_an_unknown_score(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"trainer.monitor: expected one of .*knn.*received accuracy"):
        jobs.train_toy(str(tmp_path / "run"), changes={"monitor": "accuracy"})
