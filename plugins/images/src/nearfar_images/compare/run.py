"""Runs a comparison, keeps every row as soon as it is there, and goes on with what is missing."""

from __future__ import annotations

import dataclasses
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nearfar.catalog import System
from nearfar.checks import expect
from nearfar.data import Data, Subset, holdout, without_test
from nearfar.recipe import Recipe
from nearfar.train.run import environment, write_json
from nearfar_images import encoders, pipeline
from nearfar_images.compare import plan
from nearfar_images.compare.options import CompareOptions, seconds
from nearfar_images.data import open_images

SCHEMA = 1
PILOT_STEPS = 12
TUNING_SEED = 1000  # no seed of the runs that count
Say = Callable[[str], None]


@dataclass
class Comparison:
    """A comparison in a folder."""

    options: CompareOptions
    data: Data
    cards: list[System]
    folder: Path
    result: dict[str, Any]
    say: Say

    def save(self) -> None:
        write_json(self.folder / "comparison.json", self.result)

    def row(self, **known: Any) -> dict[str, Any] | None:
        """The row of that phase, system, rate and seed, if it is there."""
        return next((r for r in self.result["rows"] if all(r[key] == value for key, value in known.items())), None)

    def add(self, **row: Any) -> dict[str, Any]:
        self.result["rows"].append(row)
        self.save()
        score = row["scores"].get(self.options.metric)
        shown = row["error"] if row["error"] else f"{self.options.metric} {score:.3f}" if score is not None else ""
        self.say(f"{row['phase']} {row['system']} rate {row['rate']:g} seed {row['seed']}: {shown}")
        return row


def compare(options: CompareOptions, say: Say = lambda text: None) -> dict[str, Any]:
    """Runs what is missing of a comparison and returns all of it, as `comparison.json` holds it.

    Raises:
        ValueError: bad options, a budget that holds no epoch, or a folder that holds another comparison.
    """
    data = open_images(options.data)
    expect(len(data.test) > 0, "data", "a test part: folders train and test, or data.validation > 0", "none")
    labels = data.train.labels is not None and data.test.labels is not None
    expect(labels, "data", "labels: one subfolder a class, since scores need them", f"none in {data.train.name}")
    chosen = plan.cards(options, labels=labels)
    folder = Path(options.out)
    comparison = Comparison(options, data, chosen, folder, _begun(options, data, folder), say)
    if "epochs" not in comparison.result:
        comparison.result["epochs"] = options.epochs or _epochs_of_budget(comparison)
        comparison.save()
    say(f"{comparison.result['epochs']} epochs a run")
    _references(comparison)
    tuning = holdout(data.train, 0.2, seed=0)
    for card in chosen:
        _tune(comparison, card, tuning)
    for seed in range(options.seeds):  # every system once, then again, so that a stopped comparison compares like
        for card in chosen:
            _final(comparison, card, seed)
    return comparison.result


