"""`nearfar analyse`: which analyses there are, and the way to each. Importing it loads no torch."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

from rich.markup import escape

import nearfar.analysis
from nearfar.checks import expect_choice
from nearfar.terminal import console, table


def main(argv: list[str]) -> int:
    """`nearfar analyse NAME FILE ...`."""
    if not argv or argv[0] in ("-h", "--help"):
        return _overview()
    name = argv[0].replace("-", "_")
    expect_choice("analysis", name, analyses())
    run: Callable[[list[str]], int] = importlib.import_module(f"nearfar.analysis.{name}").main
    return run(argv[1:])


def analyses() -> list[str]:
    """Names of the analyses, sorted."""
    names = [info.name for info in pkgutil.iter_modules(nearfar.analysis.__path__)]
    return sorted(name for name in names if name[0] != "_" and name != "command")


def _overview() -> int:
    rows = table("analyses", "")
    for name in analyses():
        text = (importlib.import_module(f"nearfar.analysis.{name}").__doc__ or "").split("\n\n")[0]
        rows.add_row(f"nearfar analyse {name}", escape(" ".join(text.split())))
    out = console()
    out.print(rows)
    out.print("\n[dim]--help after a name: what it reads and its flags[/]")
    return 0
