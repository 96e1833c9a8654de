"""`nearfar sentences methods`: the systems on sentences by six axes, and whether an encoder sees negations."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from rich.markup import escape

from nearfar.checks import expect
from nearfar.flags import parse
from nearfar.terminal import console, print_json, table
from nearfar_sentences.commands import PROG, model
from nearfar_sentences.options import ModelOptions
from nearfar_sentences.primer import Axes, Entry, advice, catalogue


@dataclass(frozen=True, kw_only=True)
class MethodsOptions(ModelOptions):
    """Options of `nearfar sentences methods`."""

    contrast: Literal["all", "input-input", "input-label"] = "all"
    """only methods that contrast texts with texts, or with labels"""
    advice: bool = False
    """what the survey's lessons say of each"""
    negation: bool = False
    """of the encoder that --run or --encoder.name tells: is another wording nearer than the negation"""
    num_sentences: int = 500
    """of the negation test"""
    json: bool = False
    """print JSON and nothing else"""


METHODS = """Which method on sentences contrasts what with what, and by which loss.

Examples:
  nearfar sentences methods --advice
  nearfar sentences methods --contrast input-label --json
  nearfar sentences methods --negation --run RUN
"""


def methods(argv: list[str]) -> int:
    """`nearfar sentences methods`."""
    options = parse(MethodsOptions, argv, f"{PROG} methods", METHODS)
    if options.negation:
        return _negation(options)
    entries = [entry for entry in catalogue() if options.contrast in ("all", entry.axes.contrast)]
    if options.json:
        print_json([{**entry.to_dict(), "advice": advice(entry.axes)} for entry in entries])
        return 0
    out = console()
    shown = table("method", *(field.name for field in fields(Axes)))
    for entry in entries:
        shown.add_row(entry.slug, *_cells(entry))
    out.print(shown)
    for entry in entries if options.advice else ():
        out.print(f"\n[bold]{escape(entry.slug)}[/]")
        for line in advice(entry.axes):
            out.print(f"- {escape(line)}", soft_wrap=True)
    return 0


def _cells(entry: Entry) -> list[str]:
    values = (getattr(entry.axes, field.name) for field in fields(Axes))
    return [escape(", ".join(value) if isinstance(value, tuple) else value) for value in values]


def _negation(options: MethodsOptions) -> int:
    expect(options.num_sentences >= 1, "num_sentences", "1 or more", options.num_sentences)
    from nearfar_sentences.negation import negation, negations

    result: dict[str, Any] = negation(model(options), *negations(options.num_sentences, 0))
    if options.json:
        print_json(result)
        return 0
    console().print(
        f"another wording is nearer than the negation for {result['told']:.1%} of {options.num_sentences} sentences "
        f"(mean cosines {result['same']:.3f} and {result['negated']:.3f})", soft_wrap=True,
    )  # fmt: skip
    return 0
