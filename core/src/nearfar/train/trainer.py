"""The training loop: an epoch's batches, views on the device, updates, evaluation, checkpoints, exact resume."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from nearfar import distributed
from nearfar.batch import Batch, to
from nearfar.batch import size as batch_size
from nearfar.checks import expect
from nearfar.config import EvaluateConfig, OptimiserConfig, TrainerConfig
from nearfar.data import Data, Loader, Source, Wrapped, labelled, labels_of, targets_of, without_test
from nearfar.evaluate import Score, collapse, evaluate_embedding, geometry, knn
from nearfar.method import Method, Progress
from nearfar.recipe import BaseRecipe, save
from nearfar.rng import Rng
from nearfar.samplers import Sampler, Shuffle
from nearfar.train import checkpoint, finish, identity, randomness, state
from nearfar.train.cache import expect_cacheable
from nearfar.train.device import accelerator as make_accelerator
from nearfar.train.engine import Engine
from nearfar.train.features import extract, own_scores
from nearfar.train.progress import Bar, figures
from nearfar.train.run import Run, environment, new_folder
from nearfar.train.stopping import Interrupted, StopRequest


class Trainer:
    """Trains a method and leaves a run folder behind.

    Args:
        method: the system, e.g. from `MethodConfig.build`.
        data: a Data (training and test source), a Source, or any map-style dataset of images.
        config: how long, how big, how often.
        optimiser: optimiser and schedule.
        evaluate: options of the scores.
        recipe: written beside the checkpoints and compared on resume.
        sampler: global batches of an epoch; default: a shuffle.
        workers: loader processes; results do not depend on them.
        max_bad_share: share of unreadable samples that may be replaced.
        callbacks: called as `callback(trainer, row)` with every row of metrics.

    `fit` trains on one process or, started by torchrun or `accelerate launch`, on all of them; the batch size is that
    of all processes together, so that the result is the same.
    """

    def __init__(
        self,
        method: Method,
        data: Data | Source | Any,
        config: TrainerConfig | None = None,
        *,
        optimiser: OptimiserConfig | None = None,
        evaluate: EvaluateConfig | None = None,
        recipe: BaseRecipe | None = None,
        sampler: Sampler | None = None,
        workers: int = 0,
        max_bad_share: float = 0.01,
        callbacks: Sequence[Callable[[Trainer, dict[str, Any]], None]] = (),
    ) -> None:
        self.method = method
        self.data = as_data(data)
        self.config = config or TrainerConfig()
        self.optimiser = optimiser or OptimiserConfig()
        self.evaluate_config = evaluate or EvaluateConfig()
        self.recipe = recipe
        self.workers, self.max_bad_share, self.callbacks = workers, max_bad_share, callbacks
        expect(len(self.data.train) > 1, "data", "at least 2 training samples", len(self.data.train))
        self.sampler = sampler or Shuffle(
            len(self.data.train), self.config.batch_size, seed=self.config.seed, drop_last=self.config.drop_last
        )
        whole = isinstance(self.sampler, Shuffle) and not self.config.drop_last
        rest = len(self.data.train) % self.config.batch_size if whole else 0
        self._smallest = rest or self.config.batch_size
        steps = self.config.epochs * self.sampler.num_batches(0)
        self.steps = min(steps, self.config.max_steps) if self.config.max_steps else steps
        self.step = self.epoch = self.position = 0
        self.bad_steps = 0
        self.best: dict[str, Any] = {}
        self.stale = 0
        self.window: dict[str, list[float]] = {}
        self.warned: set[str] = set()
        self.saved_at = self.evaluated_at = -1
        self._faults_told = 0

    # -- the run -------------------------------------------------------------------------------------------------------

    def fit(self, resume: bool | str = False) -> Run:
        """Trains to the end and returns the run.

        Args:
            resume: True goes on in `config.output` from its newest whole checkpoint (and starts anew when there is
                none); a path names the run folder.

        Raises:
            Interrupted: SIGTERM or Ctrl-C arrived; everything was saved first.
            FloatingPointError: the loss stayed non-finite for `max_bad_steps` steps.
            ValueError: the folder holds another run, or a checkpoint of another recipe.
        """
        self._setup(resume)
        try:
            with StopRequest() as stop, Bar(self.steps, self.step, show=self._shows) as self.bar:
                self._before()
                self._train(stop)
                self._after()
        except Interrupted:
            raise
        except BaseException as error:
            if distributed.is_main():
                status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
                # On a full disk this fails too, and must not hide the error that says so.
                with contextlib.suppress(OSError):
                    self.run.set_status(status, step=self.step, steps=self.steps, epoch=self.epoch, message=str(error))
            raise
        finally:
            for tracker in self.accelerator.trackers:
                tracker.finish()
        return self.run

    @property
    def _shows(self) -> bool:
        return self.config.progress and distributed.is_main()

    def _setup(self, resume: bool | str) -> None:
        config = self.config
        path = resume if isinstance(resume, str) else config.output
        self.accelerator = make_accelerator(config)
        expect(
            self.method.shard == "batch" or distributed.world() == 1,
            "processes", f"one, since {type(self.method).__name__} does not split its batch", distributed.world(),
        )  # fmt: skip
        expect(
            self._smallest >= distributed.world() * config.accumulate,
            "trainer.batch_size",
            f"at least one sample a process and part ({distributed.world()} x {config.accumulate}) in every batch "
            "(see also trainer.drop_last)", self._smallest,
        )  # fmt: skip
        expect_cacheable(self.method, config)
        name = self.recipe.name if self.recipe else type(self.method).__name__.lower()
        self.run = Run(distributed.broadcast(str(path or new_folder(name))))
        found = checkpoint.newest(self.run.path / "checkpoints")
        expect(
            bool(resume) or found is None,
            "trainer.output", "an empty folder, or resume", f"{self.run.path}, which holds checkpoints of a run",
        )  # fmt: skip
        expect(
            not isinstance(resume, str) or self.run.path.is_dir(),
            "resume", "the folder of a run", str(resume), FileNotFoundError,
        )  # fmt: skip
        randomness.seed(config.seed)
        if config.sync_batch_norm and distributed.world() > 1:
            distributed.convert_sync_batch_norm(self.method)
        self.method.to(self.accelerator.device)
        if config.compile:
            for child in self.method.children():
                child.compile()
        self.identity = identity.describe(self)  # sharding gives the method's class another name
        self.engine = Engine(
            self.accelerator, self.method, config, self.optimiser,
            steps=self.steps, steps_per_epoch=self.sampler.num_batches(0), features=self.features,
        )  # fmt: skip
        # Later draws (dropout) differ between processes; the initial weights above do not.
        randomness.seed(config.seed + distributed.rank())
        self.loader = Loader(
            self.data.train, self.sampler, workers=self.workers, seed=config.seed, max_bad_share=self.max_bad_share,
            rank=distributed.rank(), world=distributed.world(),
        )  # fmt: skip
        if found is not None:
            state.restore(self, found)
        elif distributed.is_main():  # killed before its first checkpoint: what it logged is written again
            self.run.truncate("metrics.jsonl", 0)
            self.run.truncate("faults.jsonl", 0)
        if distributed.is_main():
            self.run.path.mkdir(parents=True, exist_ok=True)
            if self.recipe:
                save(self.recipe, self.run.path / "recipe.json")
            else:
                self.run.write("recipe.json", {"schema": 0, "recipe": name, "values": self.identity})
            self.run.write("environment.json", environment())
            self.run.set_status("running", step=self.step, steps=self.steps, epoch=self.epoch)
        if config.trackers:
            self.accelerator.init_trackers(name.replace("/", "-"), init_kwargs={})

    def _before(self) -> None:
        if self.step == 0 and self.config.evaluate_before:
            self._save_scores("before", self.evaluate(full=True))

    def _train(self, stop: StopRequest) -> None:
        per_epoch = self.sampler.num_batches(0)
        while self.step < self.steps:
            self.engine.progress = self._progress()
            if self.position == 0:
                self.method.on_epoch(self.engine)
            self.engine.train_mode()
            began = time.perf_counter()
            for batch in self.loader.epoch(self.epoch, start=self.position):
                ready = time.perf_counter()
                self._one_step(batch)
                self._log(batch, wait=ready - began, busy=time.perf_counter() - ready)
                if self.position == self.sampler.num_batches(self.epoch):
                    break
                if self._due():
                    state.save(self)
                if signum := stop.agreed():
                    self._leave(signum)
                if self.step >= self.steps:
                    break
                began = time.perf_counter()
            if self.position >= self.sampler.num_batches(self.epoch):
                self.epoch, self.position = self.epoch + 1, 0
            if self.step < self.steps and self._end_of_epoch(per_epoch):
                break
            if self.step < self.steps and (signum := stop.agreed()):
                self._leave(signum)

    def _one_step(self, batch: Batch) -> None:
        batch = to(batch, self.accelerator.device, non_blocking=True)
        self.engine.progress = self._progress()
        with torch.no_grad():
            batch = self.method.views(batch, Rng(self.config.seed, self.epoch))
        terms = self.method.update(batch, self.engine)
        self.step += 1
        self.position += 1
        if self.engine.applied:
            self.bad_steps = 0
            shown = {**self.engine.reduced, **{k: float(v) for k, v in terms.logs.items()}}
            shown["gradient_norm"] = self.engine.gradient_norm
            for key, value in shown.items():
                self.window.setdefault(key, []).append(value)
        elif self.config.precision != "fp16" or self.engine.reduced["loss"] != self.engine.reduced["loss"]:
            self._bad_step(batch)

    def _bad_step(self, batch: Batch) -> None:
        self.bad_steps += 1
        message = finish.describe_bad_step(self.step, self.engine, batch)
        if distributed.is_main():
            place = finish.keep_batch(self.run.path / "faults", self.step, batch)
            self.run.append("faults.jsonl", {"step": self.step, "fault": message, "batch": str(place)})
            self.bar.say(f"[yellow]{message}; the step was not applied[/]")
        if self.bad_steps >= max(self.config.max_bad_steps, 1):
            raise FloatingPointError(
                f"{message}; {self.bad_steps} steps in a row could not be applied. The batches lie in "
                f"{self.run.path / 'faults'}; lower optimiser.lr, raise the temperature, or look at those samples"
            )

    def _progress(self) -> Progress:
        return Progress(self.step, self.epoch, self.step / max(self.steps, 1), self.steps)

    # -- what is written -----------------------------------------------------------------------------------------------

    def _log(self, batch: Batch, *, wait: float, busy: float) -> None:
        text = ""
        if self.step % self.config.log_every == 0 or self.step == self.steps:
            row: dict[str, Any] = {"step": self.step, "epoch": self.epoch, "lr": self.engine.rate}
            row |= {key: sum(values) / len(values) for key, values in self.window.items()}
            self.window = {}
            shape = self._geometry()
            row |= {name: value for name, value in shape.items() if name not in ("rows", "dimensions")}
            if distributed.is_main():
                self.run.append("metrics.jsonl", row)
                rate = batch_size(batch) * distributed.world() / max(wait + busy, 1e-9)
                self.run.append("timings.jsonl", {"step": self.step, "wait": wait, "busy": busy, "samples_per_s": rate})
                self._warn(collapse(shape) if shape else None)
            for fault in self.loader.faults[self._faults_told :]:
                self.run.append("faults.jsonl", {"step": self.step, **asdict(fault)})
                self._faults_told += 1
            if self.config.trackers:
                self.accelerator.log({k: v for k, v in row.items() if k != "step"}, step=self.step)
            for callback in self.callbacks:
                callback(self, row)
            text = figures(row)
        self.bar.advance(text)

    def _geometry(self) -> dict[str, float]:
        """Live geometry of the last batch's embedding: of this process's part."""
        z = self.engine.embedding
        if z is None or z.shape[0] < 2 or not self.engine.applied:
            return {}
        z = z.float()
        if z.ndim == 2:
            return geometry(z)
        return geometry(z[:, 0], z[:, 1] if z.shape[1] > 1 else None)

    def _warn(self, message: str | None) -> None:
        if message and message not in self.warned:
            self.warned.add(message)
            self.bar.say(f"[yellow]warning: {message}[/]")
            self.run.append("faults.jsonl", {"step": self.step, "fault": message})

    def _end_of_epoch(self, per_epoch: int) -> bool:
        """Evaluation and checkpoint as the config asks; True when the run should stop early."""
        config, stop = self.config, False
        if config.evaluate_every and self.epoch % config.evaluate_every == 0:
            stop = self._judge(self.evaluate())
        if config.checkpoint_every == 0 or self._due() or self.evaluated_at == self.step:
            state.save(self)
        if stop:
            self.bar.say(f"no better {config.monitor} for {config.patience} evaluations: stopping early")
        return stop

    def _judge(self, scores: dict[str, Score]) -> bool:
        """Writes a row of scores, remembers the best, and says whether patience has run out."""
        config = self.config
        self.evaluated_at = self.step
        values = {name: score.value for name, score in scores.items()}
        if distributed.is_main():
            self.run.append("metrics.jsonl", {"step": self.step, "epoch": self.epoch, "scores": values})
        if not values or (config.monitor == "knn" and config.monitor not in values):
            return False  # without labels there is nothing to choose by, and the last checkpoint is the best
        expect(config.monitor in values, "trainer.monitor", f"one of {', '.join(values)}", config.monitor)
        score = values[config.monitor]
        if not self.best or score > self.best["score"]:
            self.best, self.stale = {"step": self.step, "score": score, "monitor": config.monitor}, 0
        else:
            self.stale += 1
        return bool(config.patience) and self.stale >= config.patience

    def _after(self) -> None:
        scores = self.evaluate(full=True)
        if self.evaluated_at != self.step:  # a finished run that is resumed was judged before
            self._judge({n: s for n, s in scores.items() if n in ("knn", self.config.monitor)})
        state.save(self)
        self._save_scores("after", scores)
        if distributed.is_main():
            self.run.set_status("finished", step=self.step, steps=self.steps, epoch=self.epoch)
        if self.config.report:
            judged = self.data.test if len(self.data.test) > 2 else self.data.train
            features, index = self.features(source=judged)  # by all processes
            if distributed.is_main():
                finish.report(self, features, index, judged)
        distributed.barrier()

    def _save_scores(self, when: str, scores: dict[str, Score]) -> None:
        if distributed.is_main():
            self.run.write("scores.json", self.run.scores | {when: {n: asdict(s) for n, s in scores.items()}})

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def features(
        self, output: str = "default", *, train: bool = True, source: Source | None = None
    ) -> tuple[Tensor, Tensor]:
        """Features [N, D] and indices [N] of a whole source, on the CPU, in the source's order."""
        source = source or (self.data.train if train else self.data.test)
        return extract(self.method, source, output=output, batch_size=self.config.batch_size, workers=self.workers,
                       max_bad_share=self.max_bad_share, device=self.accelerator.device,
                       call=self.engine.embed)  # fmt: skip

    def evaluate(self, *, full: bool = False) -> dict[str, Score]:
        """The method's own scores on the validation split, or of its features, in training only kNN unless `full`."""
        train, test = labelled(self.data.train), self.data.test
        if len(test) == 0:
            return {}
        if own := own_scores(self.method, lambda: self.engine.scores(test)):
            return own
        if not full and self.config.monitor == "knn" and (train.labels is None or test.labels is None):
            return {}
        was_training, drawn = self.method.training, randomness.capture()
        train_x, train_index = self.features(source=train)
        test_x, test_index = self.features(source=test)
        train_y, test_y = labels_of(train, train_index), labels_of(test, test_index)
        config = self.evaluate_config
        if full or self.config.monitor != "knn" or train_y is None or test_y is None:
            targets = targets_of(train, train_index, test, test_index)
            scores = evaluate_embedding(train_x, train_y, test_x, test_y, config, targets=targets)
        else:
            k, level = config.num_neighbours, config.confidence
            scores = {"knn": knn(train_x, train_y, test_x, test_y, k=k, confidence=level)}
        self.method.train(was_training)
        randomness.restore(drawn)
        return scores

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def _due(self) -> bool:
        every = self.config.checkpoint_every
        return every > 0 and self.step % every == 0

    def _leave(self, signum: int) -> None:
        state.save(self)
        message = (
            f"stopped at step {self.step} of {self.steps}; everything is saved in {self.run.path}. "
            "Go on with --resume (or Trainer.fit(resume=...))"
        )
        if distributed.is_main():
            self.run.set_status("interrupted", step=self.step, steps=self.steps, epoch=self.epoch, message=message)
            self.bar.say(message)
        raise Interrupted(message, signum)


def as_data(data: Any) -> Data:
    """A Data of whatever a user brings: Data, a Source, or a map-style dataset of images."""
    if isinstance(data, Data):
        return data
    return without_test(data if isinstance(data, Source) else Wrapped(data))
