"""How nearfar looks in a terminal: one console, one table, restrained, readable without colour."""

from __future__ import annotations

import json
import sys
from typing import Any

from rich.console import Console
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
