"""Charts as inline SVG: lines, scatter, intervals. Colours are CSS variables, so that they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 360, 216
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 10, 34
NUM_COLOURS = 10
MAX_POINTS = 400
SHAPES = ("circle", "square", "triangle", "diamond")


@dataclass(frozen=True)
class Series:
    """A named line; `low` and `high`, where given, are drawn as a band."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    high: Sequence[float] | None = None


@dataclass(frozen=True)
class Interval:
    """A value with its interval, before and after."""

    name: str
    before: tuple[float, float, float] | None
    after: tuple[float, float, float] | None


def number(value: float) -> str:
    """A value in about three digits, as charts and tables write it."""
    if not math.isfinite(value):
        return str(value)
    if value == 0 or 1e-4 <= abs(value) < 1e5:
        return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.3g}"
    return f"{value:.2e}"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) that lie within [low, high]."""
    span = high - low
    if span <= 0 or not math.isfinite(span):
        return [low]
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = power * min((m for m in (1, 2, 5, 10) if m * power >= raw), default=10)
    return [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _range(values: Iterable[float]) -> tuple[float, float]:
    """Smallest and largest finite value with a little air; a flat line gets some too."""
    finite = [v for v in values if math.isfinite(v)]
    if not finite:
        return 0.0, 1.0
    low, high = min(finite), max(finite)
    air = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return low - air, high + air


def _thin(series: Series) -> list[tuple[int, float, float]]:
    """(row, x, y) of the finite points, every k-th and the last where there are more than can be seen."""
    points = [(i, x, y) for i, (x, y) in enumerate(zip(series.x, series.y, strict=True)) if math.isfinite(x + y)]
    stride = math.ceil(len(points) / MAX_POINTS)
    kept = points[::stride] if stride > 1 else points
    return kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]


def lines(series: Sequence[Series], *, title: str, x_label: str = "step") -> str:
    """A line chart; hovering over a point tells its series, place and value.

    Args:
        series: drawn in this order, at most one colour each; non-finite points leave a gap in the data, not the page.
        title: accessible name of the chart.
        x_label: name of the horizontal axis.
    """
    drawn = [(s, _thin(s)) for s in series]
    xs = [x for _, points in drawn for _, x, _ in points]
    x0, x1 = (min(xs), max(xs)) if xs else (0.0, 1.0)
    x1 = x1 if x1 > x0 else x0 + 1
    band = [v for s in series for side in (s.low, s.high) if side is not None for v in side]
    y0, y1 = _range([y for _, points in drawn for _, _, y in points] + band)

    def px(x: float) -> float:
        return LEFT + (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)

    def py(y: float) -> float:
        return HEIGHT - BOTTOM - (y - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)

    out = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    for y in ticks(y0, y1):
        out.append(f'<path class="grid" d="M{LEFT} {py(y):.1f}H{WIDTH - RIGHT}"/>')
        out.append(f'<text class="tick end" x="{LEFT - 8}" y="{py(y) + 4:.1f}">{number(y)}</text>')
    for x in ticks(x0, x1, 4):
        out.append(f'<text class="tick mid" x="{px(x):.1f}" y="{HEIGHT - BOTTOM + 17}">{number(x)}</text>')
    out.append(f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    out.append(f'<text class="tick end" x="{WIDTH - RIGHT}" y="{HEIGHT - 3}">{escape(x_label)}</text>')
    for k, (s, points) in enumerate(drawn):
        colour = k % NUM_COLOURS
        if s.low is not None and s.high is not None and len(points) > 1:
            low, high = s.low, s.high
            edge = [(x, high[i]) for i, x, _ in points] + [(x, low[i]) for i, x, _ in reversed(points)]
            path = "L".join(f"{px(x):.1f} {py(y):.1f}" for x, y in edge)
            out.append(f'<path class="band f{colour}" d="M{path}Z"/>')
        if len(points) > 1:
            path = "L".join(f"{px(x):.1f} {py(y):.1f}" for _, x, y in points)
            out.append(f'<path class="line l{colour}" d="M{path}"/>')
        radius = 3 if len(points) <= 40 else 0.1
        for i, x, y in points:
            text = f"{s.name}: {number(y)} at {x_label} {number(x)}"
            if s.low is not None and s.high is not None:
                text += f" [{number(s.low[i])}, {number(s.high[i])}]"
            out.append(
                f'<g class="dot"><circle class="hit" cx="{px(x):.1f}" cy="{py(y):.1f}" r="7"/>'
                f'<circle class="f{colour}" cx="{px(x):.1f}" cy="{py(y):.1f}" r="{radius}"/>'
                f"<title>{escape(text)}</title></g>"
            )
    out.append("</svg>")
    return "".join(out)


def _mark(shape: str, x: float, y: float) -> str:
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2"/>'
    if shape == "square":
        return f'<path d="M{x - 2.9:.1f} {y - 2.9:.1f}h5.8v5.8h-5.8z"/>'
    if shape == "triangle":
        return f'<path d="M{x:.1f} {y - 3.9:.1f}l3.7 6.6h-7.4z"/>'
    return f'<path d="M{x:.1f} {y - 4.1:.1f}l4.1 4.1l-4.1 4.1l-4.1-4.1z"/>'


def swatch(label: int) -> str:
    """The mark of a class as a small picture, for legends."""
    mark = _mark(SHAPES[label % len(SHAPES)], 6, 6)
    return f'<svg class="swatch f{label % NUM_COLOURS}" viewBox="0 0 12 12" aria-hidden="true">{mark}</svg>'


def scatter(points: Sequence[Sequence[float]], labels: Sequence[int], names: Sequence[str], *, title: str) -> str:
    """A map of points in one unit both ways; a class is a colour and a shape, so that neither alone has to tell it.

    Args:
        points: [N, 2].
        labels: class of each point, [N]; negative: no class.
        names: class names, shown on hover; a class without a name shows its number.
        title: accessible name of the chart.
    """
    side, air = 600, 14
    x0, x1 = _range(p[0] for p in points)
    y0, y1 = _range(p[1] for p in points)
    scale = (side - 2 * air) / max(x1 - x0, y1 - y0)
    height = (y1 - y0) * scale + 2 * air
    out = [f'<svg class="chart map" viewBox="0 0 {side} {height:.0f}" role="img" aria-label="{escape(title)}">']
    left = (side - (x1 - x0) * scale) / 2
    for label in sorted(set(labels)):
        name = names[label] if 0 <= label < len(names) else str(label) if label >= 0 else "no label"
        kind = f"f{label % NUM_COLOURS}" if label >= 0 else "plain"
        out.append(f'<g class="points {kind}" data-class="{label}"><title>{escape(name)}</title>')
        shape = SHAPES[label % len(SHAPES)] if label >= 0 else "circle"
        for p, own in zip(points, labels, strict=True):
            if own == label and math.isfinite(p[0] + p[1]):
                out.append(_mark(shape, left + (p[0] - x0) * scale, air + (y1 - p[1]) * scale))
        out.append("</g>")
    out.append("</svg>")
    return "".join(out)


def interval(row: Interval, low: float, high: float) -> str:
    """One row of a table as a picture: before and after with their intervals, on the axis [low, high]."""
    width, height = 260, 30

    def px(value: float) -> float:
        return 8 + (min(max(value, low), high) - low) / (high - low) * (width - 16)

    out = [f'<svg class="interval" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(row.name)}">']
    out.append(f'<path class="grid" d="M8 {height / 2}H{width - 8}"/>')
    for word, values, y in (("before", row.before, 10), ("after", row.after, 20)):
        if values is None or not all(map(math.isfinite, values)):
            continue
        value, least, most = values
        text = f"{row.name} {word}: {number(value)} [{number(least)}, {number(most)}]"
        out.append(
            f'<g class="{word}"><path d="M{px(least):.1f} {y}H{px(most):.1f}"/>'
            f'<circle cx="{px(value):.1f}" cy="{y}" r="4"/><title>{escape(text)}</title></g>'
        )
    out.append("</svg>")
    return "".join(out)