def _begun(options: CompareOptions, data: Data, folder: Path) -> dict[str, Any]:
    """What the folder holds of this comparison, or the beginning of one."""
    asked = dataclasses.asdict(options)
    for name in ("out", "fresh", "json", "systems", "seeds"):  # more systems and seeds may join later
        asked.pop(name)
    asked = json.loads(json.dumps(asked | {"schema": SCHEMA, "fingerprint": data.train.fingerprint()}))
    path = folder / "comparison.json"
    if path.is_file() and not options.fresh:
        known = json.loads(path.read_text())
        differs = sorted(name for name in asked if known["asked"].get(name) != asked[name])
        expect(
            not differs, "out", "a folder without another comparison (or --fresh)",
            f"{folder}, which differs in {', '.join(differs)}",
        )  # fmt: skip
        return known
    if folder.exists() and options.fresh:
        shutil.rmtree(folder / "runs", ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    return {
        "asked": asked, "data": data.train.name, "num_train": len(data.train), "num_test": len(data.test), "rows": [],
        "environment": environment(),
    }  # fmt: skip


def _epochs_of_budget(comparison: Comparison) -> int:
    """Measures a step of every system and the scoring, and divides the budget."""
    options, data = comparison.options, comparison.data
    began = time.perf_counter()
    times, per_epoch = {}, 1
    for card in comparison.cards:
        recipe = plan.recipe(
            card, options, num_samples=len(data.train), epochs=PILOT_STEPS, rate=options.rates[0], seed=TUNING_SEED,
            output="",
        )  # fmt: skip
        per_epoch = max(1, len(data.train) // recipe.trainer.batch_size)
        times[card.slug] = _step_seconds(recipe, data)
        comparison.say(f"pilot {card.slug}: {1e3 * times[card.slug]:.0f} ms a step")
    start = time.perf_counter()
    _score(comparison, "untrained", 0)
    score_seconds = time.perf_counter() - start
    spent = time.perf_counter() - began
    comparison.result |= {"step_seconds": {slug: round(value, 5) for slug, value in times.items()}}
    return plan.epochs_within(
        seconds(options.budget) - spent, step_seconds=times, steps_per_epoch=per_epoch, seeds=options.seeds,
        rates=len(options.rates), score_seconds=score_seconds,
    )  # fmt: skip


def _step_seconds(recipe: Recipe, data: Data) -> float:
    """Median time of a step on a few batches, without the first steps, which are slower."""
    few = min(len(data.train), PILOT_STEPS * recipe.trainer.batch_size)
    part = without_test(Subset(data.train, np.arange(few)))
    with tempfile.TemporaryDirectory() as folder:
        trainer = dataclasses.replace(
            recipe.trainer, epochs=PILOT_STEPS, max_steps=PILOT_STEPS, log_every=1, output=f"{folder}/run"
        )
        run = pipeline.train(dataclasses.replace(recipe, trainer=trainer), data=part)
        times = [row["busy"] + row["wait"] for row in run.timings]
    return statistics.median(times[len(times) // 3 :])


def _references(comparison: Comparison) -> None:
    for name in plan.REFERENCES:
        for seed in range(comparison.options.seeds if name == "untrained" else 1):
            if comparison.row(phase="final", system=name, seed=seed) is None:
                scores = _score(comparison, name, seed)
                comparison.add(phase="final", system=name, rate=0.0, seed=seed, scores=scores, seconds=0.0, error="")


def _score(comparison: Comparison, name: str, seed: int) -> dict[str, float]:
    """Scores of the pixels, or of the encoder before any step."""
    options, data = comparison.options, comparison.data
    config = pipeline.resolve_data(options.data, data.train)
    if name == "pixels":
        method = pipeline.load_pixels(config)
    else:
        name = encoders.resolve(options.encoder.name, pipeline.shape_of(config))
        method = pipeline.load_encoder(dataclasses.replace(options.encoder, name=name), config, seed=seed)
    return {n: score.value for n, score in pipeline.evaluate(method, data, options.evaluate).items()}


def _tune(comparison: Comparison, card: System, data: Data) -> None:
    options = comparison.options
    if len(options.rates) == 1:
        return
    epochs = plan.tuning_epochs(comparison.result["epochs"])
    for rate in options.rates:
        if comparison.row(phase="tuning", system=card.slug, rate=rate) is None:
            _train(comparison, card, data, phase="tuning", epochs=epochs, rate=rate, seed=TUNING_SEED)


def _final(comparison: Comparison, card: System, seed: int) -> None:
    rate = best_rate(comparison.result, card.slug, comparison.options)
    if rate is not None and comparison.row(phase="final", system=card.slug, seed=seed) is None:
        _train(
            comparison, card, comparison.data, phase="final", epochs=comparison.result["epochs"], rate=rate, seed=seed
        )


def best_rate(result: dict[str, Any], slug: str, options: CompareOptions) -> float | None:
    """The learning rate that a system's tuning chose; None where every one failed."""
    if len(options.rates) == 1:
        return options.rates[0]
    rows = [r for r in result["rows"] if r["phase"] == "tuning" and r["system"] == slug and not r["error"]]
    return max(rows, key=lambda r: r["scores"][options.metric])["rate"] if rows else None


def _train(
    comparison: Comparison, card: System, data: Data, *, phase: str, epochs: int, rate: float, seed: int
) -> None:
    """One run; its folder is removed once its row is written, and gone on with when it is there."""
    options = comparison.options
    output = comparison.folder / "runs" / f"{phase}-{card.slug}-{rate:g}-{seed}"
    recipe = plan.recipe(
        card, options, num_samples=len(data.train), epochs=epochs, rate=rate, seed=seed, output=str(output)
    )
    began = time.perf_counter()
    scores, error = {}, ""
    try:
        run = pipeline.train(recipe, data=data, resume=(output / "recipe.json").exists())
        scores = {name: score["value"] for name, score in run.scores["after"].items()}
        expect(options.metric in scores, "metric", f"one of {', '.join(scores)}", options.metric)
    except (ValueError, TypeError, FloatingPointError) as failed:  # one system's trouble does not end the others
        error = " ".join(str(failed).split())
    comparison.add(
        phase=phase, system=card.slug, rate=rate, seed=seed, scores=scores,
        seconds=round(time.perf_counter() - began, 2), error=error,
    )  # fmt: skip
    shutil.rmtree(output, ignore_errors=True)
