"""Curves of the page: what metrics and timings hold, sorted into charts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from nearfar.report.svg import NUM_COLOURS, Series, lines
from nearfar.report.tables import words

Rows = Sequence[Mapping[str, Any]]
GEOMETRY = ("alignment", "uniformity", "effective_rank")
PLACE = ("step", "epoch")


def _flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Numbers of a row by "outer/inner" name; scores are another matter and left out."""
    out: dict[str, float] = {}
    for key, value in row.items():
        if key == "scores":
            continue
        if isinstance(value, Mapping):
            out |= _flat(value, f"{prefix}{key}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            out[f"{prefix}{key}"] = float(value)
    return out


def collect(rows: Rows) -> dict[str, Series]:
    """One series a number that the rows hold, over their steps."""
    found: dict[str, tuple[list[float], list[float]]] = {}
    for row in rows:
        values = _flat(row)
        if "step" in values:
            for name, value in values.items():
                if name not in PLACE:
                    xs, ys = found.setdefault(name, ([], []))
                    xs.append(values["step"])
                    ys.append(value)
    return {name: Series(words(name), xs, ys) for name, (xs, ys) in found.items()}


def _is_loss(name: str) -> bool:
    return name == "loss" or name.startswith(("loss/", "loss_", "terms/"))


def _is_rate(name: str) -> bool:
    return name == "lr" or name.startswith(("lr/", "lr_"))


def _is_geometry(name: str) -> bool:
    return name.rpartition("/")[2].removeprefix("geometry_") in GEOMETRY


def _chart(heading: str, series: Sequence[Series]) -> str:
    series = [s for s in series if s.x]
    if not series:
        return ""
    legend = ""
    if len(series) > 1:
        items = "".join(
            f'<li><i style="background:var(--c{k % NUM_COLOURS})"></i>{escape(s.name)}</li>'
            for k, s in enumerate(series)
        )
        legend = f'<ul class="legend">{items}</ul>'
    return f"<figure><h3>{escape(heading)}</h3>{lines(series, title=heading)}{legend}</figure>"


def _section(heading: str, text: str, charts: Sequence[str]) -> str:
    charts = [chart for chart in charts if chart]
    if not charts:
        return ""
    soft = f'<p class="soft">{escape(text)}</p>'
    return f'<section><h2>{escape(heading)}</h2>{soft}<div class="charts">{"".join(charts)}</div></section>'


def training(metrics: Rows) -> str:
    """Loss, learning rate, and the scores along the run."""
    found = collect(metrics)
    losses = [series for name, series in found.items() if _is_loss(name)]
    rates = [series for name, series in found.items() if _is_rate(name)]
    charts = [_chart("loss", losses), _chart("learning rate", rates), *_score_charts(metrics)]
    return _section("Training", "as logged, not smoothed; bands are intervals", charts)


def _score_charts(metrics: Rows) -> list[str]:
    """Scores that are shares together, every other one alone."""
    found: dict[str, list[tuple[float, float, float, float]]] = {}
    for row in metrics:
        scores = row.get("scores")
        if isinstance(scores, Mapping) and isinstance(row.get("step"), int):
            for name, score in scores.items():
                found.setdefault(name, []).append((float(row["step"]), *_score(score)))
    shares = {name: points for name, points in found.items() if all(0 <= v <= 1 for p in points for v in p[1:])}
    charts = [_chart("scores", [_band(name, points, len(shares) <= 3) for name, points in shares.items()])]
    alone = [name for name in found if name not in shares]
    return charts + [_chart(words(name), [_band(name, found[name])]) for name in alone]


def _score(score: Any) -> tuple[float, float, float]:
    if isinstance(score, Mapping):
        value = float(score["value"])
        return value, float(score.get("low", value)), float(score.get("high", value))
    return float(score), float(score), float(score)


def _band(name: str, points: Sequence[tuple[float, float, float, float]], drawn: bool = True) -> Series:
    """A score's series; where there are many, bands would hide each other and are left out."""
    x, value, low, high = (list(column) for column in zip(*points, strict=True))
    return Series(words(name), x, value, low, high) if drawn else Series(words(name), x, value)


def geometry(metrics: Rows) -> str:
    """Alignment, uniformity and effective rank of the embedding."""
    found = collect(metrics)
    charts = []
    for kind in GEOMETRY:
        series = [s for name, s in found.items() if _is_geometry(name) and name.rpartition("/")[2].endswith(kind)]
        charts.append(_chart(words(kind), series))
    text = (
        "alignment: distance of positives, lower is closer; uniformity: lower is more spread; rank: dimensions in use"
    )
    return _section("Geometry", text, charts)


def others(metrics: Rows, timings: Rows) -> str:
    """Everything else that was logged, folded away."""
    shown = (_is_loss, _is_rate, _is_geometry)
    charts = [_chart(s.name, [s]) for name, s in collect(metrics).items() if not any(test(name) for test in shown)]
    charts += [_chart(s.name, [s]) for s in collect(timings).values()]
    charts = [chart for chart in charts if chart]
    if not charts:
        return ""
    return (
        '<section><h2>Other curves</h2><p class="soft">diagnostics and speed</p>'
        f"<details><summary>{len(charts)} charts</summary>"
        f'<div class="charts">{"".join(charts)}</div></details></section>'
    )
