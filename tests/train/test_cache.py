"""The trainer with its gradient cache against the trainer without: the same steps, whatever the chunks."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

import jobs
from nearfar import gradcache
from nearfar.batch import Batch, View, collate, split
from nearfar.config import ContrastConfig, HeadConfig, OptimiserConfig, TrainerConfig
from nearfar.method import Method, Progress, Terms
from nearfar.methods import Contrast
from nearfar.objectives import NTXent, clip
from nearfar.rng import Rng
from nearfar.train import Run, Trainer
from nearfar.train.cache import chunk_sizes
from nearfar.train.engine import Engine
from toys import Toy, Vectors


def fit(method: Method, output: Path, **options: Any) -> Run:
    options = {"epochs": 2, "batch_size": 8, "log_every": 1, "progress": False, "evaluate_every": 0} | options
    config = TrainerConfig(output=str(output), device="cpu", **options)
    return Trainer(method, Vectors(), config, optimiser=OptimiserConfig(lr=0.01)).fit()


def losses(run: Run) -> list[float]:
    return [row["loss"] for row in run.metrics if "loss" in row]


def assert_same(one: Method, other: Method, rtol: float = 1e-9, atol: float = 1e-11) -> None:
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


class Wide(Toy):
    """In double precision, so that nothing but the method is compared."""

    def __init__(self, **options: Any) -> None:
        torch.manual_seed(3)
        super().__init__(**options)
        self.double()

    def views(self, batch: Batch, rng: Rng) -> Batch:
        batch = super().views(batch, rng)
        return {**batch, "views": [View(view.data.double()) for view in batch["views"]]}


class Tempered(Wide):
    """A temperature and a head that live in the loss alone."""

    def __init__(self) -> None:
        super().__init__()
        self.objective = NTXent(temperature=0.3, learnable_temperature=True)
        self.head = nn.Linear(8, 8)
        self.double()

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Any, progress: Progress) -> Terms:
        loss, stats = self.objective(self.head(z["embedding"]).transpose(0, 1), with_stats=True)
        terms = Terms().add("contrast", loss, count=stats.num_anchors)
        return terms.add("size", z["embedding"].square().mean(), weight=0.1, count=len(z["embedding"]))


class Paired(Wide):
    """Two modalities, encoders and widths."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Sequential(nn.Linear(3, 12), nn.Tanh(), nn.Linear(12, 8)).double()

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        one, two = (view.data for view in batch["views"])
        return {"embedding": self.encoder(one), "other": self.other(two[:, :3])}

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Any, progress: Progress) -> Terms:
        return Terms().add("clip", clip(z["embedding"], z["other"], scale=3.0), count=len(z["other"]))

    def features(self, batch: Batch, output: str = "default") -> Tensor:
        return self.encoder(batch["x"].double())


class Noise:
    def __call__(self, data: Tensor, index: Tensor, rng: Rng) -> list[View]:
        return [View((data + 0.3 * rng.at(view=v).normal(index, "noise", 8)).double()) for v in range(2)]

    def plain(self, data: Tensor) -> Tensor:
        return data.double()


class Encoder(nn.Sequential):
    feature_dim = 10

    def __init__(self) -> None:
        super().__init__(nn.Linear(8, 12), nn.LayerNorm(12), nn.Tanh(), nn.Linear(12, 10))


def moco(**options: Any) -> Contrast:
    torch.manual_seed(3)
    settings = {"loss": "info_nce", "key_encoder": "ema", "momentum": 0.9, "queue": 20, "symmetric": False} | options
    config = ContrastConfig(head=HeadConfig(hidden=12, dim=5, norm="layer"), temperature=0.2, **settings)
    return Contrast(config, Encoder(), Noise(), field="x").double()


def centred() -> Wide:
    return Wide(centre=True)


def plain_features(self: Toy, batch: Batch, output: str = "default") -> Tensor:
    return self.encoder(batch["x"].double())


Wide.features = plain_features  # type: ignore[method-assign]

METHODS = {
    "centred": centred,
    "tempered": Tempered,
    "paired": Paired,
    "moco": moco,
    "byol-like": lambda: moco(symmetric=True, queue=0, predictor=HeadConfig(hidden=6, dim=5, norm="none")),
    "simclr": lambda: moco(key_encoder="shared", loss="nt_xent", queue=0, symmetric=True, learnable_temperature=True),
}


