"""What each system of a comparison runs: what is the same for all, and what is its own."""

from __future__ import annotations

import dataclasses
import math

from nearfar import catalog
from nearfar.catalog import System
from nearfar.checks import expect
from nearfar.config import ImageViewConfig, OptimiserConfig, SamplerConfig, TrainerConfig
from nearfar.plugin import load
from nearfar.recipe import Recipe
from nearfar_images.compare.options import CompareOptions
from nearfar_images.systems import _views

SUPERVISED = "cross_entropy"
REFERENCES = ("untrained", "pixels")
TUNING_SHARE = 3  # a tuning run has a third of the epochs
# What makes a view another kind of view; the rest of a recipe's views is the same for all systems.
OWN_VIEWS = (
    "num_views", "local_views", "local_size", "local_scale", "centred_views", "centre_box", "centre_beta"
)  # fmt: skip
PLAIN = {"digits", "mnist", "kmnist"}  # writing: a mirrored sign is another sign


def cards(options: CompareOptions, *, labels: bool) -> list[System]:
    """The systems of a comparison, the supervised line last where there are labels.

    Raises:
        ValueError: an unknown system, one of another plugin or kind, or one that needs labels that are not there.
    """
    known = {card.slug: card for card in catalog.systems(["images"]) if card.kind in ("train", "baseline")}
    if options.systems.strip() == "all":
        methods = {slug: _recipe(slug, options.data.source).method for slug in known if slug != SUPERVISED}
        chosen = [slug for slug, method in methods.items() if not (method.needs_labels or method.needs_columns)]
    else:
        chosen = [word.strip().replace("-", "_") for word in options.systems.split(",") if word.strip()]
    expect(len(chosen) > 0, "systems", "one or more", repr(options.systems))
    for slug in chosen:
        expect(slug in known, "systems", f"slugs of {', '.join(sorted(known))}", repr(slug))
        needs = _recipe(slug, options.data.source).method.needs_labels
        expect(labels or not needs, f"system {slug}", "data with labels", "none")
    chosen = list(dict.fromkeys([*chosen, *([SUPERVISED] if labels else [])]))
    return [known[slug] for slug in chosen]


def recipe(
    card: System, options: CompareOptions, *, num_samples: int, epochs: int, rate: float, seed: int, output: str
) -> Recipe:
    """The run of one system: its own method, kind of views and batches; encoder, data, optimiser and length of all."""
    own = _recipe(card.slug, options.data.source)
    batch = min(options.batch_size, num_samples)
    method = own.method
    if getattr(method, "queue", 0):  # at most half of the data, or every key would be a later version of another
        size = max(batch, min(method.queue, num_samples // 2) // batch * batch)  # type: ignore[attr-defined]
        counts = {"queue": size}
        if getattr(method, "num_hardest", 0):  # of the queue, so that it shrinks with it
            counts["num_hardest"] = min(method.num_hardest, size)  # type: ignore[attr-defined]
        method = dataclasses.replace(method, **counts)
    views = _views.digits() if options.data.source in PLAIN else _views.small()
    kept = {f.name for f in dataclasses.fields(ImageViewConfig)} & set(OWN_VIEWS)
    views = dataclasses.replace(views, **{name: getattr(own.views, name) for name in kept})
    return dataclasses.replace(
        own,
        method=method,
        data=options.data,
        views=views,
        encoder=dataclasses.replace(options.encoder, norm=own.encoder.norm),
        sampler=own.sampler if own.method.needs_labels else SamplerConfig(),
        optimiser=OptimiserConfig(lr=rate, warmup_epochs=math.ceil(epochs / 20)),
        evaluate=options.evaluate,
        trainer=TrainerConfig(
            epochs=epochs, batch_size=batch, seed=seed, output=output, evaluate_every=0, evaluate_before=False,
            progress=False, keep=1, report=False,
        ),
    )  # fmt: skip


def epochs_within(
    budget: float, *, step_seconds: dict[str, float], steps_per_epoch: int, seeds: int, rates: int, score_seconds: float
) -> int:
    """Epochs that each system can have, so that all runs and their scoring fit a budget in seconds.

    Raises:
        ValueError: the budget does not hold one epoch; the least that does is named.
    """
    tuning = rates if rates > 1 else 0
    an_epoch = sum(step_seconds.values()) * steps_per_epoch
    scoring = len(step_seconds) * (seeds + tuning) * score_seconds
    epochs = int((budget - scoring) / (an_epoch * (seeds + tuning / TUNING_SHARE)))
    least = scoring + an_epoch * (seeds + tuning)
    expect(epochs >= 1, "budget", f"{math.ceil(least)}s or more for one epoch of every system", f"{budget:.0f}s")
    return epochs


def tuning_epochs(epochs: int) -> int:
    """Epochs of a run that only chooses a learning rate."""
    return max(1, round(epochs / TUNING_SHARE))


def _recipe(slug: str, source: str) -> Recipe:
    """The system's recipe: the one for digits where the images are such, else the main one."""
    images = load("images")
    name = f"{slug}_digits"
    return images.recipe(name if source in PLAIN and name in images.recipes() else slug)
