"""What a comparison found: a table, and a page with plots. Loads no torch until there is something to judge."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from rich.markup import escape as plain

from nearfar.terminal import console, table
from nearfar_images.compare.plan import REFERENCES, SUPERVISED

METRICS = ("knn", "linear", "few_label", "map")
NO_BOUNDS = (-math.inf, math.inf)


@dataclass(frozen=True)
class Line:
    """One system over its seeds: value and interval of every metric, and its lead over the best by paired seeds."""

    system: str
    rate: float
    seeds: int
    seconds: float
    scores: dict[str, tuple[float, float, float]]
    behind: tuple[float, float, float] | None = None
    error: str = ""


def lines(result: dict[str, Any], metric: str) -> list[Line]:
    """A line a system, the best first; references and supervised ones stand among them but are not called best."""
    from nearfar.evaluate import mean_interval

    rows = [row for row in result["rows"] if row["phase"] == "final" and not row["error"]]
    by_system: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        by_system.setdefault(row["system"], {})[row["seed"]] = row
    made = []
    for system, found in by_system.items():
        scores = {}
        for name in next(iter(found.values()))["scores"]:
            values = [row["scores"][name] for row in found.values()]
            if len(values) == 1:
                scores[name] = (values[0], values[0], values[0])
            else:
                score = mean_interval(values, bounds=(0.0, 1.0) if name in METRICS else NO_BOUNDS)
                scores[name] = (score.value, score.low, score.high)
        seconds = sum(row["seconds"] for row in found.values()) / len(found)
        made.append(Line(system, next(iter(found.values()))["rate"], len(found), seconds, scores))
    made.sort(key=lambda line: -line.scores[metric][0])
    judged = [line for line in made if line.system not in (*REFERENCES, SUPERVISED)]
    if judged:
        best = by_system[judged[0].system]
        made = [_against(line, by_system[line.system], best, metric) for line in made]
    failed = {row["system"]: row["error"] for row in result["rows"] if row["error"]}
    made += [Line(name, 0.0, 0, 0.0, {}, error=text) for name, text in failed.items() if name not in by_system]
    return made


def _against(line: Line, found: dict[int, Any], best: dict[int, Any], metric: str) -> Line:
    from nearfar.evaluate import mean_interval

    seeds = sorted(found.keys() & best.keys())
    if found is best or len(seeds) < 2:
        return line
    score = mean_interval([found[s]["scores"][metric] - best[s]["scores"][metric] for s in seeds])
    return Line(line.system, line.rate, line.seeds, line.seconds, line.scores, (score.value, score.low, score.high))


def noise(result: dict[str, Any], accuracy: float) -> float:
    """Half of the 95 % interval that the number of test images alone leaves around an accuracy."""
    from nearfar.evaluate import wilson

    num = result["num_test"]
    score = wilson(round(accuracy * num), num)
    return (score.high - score.low) / 2


def caution(result: dict[str, Any], found: list[Line], metric: str) -> str:
    """What the size of the test part and the seeds allow to say."""
    good = [line for line in found if line.scores]
    if not good:
        return ""
    half = noise(result, max(0.0, min(1.0, good[0].scores[metric][0])))
    return (
        f"{result['num_test']} test images leave each score uncertain by about {half:.3f} beyond what seeds show; "
        "'behind' compares with the best by paired seeds, and ± is the 95 % interval over seeds"
    )


def show(result: dict[str, Any], metric: str, folder: Path) -> None:
    """Prints the table."""
    found = lines(result, metric)
    names = [name for name in METRICS if any(name in line.scores for line in found)]
    rows = table("system", *names, "behind", "rate", "s a run")
    for line in found:
        if line.error:
            rows.add_row(line.system, f"[red]{plain(line.error)}[/]")
            continue
        cells = [_figure(line.scores.get(name)) for name in names]
        behind = _behind(line)
        rate = f"{line.rate:g}" if line.rate else ""
        rows.add_row(line.system, *cells, behind, rate, f"{line.seconds:.0f}" if line.seconds else "")
    out = console()
    out.print(rows)
    seeds = max((line.seeds for line in found), default=0)
    out.print(
        f"[dim]{plain(result['data'])}: {result['num_train']:,} images to learn from, {result['epochs']} epochs, "
        f"{seeds} seeds, ordered by {metric}. {plain(caution(result, found, metric))}[/]"
    )
    out.print(f"page  {plain(str(folder / 'comparison.html'))}", soft_wrap=True)


def _figure(score: tuple[float, float, float] | None) -> str:
    if score is None:
        return "-"
    value, low, high = score
    return f"{value:.3f}" if low == high else f"{value:.3f} [dim]±{(high - low) / 2:.3f}[/]"


def _behind(line: Line) -> str:
    """The gap to the best, or that the seeds show none."""
    if line.behind is None:
        return ""
    value, low, high = line.behind
    return "[dim]no difference[/]" if low <= 0 <= high else f"{value:+.3f}"


def page(result: dict[str, Any], metric: str, path: Path) -> None:
    """Writes the page: a plot a metric, and the table."""
    from nearfar.report.forest import Row, forest
    from nearfar.report.style import SHEET

    found = [line for line in lines(result, metric) if line.scores]
    names = [name for name in METRICS if any(name in line.scores for line in found)]
    kinds = {**dict.fromkeys(REFERENCES, 9), SUPERVISED: 4}
    body = []
    for name in names:
        ordered = sorted((line for line in found if name in line.scores), key=lambda line: -line.scores[name][0])
        chart = forest(
            [Row(line.system, *line.scores[name], kind=kinds.get(line.system, 0)) for line in ordered],
            title=name, x_label=name,
        )  # fmt: skip
        body.append(f"<section><h2>{escape(name)}</h2>{chart}</section>")
    head = "".join(f'<th class="n">{escape(name)}</th>' for name in names)
    rows = "".join(
        f"<tr><td>{escape(line.system)}</td>"
        + "".join(f'<td class="n">{_cell(line.scores.get(name))}</td>' for name in names)
        + f'<td class="n">{_signed(line.behind)}</td><td class="n">{line.rate or "":}</td>'
        f'<td class="n">{line.seconds:.0f}</td></tr>'
        for line in found
    )
    heading = f"{result['data']}: {len(found)} arms, {result['epochs']} epochs"
    text = f"{result['num_train']:,} images to learn from. {caution(result, found, metric)}."
    path.write_text(
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(heading)}</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{SHEET}</style></head><body><main><header><h1>{escape(heading)}</h1>"
        f'<p class="soft">{escape(text)}</p></header>{"".join(body)}<section><h2>Table</h2><div class="scroll"><table>'
        f'<tr><th>system</th>{head}<th class="n">behind the best ({escape(metric)})</th>'
        '<th class="n">learning rate</th>'
        f'<th class="n">seconds a run</th></tr>{rows}</table></div></section></main></body></html>\n',
        encoding="utf-8",
    )


def _cell(score: tuple[float, float, float] | None) -> str:
    if score is None:
        return ""
    value, low, high = score
    return f"{value:.3f}" if low == high else f'{value:.3f} <span class="soft">[{low:.3f}, {high:.3f}]</span>'


def _signed(score: tuple[float, float, float] | None) -> str:
    if score is None:
        return ""
    return f'{score[0]:+.3f} <span class="soft">[{score[1]:+.3f}, {score[2]:+.3f}]</span>'
