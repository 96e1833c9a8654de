"""The command line: `nearfar`, its own commands, and those of the installed plugins. Importing it loads no torch."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import tyro
from rich.markup import escape

from nearfar import __version__, catalog, plugin
from nearfar.checks import expect_choice
from nearfar.flags import parse, parse_recipe
from nearfar.terminal import console, print_json, table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nearfar.plugin import Plugin

__all__ = ["main", "parse", "parse_recipe"]

USER_ERRORS = (
    ValueError,
    TypeError,
    ImportError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
)
HELP = ("-h", "--help", "help")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: the words after `nearfar`; those of this process by default.

    Returns:
        0 when all went well, 1 when the run or the machine failed, 2 when the input was wrong, 130 after Ctrl-C; a
        command's own exit code is passed on.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _dispatch(words) or 0
        sys.stdout.flush()
        return code
    except SystemExit as stop:
        if isinstance(stop.code, str):
            return _complain(stop.code, 1)
        return stop.code or 0
    except KeyboardInterrupt:
        return _complain("interrupted", 130)
    except BrokenPipeError:
        # The reader of a pipe (`| head`) left; keep the interpreter from complaining when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (*USER_ERRORS, OSError, FloatingPointError) as error:
        if os.environ.get("NEARFAR_TRACEBACK") == "1":
            raise
        return _complain(f"error: {error}", 2 if isinstance(error, USER_ERRORS) else 1)


def _complain(text: str, code: int) -> int:
    console(stderr=True).print(" ".join(text.split()), style="red", markup=False, soft_wrap=True)
    return code


def _dispatch(words: list[str]) -> int | None:
    if not words or words[0] in HELP:
        return _overview()
    word, rest = words[0], words[1:]
    if word == "--version":
        console().print(f"nearfar {__version__}")
        return 0
    if word in COMMANDS:
        return COMMANDS[word][0](rest)
    name = word.replace("-", "_")
    known = {*plugin.installed(), *plugin.INSTALL}
    expect_choice("command", name if name in known else word, [*COMMANDS, *sorted(known)])
    chosen = plugin.load(name)
    if not rest or rest[0] in HELP:
        return _plugin_help(chosen)
    return chosen.command(rest[0])(rest[1:])


def _overview() -> int:
    out = console()
    out.print(f"[bold]nearfar[/] {__version__}   learn and use representations by contrast\n")
    rows = table("commands", "")
    for name, (_, text) in COMMANDS.items():
        rows.add_row(f"nearfar {name}", text)
    out.print(rows)
    points = plugin.installed()
    rows = table("plugins", "")
    demos = []
    for name in points:
        try:
            found = plugin.load(name)
            rows.add_row(f"nearfar {name}", escape(found.summary))
            demos += [f"nearfar {name} demo"] if "demo" in found.commands else []
        except (ImportError, TypeError, ValueError) as error:
            rows.add_row(f"nearfar {name}", f"[red]{escape(str(error))}[/] [dim](nearfar doctor)[/]")
    out.print()
    out.print(rows)
    rows = table("not installed", "")
    for name, command in plugin.INSTALL.items():
        if name not in points:
            rows.add_row(name, f"[dim]{command}[/]")
    if rows.row_count:
        out.print()
        out.print(rows)
    if demos:
        out.print(f"\nStart here: [bold]{demos[0]}[/]")
    out.print("\n[dim]--help after a command: its flags.  NEARFAR_TRACEBACK=1: where an error arose.[/]")
    return 0


def _plugin_help(chosen: Plugin) -> int:
    out = console()
    out.print(f"[bold]nearfar {chosen.name}[/]   {escape(chosen.summary)}\n")
    rows = table("commands", "")
    for word in chosen.commands:
        rows.add_row(f"nearfar {chosen.name} {word}", escape(chosen.help.get(word, "")))
    out.print(rows)
    out.print(f"\n[dim]nearfar systems --plugin {chosen.name} lists its systems[/]")
    return 0


@dataclass(frozen=True, kw_only=True)
class SystemsOptions:
    """The published systems that work here."""

    json: bool = False
    """print the cards as JSON and nothing else"""
    plugin: str = ""
    """only this plugin's systems, those it lists by alias included"""
    kind: str = ""
    """only this kind: train, pipeline, inference, tool, analysis or baseline"""
    positive: str = ""
    """only what takes positives from: transformation, label, modality, context, sequence or cluster"""
    by: str = ""
    """group the table by positive, negative, key or loss"""


