"""How nearfar looks in a terminal: one console, one table, restrained, readable without colour."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def console(stderr: bool = False) -> Console:
    """A console on the stream as it is now; rich leaves colour out where it is not wanted."""
    return Console(stderr=stderr, highlight=False, emoji=False)


def table(*columns: str) -> Table:
    """A table without frames; the first column stays on one line."""
    rows = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for k, name in enumerate(columns):
        rows.add_column(name, no_wrap=k == 0, overflow="fold" if k == 0 else "ellipsis")
    return rows


def print_json(value: Any) -> None:
    """Prints JSON and nothing else."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def score_table(arms: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
    """Scores as rows, arms as columns; how many rows and dimensions there were is no score."""
    rows = table("score", *arms)
    for name in dict.fromkeys(name for scores in arms.values() for name in scores):
        if name in ("rows", "dimensions"):
            continue
        rows.add_row(escape(name), *(_figure(scores.get(name)) for scores in arms.values()))
    return rows


def _figure(score: Mapping[str, float] | None) -> str:
    if score is None:
        return "-"
    value, low, high = score["value"], score["low"], score["high"]
    return f"{value:.3f}" if low == value == high else f"{value:.3f} [dim]\\[{low:.3f}, {high:.3f}][/]"
