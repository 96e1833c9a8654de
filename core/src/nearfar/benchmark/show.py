"""The figures of a benchmark as tables in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from nearfar.benchmark.cases import CASES, OURS
from nearfar.benchmark.run import figure
from nearfar.terminal import console, table

SAYS = {
    "of_products": "time over that of three plain products <= {:g}",
    "speedup": "times as fast as {beside} >= {:g}",
    "extra_mb": "extra memory <= {:g} MB",
    "extra_growth_mb": "extra memory grows <= {:g} MB from a quarter of the batch",
}
VERDICT = {True: "[green]met[/]", False: "[yellow]not met[/]"}


SHORT = {"batch": "B", "dim": "D", "classes": "C", "bank": "K", "queries": "Q", "size": "K", "k": "k"}


def show(result: Mapping[str, Any]) -> None:
    """Prints figures, bars, what is missing and on which machine all this was."""
    out = console()
    rows = table("case", "sizes, beside", "nearfar\nms", "its ms", "ratio", "of\nproducts", "MB", "its MB")
    for column in rows.columns[1:]:
        column.overflow = "fold"
    rows.columns[1].min_width = 23  # on a narrow terminal too, the longest name of a library stays whole
    for found in result["cases"]:
        rows.add_row(*_row(found))
    out.print(rows)
    out.print(
        "\n[dim]ms: median (minimum). MB: peak above the inputs, one copy of each and their gradients; ~: predicted.[/]"
    )
    if result["quick"]:
        out.print("[dim]Small sizes and few rounds; the bars hold for the full sizes, without --quick.[/]\n")
    else:
        out.print()
        out.print(_bars(result["cases"]))
        out.print()
    _notes(result)


def _bars(cases: Sequence[Mapping[str, Any]]) -> Table:
    bars = table("case", "bar", "found", "")
    bars.columns[1].overflow = "fold"
    for found in cases:
        for name, verdict in found.get("met", {}).items():
            text = SAYS[name].format(found["bars"][name], beside=found.get("beside", ""))
            value = figure(found, name)
            said = f"[dim]{escape(verdict)}[/]" if isinstance(verdict, str) else VERDICT[verdict]
            bars.add_row(found["case"], escape(text), _number(value), said)
    return bars


def _row(found: Mapping[str, Any]) -> list[str]:
    sizes = ", ".join(f"{SHORT[name]} {found[name]:,}" for name in CASES[found["case"]].sizes if name in SHORT)
    times, extra = found.get("times", {}), found.get("extra_mb", {})
    peer = found.get("beside", "").partition(" ")[0]
    ours = _time(times.get(OURS)) or (f"{1e3 * found['seconds']:,.0f}" if "seconds" in found else "")
    needs = found.get("peer_needs", {})
    its_extra = f"~{1e3 * needs['predicted_gb']:,.0f}" if needs else _number(extra.get(peer))
    ratio = found.get("speedup", {}).get("median_ms")
    share = found.get("of_products", {}).get("median_ms")
    return [
        found["case"],
        escape(sizes) + (f"\n[dim]{escape(found['beside'])}[/]" if "beside" in found else ""),
        ours,
        _time(times.get(peer)),
        "" if ratio is None else f"{ratio:.2f}x",
        _number(share),
        _number(extra.get(OURS)),
        its_extra,
    ]


def _time(one: Mapping[str, float] | None) -> str:
    return "" if one is None else f"{one['median_ms']:,.4g}\n({one['min_ms']:,.4g})"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.4g}"


def _notes(result: Mapping[str, Any]) -> None:
    out = console()
    for found in result["cases"]:
        if "error" in found:
            out.print(f"[red]{found['case']}: {escape(found['error'])}[/]")
        if "under_the_limit" in found:
            limit = ", ".join(f"{name} {text}" for name, text in found["under_the_limit"].items())
            needs = found["peer_needs"]
            out.print(
                f"{found['case']}: one matrix of its takes {needs['one_matrix_gb']} GB, all of it "
                f"{needs['predicted_gb']} GB (predicted from batch {found['small']}); with "
                f"{found['limit_mb']:,} MB: {escape(limit)}"
            )
    absent: dict[str, list[str]] = {}
    for found in result["cases"]:
        if "absent" in found:
            absent.setdefault(found["absent"], []).append(found["case"])
    for command, names in absent.items():
        out.print(f"[yellow]not installed[/], so nothing beside {', '.join(names)}: [bold]{escape(command)}[/]")
    if any("extra_mb" not in found and "error" not in found for found in result["cases"]):
        out.print("[yellow]memory was not measured[/]: that needs Linux")
    about = result["metadata"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    changed = " with changes" if about["changed"] else ""
    load = about.get("load_before", 0.0)
    if load >= 1:
        out.print(f"[yellow]the machine was busy[/] (load {load} before the first case), so times are unreliable")
    out.print(
        f"[dim]{escape(about['machine'])}, torch threads {about['torch_threads']}; Python {about['python']}, "
        f"{escape(versions)}; commit {about['commit'][:12]}{changed}; {about['date']}[/]"
    )