@pytest.mark.parametrize(
    "name", [n if n in ("simclr", "moco", "paired") else pytest.param(n, marks=pytest.mark.slow) for n in METHODS]
)
def test_ten_steps_in_chunks_are_ten_plain_steps(tmp_path: Path, name: str) -> None:
    plain = METHODS[name]()
    expected = fit(plain, tmp_path / "plain", clip_norm=0.5)
    for chunk in (1, 3, 4):
        cached = METHODS[name]()
        run = fit(cached, tmp_path / str(chunk), clip_norm=0.5, cache=chunk)
        assert_same(cached, plain)
        for row, other in zip(run.metrics, expected.metrics, strict=True):
            assert "scores" in row or row == pytest.approx(other, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("chunk", [8, 50])
def test_a_chunk_that_holds_the_batch_is_the_plain_step_to_the_bit(tmp_path: Path, chunk: int) -> None:
    """With dropout: the probe of the first batch leaves the random state alone."""
    one, other = Wide(dropout=0.3), Wide(dropout=0.3)
    fit(one, tmp_path / "a")
    fit(other, tmp_path / "b", cache=chunk)
    assert_same(one, other, rtol=0, atol=0)


def test_dropout_draws_as_one_pass_over_the_chunks(tmp_path: Path) -> None:
    class Chunked(Wide):
        def encode(self, batch: Batch) -> dict[str, Tensor]:
            parts = [super(Chunked, self).encode(part)["embedding"] for part in split(batch, [3, 3, 2])]
            return {"embedding": torch.cat(parts)}

    one, other = Chunked(dropout=0.3), Wide(dropout=0.3)
    fit(one, tmp_path / "a")
    fit(other, tmp_path / "b", cache=3)
    assert_same(one, other)


def test_half_precision_follows_the_plain_step(tmp_path: Path) -> None:
    torch.manual_seed(3)
    one, other = Toy(), Toy()
    other.load_state_dict(one.state_dict())
    expected = losses(fit(one, tmp_path / "a", precision="bf16"))
    assert losses(fit(other, tmp_path / "b", precision="bf16", cache=3)) == pytest.approx(expected, rel=2e-2)


def step(cache: int) -> Wide:
    """One step of the engine with a scaler, as fp16 has it, and plain SGD, which shows a wrong scale."""
    method = Wide()
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=512.0)
    engine = Engine(
        accelerator, method, TrainerConfig(cache=cache), OptimiserConfig(name="sgd", lr=0.1), steps=10,
        steps_per_epoch=10, features=lambda: None,
    )  # fmt: skip
    engine.train_mode()
    source = Vectors(8)
    engine.minimize(method, method.views(collate([source[i] for i in range(8)]), Rng(0)))
    return method


def test_a_scaler_scales_once() -> None:
    assert_same(step(3), step(0))


@pytest.mark.slow
def test_a_killed_run_ends_as_one_that_was_not(tmp_path: Path) -> None:
    changes = {"cache": 3}
    assert jobs.run(jobs.train_toy, str(tmp_path / "whole"), False, 0, 0, 0, 0, changes) == 0
    killed = tmp_path / "killed"
    assert jobs.run(jobs.train_toy, str(killed), False, 7, 0, 0, 2, changes) == -signal.SIGKILL
    assert jobs.run(jobs.train_toy, str(killed), True, 0, 0, 0, 2, changes) == 0
    assert jobs.result(killed) == jobs.result(tmp_path / "whole")


