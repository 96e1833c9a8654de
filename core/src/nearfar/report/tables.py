"""Numbers of the page: tiles, before and after, recipe, environment."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

from nearfar.report.svg import Interval, interval, number

Scores = Mapping[str, Mapping[str, Mapping[str, float]]]
NUM_TILES = 4
WORDS = {
    "knn": "kNN accuracy", "linear": "linear probe", "few_label": "few-label probe", "map": "mean average precision",
    "map@r": "MAP@R",
}  # fmt: skip


def words(name: str) -> str:
    """A score's or field's name as people write it."""
    return WORDS.get(name, name.replace("_", " ").replace("/", " / "))


def _triple(score: Mapping[str, float] | None) -> tuple[float, float, float] | None:
    if score is None:
        return None
    value = float(score["value"])
    return value, float(score.get("low", value)), float(score.get("high", value))


def _rows(scores: Scores) -> list[Interval]:
    before, after = scores.get("before", {}), scores.get("after", {})
    names = dict.fromkeys([*after, *before])
    return [Interval(words(name), _triple(before.get(name)), _triple(after.get(name))) for name in names]


def _digits(value: float) -> str:
    """A score in three decimals, so that columns compare; a count as it is."""
    return f"{value:.3f}" if abs(value) < 100 and not (value.is_integer() and abs(value) > 1) else number(value)


def _is_share(row: Interval) -> bool:
    """Whether a row is a share with an interval; other numbers, such as those of geometry, have no common axis."""
    seen = [t for t in (row.before, row.after) if t is not None]
    return any(t[1] < t[2] for t in seen) and all(0 <= v <= 1 for t in seen for v in t)


def _figure(values: tuple[float, float, float] | None) -> str:
    if values is None:
        return '<span class="soft">\u2013</span>'
    value, low, high = values
    span = f' <span class="soft">[{_digits(low)}, {_digits(high)}]</span>' if low != high else ""
    return f"{_digits(value)}{span}"


def _change(row: Interval) -> str:
    """The difference, and whether the intervals part; which way is better depends on the score."""
    if row.before is None or row.after is None:
        return '<span class="soft">\u2013</span>'
    gap = row.after[0] - row.before[0]
    known = row.before[1] < row.before[2] and row.after[1] < row.after[2]
    apart = row.after[1] > row.before[2] or row.after[2] < row.before[1]
    sign = "+" if gap > 0 else "\u2212" if gap < 0 else "\u00b1"
    text = "" if not known else "intervals apart" if apart else "intervals overlap"
    return f'{sign}{_digits(abs(gap))} <span class="soft">{text}</span>'


def tiles(scores: Scores) -> str:
    """The first scores in large figures."""
    out = []
    for row in _rows(scores)[:NUM_TILES]:
        if row.after is None:
            continue
        text = f"from {_digits(row.before[0])} before training" if row.before else "after training"
        value = _digits(row.after[0])
        out.append(f'<div class="tile"><span class="soft">{escape(row.name)}</span><b>{value}</b>'
                   f'<span class="soft">{text}</span></div>')  # fmt: skip
    return f'<div class="tiles">{"".join(out)}</div>' if out else ""


def before_after(scores: Scores) -> str:
    """Every score before and after training with its interval; scores in [0, 1] also as a picture."""
    rows = _rows(scores)
    if not rows:
        return ""
    rows.sort(key=lambda row: not _is_share(row))
    shares = [v for row in rows if _is_share(row) for t in (row.before, row.after) if t is not None for v in t]
    low = min(0.9, math.floor(10 * min(shares, default=0.0)) / 10)
    body = []
    for row in rows:
        drawn = interval(row, low, 1.0) if _is_share(row) else ""
        body.append(
            f"<tr><td>{escape(row.name)}</td>"
            f"<td class='n'>{_figure(row.before)}</td><td class='n'>{_figure(row.after)}</td>"
            f"<td>{drawn}</td><td>{_change(row)}</td></tr>"
        )
    axis = f'<span class="key">before</span><span class="key new">after</span> {number(low)} to 1'
    return (
        '<section><h2>Before and after</h2><p class="soft">on the validation split, with intervals; '
        'before: the encoder as training found it</p><div class="scroll"><table class="scores">'
        f"<tr><th>score</th><th class='n'>before</th><th class='n'>after</th><th>{axis}</th><th>change</th></tr>"
        f"{''.join(body)}</table></div></section>"
    )


def _value(value: Any) -> str:
    if isinstance(value, bool):
        text = "yes" if value else "no"
    elif isinstance(value, list | tuple):
        text = ", ".join(str(v) for v in value) or "\u2013"
    else:
        text = "\u2013" if value in ("", None) else str(value)
    return escape(text)


def _fields(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    out: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            out += _fields(value, f"{prefix}{key}.")
        else:
            out.append((f"{prefix}{key}", value))
    return out


def _block(heading: str, values: Mapping[str, Any]) -> str:
    rows = "".join(f"<tr><td>{escape(k)}</td><td>{_value(v)}</td></tr>" for k, v in _fields(values))
    return f"<div><h3>{escape(heading)}</h3><table>{rows}</table></div>"


def recipe(data: Mapping[str, Any]) -> str:
    """Every field of the recipe, one block a part."""
    parts = data.get("values", {})
    if not parts:
        return ""
    blocks = [_block(part, values) for part, values in parts.items() if isinstance(values, Mapping)]
    loose = {key: value for key, value in parts.items() if not isinstance(value, Mapping)}
    blocks += [_block("other", loose)] if loose else []
    name = str(data.get("recipe", ""))
    again = escape(f"nearfar {name.partition('/')[0] if '/' in name else 'PLUGIN'} train --recipe recipe.json")
    return (
        f"<section><h2>Recipe</h2><p class='soft'>{escape(name)}; the same run again: "
        f"<code>{again}</code></p><details><summary>every field</summary>"
        f'<div class="fields">{"".join(blocks)}</div></details></section>'
    )


def environment(data: Mapping[str, Any]) -> str:
    """Versions and machine."""
    if not data:
        return ""
    loose = {key: value for key, value in data.items() if not isinstance(value, Mapping)}
    blocks = [_block("machine", loose)] if loose else []
    blocks += [_block(key, value) for key, value in data.items() if isinstance(value, Mapping)]
    return f'<section><h2>Environment</h2><div class="fields">{"".join(blocks)}</div></section>'
