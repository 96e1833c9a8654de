"""`nearfar benchmark`: its options and what it prints. Importing it loads no torch."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.markup import escape

from nearfar.benchmark.cases import CASES
from nearfar.checks import expect, expect_choice
from nearfar.flags import parse
from nearfar.terminal import console, table


@dataclass(frozen=True, kw_only=True)
class ObjectivesOptions:
    """Objectives, kNN vote and queue beside the libraries that are installed here; best on an idle machine."""

    quick: bool = False
    """small sizes and three rounds: a look within minutes; bars are not judged"""
    json: Annotated[str, tyro.conf.arg(metavar="FILE")] = ""
    """also write the figures into this file"""
    cases: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ()
    """only these cases; all by default, with --quick all but the slow ones"""
    rounds: int = 0
    """rounds that are counted; 0: a number for each case"""
    threads: int = 0
    """threads of torch; 0: as many as it takes by itself"""


def main(argv: list[str]) -> int:
    """`nearfar benchmark WHAT`: 0 when all cases ran, met bars or not; 1 when one failed."""
    if not argv or argv[0] in ("-h", "--help"):
        return _overview()
    expect_choice("benchmark", argv[0], WHAT)
    return WHAT[argv[0]][0](argv[1:])


def _overview() -> int:
    out = console()
    rows = table("benchmarks", "")
    for name, (_, text) in WHAT.items():
        rows.add_row(f"nearfar benchmark {name}", text)
    out.print(rows)
    out.print()
    rows = table("cases", "sizes", "beside")
    for case in CASES.values():
        sizes = ", ".join(f"{name} {value:,}" for name, value in case.sizes.items())
        slow = " (slow)" if case.slow else ""
        rows.add_row(case.name, sizes + slow, escape(f"{case.peer} {case.against}".strip()))
    out.print(rows)
    return 0


def objectives(argv: list[str]) -> int:
    """`nearfar benchmark objectives`."""
    options = parse(ObjectivesOptions, argv, "nearfar benchmark objectives")
    path = Path(options.json) if options.json else None
    if path is not None:  # before minutes of work, not after
        expect(path.resolve().parent.is_dir(), "--json", "a file in a folder that exists", options.json)
        expect(not path.is_dir(), "--json", "a file", f"the folder {options.json}")
    from nearfar.benchmark.run import run
    from nearfar.benchmark.show import show

    progress = console(stderr=True)
    result = run(
        options.cases, quick=options.quick, rounds=options.rounds, threads=options.threads,
        say=lambda text: progress.print(text, style="dim", markup=False),
    )  # fmt: skip
    if path is not None:
        path.write_text(json.dumps(result, indent=2) + "\n")
    show(result)
    return 1 if any("error" in found for found in result["cases"]) else 0


WHAT: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "objectives": (objectives, "objectives, kNN vote and queue: time and memory beside other libraries"),
}
