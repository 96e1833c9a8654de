"""`nearfar zoo`: what there is, building, and where a built model lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import tyro
from rich.markup import escape

from nearfar import zoo
from nearfar.caches import cache_folder
from nearfar.checks import expect, expect_choice
from nearfar.flags import parse
from nearfar.terminal import console, print_json, table

LIST = """Small models that build themselves: what there is, and what is built.

Examples:
  nearfar zoo                          all models; --json for programs
  nearfar zoo build images/digits      build one, if it is not there; --again builds it anew
  nearfar zoo path images/digits       the run folder of a built one, for --run
"""


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """Options of `nearfar zoo list`."""

    json: bool = False
    """print JSON and nothing else"""


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """Builds models that are not there yet."""

    names: tyro.conf.Positional[tuple[str, ...]]
    """models, e.g. images/digits"""
    again: bool = False
    """build anew what is there"""
    json: bool = False
    """print JSON and nothing else"""


@dataclass(frozen=True, kw_only=True)
class PathOptions:
    """The run folder of a built model."""

    name: tyro.conf.Positional[str]
    """a model, e.g. images/digits"""
    json: bool = False
    """print JSON and nothing else"""


def main(argv: list[str]) -> int:
    """`nearfar zoo [list]`, `nearfar zoo build NAME...`, `nearfar zoo path NAME`."""
    word, rest = (argv[0], argv[1:]) if argv and not argv[0].startswith("-") else ("list", argv)
    expect_choice("zoo command", word, ("list", "build", "path"))
    if word == "list":
        return _list(parse(ListOptions, rest, "nearfar zoo", LIST))
    if word == "path":
        wanted = parse(PathOptions, rest, "nearfar zoo path")
        folder, built = zoo.place(wanted.name), bool(zoo.card(wanted.name))
        expect(built, f"zoo model {wanted.name}", f"one that is built: nearfar zoo build {wanted.name}", "nothing in "
               f"{folder}", FileNotFoundError)  # fmt: skip
        if wanted.json:
            print_json({"model": wanted.name, "path": str(folder)})
        else:
            console().print(str(folder), markup=False, soft_wrap=True)
        return 0
    options = parse(BuildOptions, rest, "nearfar zoo build")
    expect(len(options.names) > 0, "zoo build", f"names of models, of {', '.join(zoo.models())}", "none")
    for name in options.names:
        zoo.find(name)  # all names are right before the first one is built
    made = []
    for name in options.names:
        try:
            folder = zoo.build(name, again=options.again, progress=not options.json)
        except zoo.BelowGate as error:
            raise SystemExit(str(error)) from None
        made.append(zoo.card(name) | {"path": str(folder)})
        if not options.json:
            console().print(f"{name}  {_scores(made[-1])}\nrun   {folder}", markup=False, soft_wrap=True)
    if options.json:
        print_json(made)
    return 0


def _list(options: ListOptions) -> int:
    rows = [
        {"model": name, "summary": model.summary, "gate": dict(model.gate), "seconds": model.seconds,
         "path": str(zoo.place(name)), "built": zoo.card(name)}
        for name, model in ((name, zoo.find(name)) for name in zoo.models())
    ]  # fmt: skip
    if options.json:
        print_json(rows)
        return 0
    shown = table("model", "what it is", "gate", "built")
    for row in rows:
        gate = ", ".join(f"{metric} >= {least:g}" for metric, least in row["gate"].items())
        state = _scores(row["built"]) if row["built"] else f"[dim]no, takes about {row['seconds']} s[/]"
        shown.add_row(row["model"], escape(row["summary"]), gate, state)
    out = console()
    if rows:
        out.print(shown)
    out.print(f"[dim]{len(rows)} model{'s' * (len(rows) != 1)} in {escape(str(cache_folder() / 'zoo'))}[/]")
    return 0


def _scores(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{metric} {score['value']:.3f}" for metric, score in facts["scores"].items())
