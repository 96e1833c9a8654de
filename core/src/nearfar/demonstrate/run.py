"""Runs a demonstration seed by seed and keeps what came out; one that was stopped goes on."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from nearfar import catalog, plugin
from nearfar.catalog import Claim, Demonstration
from nearfar.checks import expect
from nearfar.demonstrate.verdict import judge
from nearfar.train.run import environment, write_json

SCHEMA = 1


def demonstrate(
    slug: str,
    *,
    seeds: int = 0,
    quick: bool = False,
    folder: str | Path = "demonstrations",
    fresh: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Runs a system's demonstration and returns what `folder/<slug>.json` then holds.

    Every arm of one seed runs before the next seed begins, so that a stopped run still compares like with like. What
    is there already is kept when claim, code and quickness are the same.

    Args:
        slug: of the system.
        seeds: how many; 0: as many as the demonstration names, one where quick.
        quick: a few seconds an arm; the verdict is then "not judged".
        folder: where the file goes.
        fresh: begin anew.
        say: hears of every arm that is done.

    Raises:
        ValueError: the system has no demonstration, or an arm gives a metric that is not finite or not the claim's.
    """
    card, demonstration = catalog.system(slug), demonstration_of(slug)
    expect(seeds >= 0, "seeds", "0 or more", seeds)
    seeds = seeds or (1 if quick else demonstration.seeds)
    function = plugin.locate(demonstration.run)
    identity = {
        "schema": SCHEMA,
        "slug": slug,
        "quick": quick,
        "claim": None if card.claim is None else asdict(card.claim),
        "arms": list(demonstration.arms),
        "code": _source_hash(demonstration.run),
    }
    path = Path(folder) / f"{slug}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = [] if fresh else _kept(path, identity)
    done = {(row["arm"], row["seed"]) for row in rows}
    result: dict[str, Any] = {}
    for seed in range(seeds):
        for arm in demonstration.arms:
            if (arm, seed) in done:
                continue
            began = time.perf_counter()
            metrics = {name: float(value) for name, value in function(arm, seed, quick).items()}
            seconds = time.perf_counter() - began
            bad = [name for name, value in metrics.items() if not math.isfinite(value)]
            expect(
                not bad,
                f"demonstration {slug}, arm {arm!r}, seed {seed}",
                "finite metrics",
                {b: metrics[b] for b in bad},
            )
            rows.append({"arm": arm, "seed": seed, "seconds": round(seconds, 2), "metrics": metrics})
            say(f"{slug}: seed {seed}, {arm}: " + ", ".join(f"{n} {v:.4g}" for n, v in metrics.items()))
            result = _result(card.claim, demonstration, identity, rows)
            write_json(path, result)
    return result or json.loads(path.read_text())


def demonstration_of(slug: str) -> Demonstration:
    """What the system's module calls DEMONSTRATION."""
    card = catalog.system(slug)
    module = plugin.load(card.plugin).module(slug)
    found = getattr(module, "DEMONSTRATION", None)
    expect(isinstance(found, Demonstration), f"system {slug}", "a DEMONSTRATION in its module", "none")
    return found


def _result(
    claim: Claim | None, demonstration: Demonstration, identity: dict[str, Any], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    by_arm = {arm: [row["metrics"] for row in rows if row["arm"] == arm] for arm in demonstration.arms}
    means = {
        arm: {name: round(fmean(row[name] for row in found), 6) for name in found[0]}
        for arm, found in by_arm.items()
        if found
    }
    return identity | {
        "data": demonstration.data,
        "verdict": _verdict(claim, rows, quick=identity["quick"]),
        "means": means,
        "rows": rows,
        "seconds": round(sum(row["seconds"] for row in rows), 1),
        "environment": environment(),
    }


def _verdict(claim: Claim | None, rows: Sequence[dict[str, Any]], *, quick: bool) -> dict[str, Any]:
    """The verdict over the seeds that all the claim's arms have."""
    if claim is None or quick:
        return {"verdict": "not judged"}
    values: dict[str, dict[int, float]] = {arm: {} for arm in claim.order}
    for row in rows:
        if row["arm"] in values:
            metrics = row["metrics"]
            named = f"metrics of arm {row['arm']!r}"
            expect(claim.metric in metrics, named, f"{claim.metric!r}, which the claim is about", sorted(metrics))
            values[row["arm"]][row["seed"]] = metrics[claim.metric]
    seeds = sorted(set.intersection(*(set(found) for found in values.values())))
    if len(seeds) < 2:
        return {"verdict": "not judged"}
    found = judge(claim, {arm: [by_seed[seed] for seed in seeds] for arm, by_seed in values.items()})
    return asdict(found) | {"seeds": seeds}


def _kept(path: Path, identity: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of an earlier run of the very same demonstration."""
    if not path.is_file():
        return []
    old = json.loads(path.read_text())
    same = json.loads(json.dumps(identity))
    return list(old["rows"]) if {name: old.get(name) for name in same} == same else []


def _source_hash(spec: str) -> str:
    """Of the source of the module that an arm runs in."""
    module = importlib.import_module(spec.partition(":")[0])
    return hashlib.sha256(inspect.getsource(module).encode()).hexdigest()[:16]
