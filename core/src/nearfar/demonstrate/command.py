"""`nearfar demonstrate`: its options and what it prints. Importing it loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from rich.markup import escape

from nearfar.checks import expect
from nearfar.flags import parse
from nearfar.terminal import console, print_json, table

COLUMN = 12
"""characters of a column of figures"""


@dataclass(frozen=True, kw_only=True)
class DemonstrateOptions:
    """The small experiment of a system, over seeds, held against what its card claims."""

    systems: tyro.conf.Positional[tuple[str, ...]] = ()
    """slugs; `nearfar systems` lists them"""
    all: bool = False
    """every system that has a demonstration"""
    seeds: int = 0
    """how many; 0: as many as each demonstration names"""
    quick: bool = False
    """one seed and a few seconds an arm; nothing is judged"""
    out: Annotated[str, tyro.conf.arg(metavar="FOLDER")] = "demonstrations"
    """where <slug>.json goes; one that was stopped goes on from there"""
    fresh: bool = False
    """begin anew even where results of the same code are there"""
    json: bool = False
    """print JSON and nothing else"""


def main(argv: list[str]) -> int:
    """`nearfar demonstrate SLUG ...`."""
    options = parse(DemonstrateOptions, argv, "nearfar demonstrate")
    expect(bool(options.systems) != options.all, "demonstrate", "one or more systems, or --all", options.systems)
    from nearfar import catalog, plugin
    from nearfar.demonstrate.run import demonstrate

    slugs = options.systems or tuple(
        card.slug for card in catalog.systems() if hasattr(plugin.load(card.plugin).module(card.slug), "DEMONSTRATION")
    )
    progress = console(stderr=True)
    results = [
        demonstrate(
            slug, seeds=options.seeds, quick=options.quick, folder=options.out, fresh=options.fresh,
            say=lambda text: progress.print(text, style="dim", markup=False, soft_wrap=True),
        )
        for slug in slugs
    ]  # fmt: skip
    if options.json:
        print_json(results)
    else:
        for result in results:
            show(result)
    return 0


def show(result: dict[str, Any]) -> None:
    """Means of every arm, the claim, and the verdict."""
    out = console()
    claim, verdict = result["claim"], result["verdict"]
    names = [claim["metric"]] if claim else []
    names += [name for row in result["means"].values() for name in row]
    first = max(len(arm) for arm in result["means"])
    metrics = list(dict.fromkeys(names))[: max(1, (out.width - first) // COLUMN)]  # the file holds all of them
    rows = table(result["slug"], *metrics)
    for arm, means in result["means"].items():
        rows.add_row(arm, *(f"{means[name]:.4g}" if name in means else "-" for name in metrics))
    out.print(rows)
    num = len({row["seed"] for row in result["rows"]})
    out.print(f"[dim]{escape(result['data'])}; mean of {num} seed{'s' * (num != 1)}, {result['seconds']:.0f} s[/]")
    if claim:
        order = (" > " if claim["direction"] == "higher" else " < ").join(claim["order"])
        out.print(f"claim    {escape(claim['metric'])}: {escape(order)}, by {claim['margin']:g} or more")
    text = verdict["verdict"]
    if "mean" in verdict:
        text += f": lead {verdict['mean']:.4g} [{verdict['low']:.4g}, {verdict['high']:.4g}]"
        text += "" if verdict["ordered"] else ", not in that order"
    out.print(f"verdict  {escape(text)}\n", soft_wrap=True)