def test_a_step_that_is_not_finite_is_left_out(tmp_path: Path) -> None:
    class Faulty(Wide):
        def loss(self, z: Any, batch: Batch, targets: Any, progress: Progress) -> Terms:
            terms = super().loss(z, batch, targets, progress)
            if progress.step == 3:
                terms.values["contrast"] = terms.values["contrast"] * float("inf")
            return terms

    one, other = Faulty(), Faulty()
    fit(one, tmp_path / "a")
    run = fit(other, tmp_path / "b", cache=3)
    assert [fault["step"] for fault in run.faults] == [4]
    assert_same(one, other)


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9])
@pytest.mark.parametrize("chunk", [1, 3, 8, 20])
def test_chunks_are_nearly_equal_and_no_larger_than_asked(rows: int, chunk: int) -> None:
    sizes = chunk_sizes(rows, chunk)
    assert sum(sizes) == rows
    assert max(sizes) <= chunk
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == -(-rows // chunk)
    assert chunk_sizes(rows, 0) == [rows]


# -- batch normalisation -----------------------------------------------------------------------------------------------


def test_chunked_statistics_move_once_a_chunk_and_the_teachers_do_not_matter(tmp_path: Path) -> None:
    method = Toy(norm="batch")
    fit(method, tmp_path / "run", cache=4, cache_batch_norm="chunk")
    assert int(method.encoder[1].num_batches_tracked) == 10 * 2
    assert method.encoder[1].track_running_stats


def test_frozen_statistics_are_exact(tmp_path: Path) -> None:
    class Held(Toy):
        """Its batch norm never trains."""

        def train(self, mode: bool = True) -> Toy:
            super().train(mode)
            self.encoder[1].eval()
            return self

    torch.manual_seed(3)
    one, other = Held(norm="batch"), Toy(norm="batch")
    other.load_state_dict(one.state_dict())
    fit(one, tmp_path / "a")
    fit(other, tmp_path / "b", cache=3, cache_batch_norm="freeze", evaluate_every=1)
    assert_same(one, other, rtol=1e-4, atol=1e-6)
    assert int(other.encoder[1].num_batches_tracked) == 0


class Liar(Toy):
    """Has batch statistics and says it has not."""

    def __init__(self) -> None:
        super().__init__(norm="batch")
        self.cache = "exact"


class InLoss(Wide):
    """Batch statistics in the loss see the whole batch, which is exact."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8).double()

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Any, progress: Progress) -> Terms:
        z_BVD = self.norm(z["embedding"].flatten(0, 1)).unflatten(0, (-1, 2))
        return super().loss({"embedding": z_BVD}, batch, targets, progress)


def test_batch_statistics_of_the_loss_are_welcome(tmp_path: Path) -> None:
    one, other = InLoss(), InLoss()
    fit(one, tmp_path / "a")
    fit(other, tmp_path / "b", cache=3)
    # A bias in front of the norm has no gradient but rounding, which Adam blows up to its own step.
    assert_same(one, other, rtol=1e-6, atol=1e-8)


# -- what is refused ---------------------------------------------------------------------------------------------------


class Jigsaw(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.cache = "no: its puzzles take patches of other samples"


class Mixes(Toy):
    """The mean of the batch leaks into one of its fields; dropout must not hide it."""

    def __init__(self) -> None:
        super().__init__(dropout=0.2)

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        z = super().encode(batch)
        return {**z, "centred": z["embedding"][:, 0] - 0.1 * z["embedding"][:, 0].mean(0)}


class Writes(Toy):
    def __init__(self) -> None:
        super().__init__(centre=True)

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        self.centre.add_(1)
        return super().encode(batch)


class Pools(Toy):
    def encode(self, batch: Batch) -> dict[str, Tensor]:
        z = super().encode(batch)
        return {**z, "prototypes": z["embedding"].mean(0)}


class Own(Toy):
    def update(self, batch: Batch, engine: Any) -> Terms:
        _, terms = engine.call("terms", batch, {}, engine.progress)
        engine.backward(terms)
        engine.step()
        return terms


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Jigsaw, r"trainer.cache: expected 0 for Jigsaw \(its puzzles take patches of other samples\), received 3"),
        (lambda: Toy(norm="batch"), r"expected 0 for Toy \(batch normalisation\); choose .*'freeze'.*'chunk'.*'group'"),
        (Liar, r"received encoder.1 in Liar; choose trainer.cache_batch_norm 'freeze'"),
        (Mixes, r"Mixes.cache: expected 'no: reason', received 'exact', but a row of 'centred' .* two chunks of 3"),
        (Writes, "Writes.encode: expected to write nothing, received a change of centre"),
        (Pools, r"Pools.encode: expected a row a sample in 'prototypes', received shape \(2, 8\) for 6 samples"),
        (Own, "trainer.cache: expected 0, since Own makes its own updates, received 3"),
    ],
)
def test_what_cannot_be_cached_is_refused_by_name(tmp_path: Path, method: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(method(), tmp_path / "run", cache=3)


def test_a_choice_for_batch_norm_lifts_no_other_reason(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="puzzles"):
        fit(Jigsaw(), tmp_path / "run", cache=3, cache_batch_norm="chunk")
    with pytest.raises(ValueError, match="Mixes.cache"):
        fit(Mixes(), tmp_path / "run2", cache=3, cache_batch_norm="freeze")


def test_draws_in_eval_mode_cannot_be_checked_and_that_is_said(tmp_path: Path) -> None:
    class Masks(Toy):
        def encode(self, batch: Batch) -> dict[str, Tensor]:
            kept = [View(view.data * (torch.rand_like(view.data) > 0.3)) for view in batch["views"]]
            return super().encode({**batch, "views": kept})

    with pytest.warns(UserWarning, match="Masks.encode draws random numbers in eval mode too"):
        fit(Masks(), tmp_path / "run", cache=3)


def test_accumulation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"trainer.accumulate: expected 1 with trainer.cache, .* received 2"):
        TrainerConfig(cache=4, accumulate=2)
    with pytest.raises(ValueError, match="trainer.cache: expected 0 or more, received -1"):
        TrainerConfig(cache=-1)


def test_the_probe_leaves_modes_and_statistics_alone(tmp_path: Path) -> None:
    seen = []

    class Watch(Toy):
        def loss(self, z: Any, batch: Batch, targets: Any, progress: Progress) -> Terms:
            seen.append([module.training for module in self.modules()])
            return super().loss(z, batch, targets, progress)

    fit(Watch(dropout=0.1), tmp_path / "run", cache=3, epochs=1)
    assert len(seen) == 5
    assert all(all(modes) for modes in seen)


def test_the_engine_uses_what_users_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One implementation: each of ten steps in chunks goes through GradCache, and plain ones do not."""
    calls = []
    original = gradcache.GradCache.backward
    monkeypatch.setattr(gradcache.GradCache, "backward", lambda *a, **k: (calls.append(1), original(*a, **k))[1])
    fit(Toy(), tmp_path / "a", cache=3)
    assert len(calls) == 10
    fit(Toy(), tmp_path / "b")
    assert len(calls) == 10
