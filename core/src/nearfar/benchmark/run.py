"""Runs the cases, each in processes of its own, and judges the bars. Loads torch only to count its threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nearfar.benchmark import measure
from nearfar.benchmark.cases import CASES, OURS, PEERS, Case
from nearfar.checks import expect, expect_choice

QUICK_ROUNDS = 3
Say = Callable[[str], None]


def run(
    names: Sequence[str] = (), *, quick: bool = False, rounds: int = 0, threads: int = 0, say: Say = lambda text: None
) -> dict[str, Any]:
    """The figures of the named cases, all by default.

    Args:
        names: of `cases.CASES`; without any, all, with `quick` all that are not slow.
        quick: small sizes and few rounds; bars, which hold for the full sizes, are not judged.
        rounds: rounds that are counted; 0: three with `quick`, else each case's own number.
        threads: of torch; 0: as many as torch takes by itself.
        say: is told what is being measured.

    Returns:
        `metadata`, `quick`, and `cases`, a dict each; a case that failed has the entry `error` and no figures.

    Raises:
        ValueError: an unknown case, a negative number of rounds or threads.
    """
    selected = chosen(names, quick=quick)
    expect(rounds >= 0, "rounds", "0 or more", rounds)
    expect(threads >= 0, "threads", "0 or more", threads)
    if not threads:
        import torch

        threads = torch.get_num_threads()
    load = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    cases = [measure_case(case, quick=quick, rounds=rounds, threads=threads, say=say) for case in selected]
    about = measure.metadata(threads=threads)
    peers = [PEERS[name] for name in sorted({case.peer for case in selected if case.peer})]
    about["versions"] |= {peer.distribution: peer.version() for peer in peers if peer.installed()}
    return {"metadata": about | ({} if load is None else {"load_before": load}), "quick": quick, "cases": cases}


def chosen(names: Sequence[str], *, quick: bool) -> list[Case]:
    """The named cases; without any, all, with `quick` all that are not slow."""
    for name in names:
        expect_choice("cases", name, CASES)
    return [CASES[name] for name in names] or [case for case in CASES.values() if not (quick and case.slow)]


def measure_case(case: Case, *, quick: bool, rounds: int, threads: int, say: Say) -> dict[str, Any]:
    """The figures of one case; `error` instead when one of its processes failed."""
    sizes = {**case.sizes, **(case.quick if quick else {})}
    peer = PEERS.get(case.peer)
    found: dict[str, Any] = {"case": case.name, **sizes}
    libraries = [OURS]
    if peer is not None:
        found["beside"] = f"{peer.module} {case.against}"
        if peer.installed():
            libraries.append(peer.module)
        else:
            found["absent"] = peer.install

    def job(do: str, run_by: Sequence[str], sizes: Mapping[str, int] = sizes, **more: int) -> Any:
        say(f"{case.name}: {do}, {' and '.join(run_by)}")
        part = {"do": do, "subject": case.subject, "sizes": dict(sizes), "libraries": list(run_by)}
        return measure.fresh({**part, "threads": threads, **more})

    try:
        if case.procedure == "once":
            found |= {k: {OURS: v} if k.endswith("_mb") else v for k, v in job("once", libraries).items()}
        elif case.procedure == "refused":
            found |= _refused(sizes, libraries, job)
        else:
            found |= _beside(case, sizes, libraries, rounds or (QUICK_ROUNDS if quick else case.rounds), job)
    except measure.Failed as error:
        return found | {"error": str(error)}
    bars = dict(case.bars)
    return found | {"bars": bars} | ({} if quick else {"met": judge(found, bars)})


def _beside(case: Case, sizes: Mapping[str, int], libraries: Sequence[str], rounds: int, job: Any) -> dict[str, Any]:
    """Agreement, times and peaks of all libraries, and their ratios."""
    found = job("times", libraries, rounds=rounds)
    times = found["times"]
    if not found["agreement"]:
        del found["agreement"]
    if measure.measures_memory():
        found |= _memory({name: job("memory", [name]) for name in libraries})
        if "extra_growth_mb" in case.bars:
            quarter = job("memory", [OURS], {**sizes, "batch": sizes["batch"] // 4})["extra_mb"]
            found["extra_mb_at_a_quarter"] = quarter
            found["extra_growth_mb"] = round(found["extra_mb"][OURS] - quarter, 1)
    for other in (name for name in times if name != OURS):
        ratio = {k: times[OURS][k] / times[other][k] for k in ("median_ms", "min_ms")}
        if other in libraries:
            found["speedup"] = {k: round(1 / value, 2) for k, value in ratio.items()}
        else:
            found["of_products"] = {k: round(value, 3) for k, value in ratio.items()}
    return found


def _refused(sizes: Mapping[str, int], libraries: Sequence[str], job: Any) -> dict[str, Any]:
    """Our peak, what the peer's at a small size says of this one, and both under a limit that the peer cannot keep."""
    full = {"batch": sizes["batch"], "dim": sizes["dim"]}
    small = {**full, "batch": sizes["small"]}
    found: dict[str, Any] = {}
    if len(libraries) > 1:
        found["agreement"] = job("times", libraries, small, rounds=1)["agreement"]
    if not measure.measures_memory():
        return found
    found |= _memory({OURS: job("memory", [OURS], full)})
    if len(libraries) > 1:
        peer = libraries[1]
        rows = 2 * sizes["batch"]
        at_small = job("memory", [peer], small)["extra_mb"]
        found["peer_needs"] = {
            "extra_mb_at_small": at_small,
            "predicted_gb": round(at_small * 2**20 / 1e9 * (sizes["batch"] / sizes["small"]) ** 3, 1),
            # A positive pair a row, beside every negative pair: a matrix that NTXentLoss holds in float32.
            "one_matrix_gb": round(rows * rows * (rows - 2) * 4 / 1e9, 1),
        }
        under = job("limit", libraries, full, limit_mb=sizes["limit_mb"])
        found["under_the_limit"] = {name: _outcome(one) for name, one in under.items()}
    return found


def _outcome(one: Mapping[str, Any]) -> str:
    if one["completed"]:
        return "completed"
    return f"refused when it asked for {one['asked_gb']} GB more" if "asked_gb" in one else "refused"


def _memory(figures: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    return {kind: {name: one[kind] for name, one in figures.items()} for kind in ("extra_mb", "peak_mb")}


def judge(found: Mapping[str, Any], bars: Mapping[str, float]) -> dict[str, bool | str]:
    """Whether each bar is met, by the median and by our own figure; why not judged, where the figure is missing."""
    verdicts: dict[str, bool | str] = {}
    for name, bound in bars.items():
        value = figure(found, name)
        if value is None:
            missing = name == "speedup" and "absent" in found
            verdicts[name] = "not judged: the peer is not installed" if missing else "not judged: no figure"
        else:
            verdicts[name] = value >= bound if name == "speedup" else value <= bound
    return verdicts


def figure(found: Mapping[str, Any], name: str) -> float | None:
    """The figure that a bar is about: a median, our own of several libraries, or the number itself."""
    value = found.get(name)
    if isinstance(value, Mapping):
        return value.get("median_ms", value.get(OURS))
    return value