def systems(argv: list[str]) -> int:
    """`nearfar systems`: a table or JSON of cards."""
    options = parse(SystemsOptions, argv, "nearfar systems")
    if options.plugin:
        plugin.load(options.plugin)
    if options.by:
        expect_choice("by", options.by, catalog.TRAITS)
    chosen = catalog.select(catalog.systems(), plugin=options.plugin, kind=options.kind, positive=options.positive)
    if options.json:
        print_json([card.to_dict() for card in chosen])
        return 0
    rows = table("system", "title", "venue", "kind", "plugin")
    for value, cards in (catalog.grouped(chosen, options.by) if options.by else {"": chosen}).items():
        if value:
            rows.add_row(f"[bold]{value}[/]")
        for card in cards:
            rows.add_row(card.slug, escape(card.title), escape(f"{card.venue} {card.year}"), card.kind, card.plugin)
    out = console()
    if chosen:
        out.print(rows)
    out.print(f"[dim]{len(chosen)} system{'s' * (len(chosen) != 1)}[/]")
    return 0


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """What this machine has, and whether nearfar works on it."""

    json: bool = False
    """print JSON and nothing else"""


def doctor(argv: list[str]) -> int:
    """`nearfar doctor`: exit code 1 when something essential is broken."""
    options = parse(DoctorOptions, argv, "nearfar doctor")
    from nearfar import doctor as examine

    return examine.show(examine.examine(), as_json=options.json)


@dataclass(frozen=True, kw_only=True)
class RunsOptions:
    """The run folders under a folder."""

    folder: tyro.conf.Positional[str] = "runs"
    """where to look"""
    json: bool = False
    """print JSON and nothing else"""


def runs(argv: list[str]) -> int:
    """`nearfar runs`: a table or JSON of run folders."""
    options = parse(RunsOptions, argv, "nearfar runs")
    from nearfar import runs as folders

    return folders.show(options.folder, as_json=options.json)


def benchmark(argv: list[str]) -> int:
    """`nearfar benchmark`: this library beside others, measured here."""
    from nearfar.benchmark import command

    return command.main(argv)


def demonstrate(argv: list[str]) -> int:
    """`nearfar demonstrate`: what a system shows, beside what its card claims."""
    from nearfar.demonstrate import command

    return command.main(argv)


def analyse(argv: list[str]) -> int:
    """`nearfar analyse`: what a system of kind analysis says of embeddings or tables in a file."""
    from nearfar.analysis import command

    return command.main(argv)


def compare(argv: list[str]) -> int:
    """`nearfar compare PLUGIN ...`: systems of a plugin side by side on the user's own data."""
    able = [name for name in plugin.installed() if "compare" in plugin.load(name).commands]
    if not argv or argv[0] in HELP:
        out = console()
        out.print("nearfar compare PLUGIN --systems A,B,C --data.root FOLDER --budget 30m\n")
        out.print(f"[dim]plugins that compare: {', '.join(able) or 'none'}[/]")
        return 0
    name = argv[0].replace("-", "_")
    expect_choice("compare", name, able)
    return plugin.load(name).command("compare")(argv[1:]) or 0


def zoo(argv: list[str]) -> int:
    """`nearfar zoo`: small models that build themselves."""
    from nearfar.zoo import command

    return command.main(argv)


COMMANDS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "systems": (systems, "published systems that work here"),
    "runs": (runs, "run folders, where each stands and its best score"),
    "doctor": (doctor, "what this machine has, and whether nearfar works on it"),
    "compare": (compare, "systems side by side on your own data, within a budget"),
    "demonstrate": (demonstrate, "the small experiment of a system, held against its card's claim"),
    "analyse": (analyse, "what theory says of embeddings or tables in a file"),
    "zoo": (zoo, "small models that build themselves once: list, build, path"),
    "benchmark": (benchmark, "time and memory beside other libraries, measured on this machine"),
}


if __name__ == "__main__":
    sys.exit(main())
