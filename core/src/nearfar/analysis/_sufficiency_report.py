"""What `nearfar analyse sufficient_statistics` does with its files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from nearfar.analysis import _files
from nearfar.analysis._critics import estimate_sufficiency
from nearfar.analysis._gaussian import gaussian_sufficiency
from nearfar.analysis._plots import chart
from nearfar.analysis._sufficiency import DIVERGENCES, info_nce_information, sufficiency
from nearfar.analysis.sufficient_statistics import SufficiencyOptions
from nearfar.checks import expect
from nearfar.report.svg import Series
from nearfar.terminal import console, print_json, table

MODES = {
    "exact": ("table", "encoder"),
    "gaussian": ("variance", "noise", "encoder"),
    "estimate": ("first", "second", "feature"),
}
LIMIT_STATES = 200
"""of each view of a table, beyond which a table is no longer small"""


def run(options: SufficiencyOptions) -> int:
    """Reads every file, reports, and writes what was asked for."""
    reports = [{"file": path, **_of_file(path, options)} for path in options.files]
    result = {"analysis": "sufficient_statistics", "files": reports}
    if options.out:
        _files.write(options.out, result, _plot(reports))
    if options.json:
        print_json(result)
    else:
        for report in reports:
            _show(report)
    return 0


def _of_file(path: str, options: SufficiencyOptions) -> dict[str, Any]:
    arrays = _files.fields(path)
    modes = [mode for mode, names in MODES.items() if set(names) <= set(arrays)]
    wanted = "; or ".join(", ".join(names) for names in MODES.values())
    expect(len(modes) == 1, f"file {path}: fields", f"exactly one set of {wanted}", ", ".join(sorted(arrays)) or "none")
    if modes[0] == "exact":
        return _exact(path, arrays, options)
    if modes[0] == "gaussian":
        return _gaussian(path, arrays)
    z = [torch.from_numpy(_files.matrix(path, arrays, name)) for name in MODES["estimate"]]
    found = estimate_sufficiency(z[0], z[1], z[2], critic=options.critic, steps=options.steps, seed=options.seed)
    return {"mode": "estimate", **asdict(found)}


def _exact(path: str, arrays: Mapping[str, np.ndarray], options: SufficiencyOptions) -> dict[str, Any]:
    where = f"file {path}: field"
    t = torch.from_numpy(_files.matrix(path, arrays, "table"))
    expect(max(t.shape) <= LIMIT_STATES, f"{where} 'table'", f"at most {LIMIT_STATES} states a view", tuple(t.shape))
    codes = arrays["encoder"]
    expect(codes.dtype.kind in "iu", f"{where} 'encoder'", "integer codes, one a row of the table", codes.dtype)
    ids = torch.from_numpy(codes.astype(np.int64))
    found = {name: sufficiency(t, ids, divergence=name) for name in DIVERGENCES}
    gap = max(0.0, found["kl"].gap)
    candidates = [
        info_nce_information(t, num_candidates=k, limit=options.limit, draws=options.draws, seed=options.seed)
        for k in options.candidates
    ]
    return {
        "mode": "exact",
        "num_states": list(t.shape),
        "num_codes": len(ids.unique()),
        "sufficiency": [asdict(one) for one in found.values()],
        "squared_error_bound": 2 * gap,
        "log_loss_bound": gap,
        "info_nce": [asdict(one) for one in candidates],
    }


def _gaussian(path: str, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    where = f"file {path}: field"
    variance, noise = arrays["variance"], arrays["noise"]
    expect(variance.dtype.kind in "fiu", f"{where} 'variance'", "numbers", variance.dtype)
    expect(noise.dtype.kind in "fiu" and noise.size == 1, f"{where} 'noise'", "one number", noise.shape)
    w = torch.from_numpy(_files.matrix(path, arrays, "encoder"))
    found = gaussian_sufficiency(torch.from_numpy(variance.astype(np.float64)), float(noise.item()), w)
    gap = max(0.0, found.gap)
    return {"mode": "gaussian", **asdict(found), "squared_error_bound": 2 * gap, "log_loss_bound": gap}


def _show(report: dict[str, Any]) -> None:
    out = console()
    out.print(f"{report['file']}: {report['mode']}", markup=False, soft_wrap=True)
    rows = table("divergence", "information", "kept", "lost", "by Bregman", "by risks")
    if report["mode"] == "exact":
        for s in report["sufficiency"]:
            values = (s[name] for name in ("information", "kept", "gap", "bregman", "variational"))
            rows.add_row(s["divergence"], *(f"{x:.5f}" for x in values))
    else:
        rows = table("divergence", "information", "kept", "lost")
        rows.add_row(report.get("divergence", "kl"), *(f"{report[x]:.5f}" for x in ("information", "kept", "gap")))
    out.print(rows)
    if report["mode"] == "estimate":
        num = report["num_held_out"]
        out.print(f"estimated by critics ({report['critic']}) on {num:,} held-out samples; no bound", style="dim")
        if report["saturated"]:
            out.print(f"info_nce stands at its ceiling, log {num:,}: the information may be larger", style="yellow")
        out.print()
        return
    rows = table("bounds, of the kl", "")
    rows.add_row("squared error of a target within [-1, 1]", f"{report['squared_error_bound']:.5f} more than by z1")
    rows.add_row("log-loss of a label that z2 determines", f"{report['log_loss_bound']:.5f} nats more than by z1")
    out.print(rows)
    if report["mode"] == "exact":
        rows = table("InfoNCE with K", "-R_K", "error", "min(I, log K)", "")
        for k in report["info_nce"]:
            error = "exact" if k["exact"] else f"{k['error']:.5f}"
            note = "log K is below I" if k["saturated"] else ""
            rows.add_row(str(k["num_candidates"]), f"{k['value']:.5f}", error, f"{k['ceiling']:.5f}", note)
        out.print(rows)
    out.print()


def _plot(reports: list[dict[str, Any]]) -> str:
    """-R_K and its ceiling over K where there are tables, else what each file's encoder keeps and what there is."""
    tables = [report for report in reports if report["mode"] == "exact"]
    series = []
    for report in tables:
        start = f"{report['file']}: " if len(tables) > 1 else ""
        x = [float(k["num_candidates"]) for k in report["info_nce"]]
        series.append(Series(f"{start}-R_K", x, [k["value"] for k in report["info_nce"]]))
        series.append(Series(f"{start}min(I, log K)", x, [k["ceiling"] for k in report["info_nce"]]))
    if tables:
        return chart(series, title="what InfoNCE reports", x_label="candidates")
    x = [float(i) for i in range(1, len(reports) + 1)]
    names = {"information": "information of the views", "kept": "kept by the encoder"}
    series = [Series(text, x, [report[name] for report in reports]) for name, text in names.items()]
    return chart(series, title="information and what is kept", x_label="file")
