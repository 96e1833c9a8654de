"""Small models that build themselves: each made once by a recipe, judged, kept in the user's cache, and found again.

run = zoo.get("images/digits")       # builds it the first time, in less than a minute
features = run.method.features({"image": images})

Loads no torch before something is built or loaded.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nearfar import __version__, plugin
from nearfar.caches import alone, cache_folder
from nearfar.checks import expect, expect_choice
from nearfar.recipe import Recipe, fingerprint

log = logging.getLogger(__name__)

SCHEMA = 1
"""raised when nearfar's code changes what the same recipe gives, or what a model's folder holds; models that were built
before are then no longer found"""
CARD, RECIPE = "zoo.json", "recipe.json"


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model that a plugin can build anywhere; the plugin's `zoo` says where it stands, as "module:NAME".

    Args:
        summary: one line.
        recipe: gives the recipe, whose data every machine has; loads no torch.
        gate: score -> what it must reach in the run's evaluation, or the build is refused.
        train: "module:function" that trains a recipe and returns the Run, as `nearfar_images.pipeline.train` does.
        load: "module:function" from a run's folder to the loaded run.
        seconds: of a build on one core, about.
        version: raised when the plugin's code changes what the same recipe gives.
    """

    summary: str
    recipe: Callable[[], Recipe]
    gate: Mapping[str, float]
    train: str
    load: str
    seconds: int
    version: int = 1

    def __post_init__(self) -> None:
        expect(len(self.gate) > 0, "model: gate", "a score to reach", "none")


class BelowGate(RuntimeError):
    """A built model that does not reach its gate; it is not kept."""


def models() -> dict[str, str]:
    """ "plugin/name" -> "module:NAME" of every model of the installed plugins; nothing of them is imported yet."""
    found = {}
    for name in plugin.installed():
        found |= {f"{name}/{model}": place for model, place in plugin.load(name).zoo.items()}
    return dict(sorted(found.items()))


def find(name: str) -> Model:
    """The model "plugin/name".

    Raises:
        ValueError: no such model; the nearest one is named.
    """
    owner = name.partition("/")[0]
    if "/" in name and owner in plugin.INSTALL and owner not in plugin.installed():
        plugin.load(owner)  # says how to install it
    known = models()
    expect_choice("zoo model", name, known)
    model = plugin.locate(known[name])
    expect(isinstance(model, Model), f"zoo model {name}", "a nearfar.zoo.Model", repr(model), TypeError)
    return model


def place(name: str) -> Path:
    """The folder that holds a model, or will: named by the hash of recipe, gate, and what stands for the code."""
    model = find(name)
    parts = [SCHEMA, model.version, model.train, fingerprint(model.recipe()), sorted(model.gate.items())]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    owner, _, short = name.partition("/")
    return cache_folder() / "zoo" / owner / f"{short}-{key}"


def card(name: str) -> dict[str, Any]:
    """What is known of a built model: scores, gate, when and with which version; empty where it is not built."""
    file = place(name) / CARD
    return json.loads(file.read_text()) if file.is_file() else {}


def build(name: str, *, again: bool = False, progress: bool = False) -> Path:
    """The folder of a model, built first where it is not there; two processes at once build it once.

    Args:
        name: "plugin/name".
        again: build it anew; the old one stays until the new one has passed.
        progress: show the bar of training.

    Raises:
        BelowGate: its scores do not reach the gate, they are named.
        RuntimeError: it is not built and this is one of several processes, which would all train it together.
    """
    model, folder = find(name), place(name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if (folder / CARD).is_file() and not again:
        return folder
    from nearfar import distributed

    expect(distributed.world() == 1, f"zoo model {name}", f"it built before several processes start: nearfar zoo build "
           f"{name}", f"{distributed.world()} processes and nothing built", RuntimeError)  # fmt: skip
    with alone(folder):
        if (folder / CARD).is_file() and not again:  # by the process that was waited for
            return folder
        log.info("building %s into %s, about %d s on one core", name, folder, model.seconds)
        partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", suffix=".part", dir=folder.parent))
        try:
            _make(name, model, partial, progress)
            if folder.exists():  # of the same key: an old one that was asked for again, or another maker's
                shutil.rmtree(folder)
            os.replace(partial, folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return folder


def get(name: str) -> Any:
    """A model as its plugin loads a run, with the weights that scored best; built first where it is not there.

    The caller's random numbers go on as if nothing was trained.

    Raises:
        ValueError: no such model.
        BelowGate, RuntimeError: see `build`.
    """
    folder = build(name)
    return plugin.locate(find(name).load)(folder)


def _make(name: str, model: Model, folder: Path, progress: bool) -> None:
    """Trains into a folder and writes its card, or raises BelowGate."""
    from nearfar.train import randomness

    recipe = model.recipe()
    options = dataclasses.replace(recipe.trainer, output=str(folder), progress=progress, device="cpu", keep=1)
    began, drawn = time.perf_counter(), randomness.capture()
    try:
        run = plugin.locate(model.train)(dataclasses.replace(recipe, trainer=options))
    finally:
        randomness.restore(drawn)
    scores = run.scores.get("after", {})
    missing = sorted(set(model.gate) - set(scores))
    expect(not missing, f"zoo model {name}: gate", f"scores of the run ({', '.join(sorted(scores))})", missing)
    low = {metric: least for metric, least in model.gate.items() if not scores[metric]["value"] >= least}
    if low:
        found = "; ".join(
            f"{metric} of at least {least:g}, received {scores[metric]['value']:.4f} "
            f"(interval {scores[metric]['low']:.4f} to {scores[metric]['high']:.4f})"
            for metric, least in low.items()
        )
        raise BelowGate(f"zoo model {name}: expected {found}; it is not kept")
    kept = json.loads((folder / RECIPE).read_text())
    kept["values"]["trainer"]["output"] = ""  # the folder gets another name
    (folder / RECIPE).write_text(json.dumps(kept, indent=2) + "\n")
    facts = {
        "model": name, "recipe": recipe.name, "gate": dict(model.gate),
        "scores": {metric: scores[metric] for metric in model.gate},
        "seconds": round(time.perf_counter() - began, 1), "nearfar": __version__,
        "built": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    (folder / CARD).write_text(json.dumps(facts, indent=2) + "\n")
