"""A row a thing, its value as a dot and its interval as a bar: what a table of scores looks like at a glance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from nearfar.report.svg import NUM_COLOURS, number, ticks

ROW, TOP, BOTTOM, WIDTH = 26, 8, 40, 720


@dataclass(frozen=True)
class Row:
    """A named value with its interval; `kind` chooses the colour."""

    name: str
    value: float
    low: float
    high: float
    kind: int = 0


def forest(rows: Sequence[Row], *, title: str, x_label: str) -> str:
    """Rows from top to bottom on one horizontal axis.

    Args:
        rows: at least one; colours go by `kind`.
        title: accessible name of the chart.
        x_label: name of the axis.
    """
    left = 24 + 8 * max(len(row.name) for row in rows)
    low, high = min(row.low for row in rows), max(row.high for row in rows)
    air = 0.04 * (high - low) or 0.02
    low, high = low - air, high + air
    height = TOP + ROW * len(rows) + BOTTOM

    def px(value: float) -> float:
        return left + (value - low) / (high - low) * (WIDTH - left - 16)

    floor = height - BOTTOM
    out = [f'<svg class="chart" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">']
    for x in ticks(low, high, 6):
        out.append(f'<path class="grid" d="M{px(x):.1f} {TOP}V{floor}"/>')
        out.append(f'<text class="tick mid" x="{px(x):.1f}" y="{floor + 16}">{number(x)}</text>')
    out.append(f'<path class="axis" d="M{left} {floor}H{WIDTH - 16}"/>')
    out.append(f'<text class="tick end" x="{WIDTH - 16}" y="{height - 6}">{escape(x_label)}</text>')
    for k, row in enumerate(rows):
        y = TOP + ROW * (k + 0.5)
        colour = row.kind % NUM_COLOURS
        text = f"{row.name}: {number(row.value)} [{number(row.low)}, {number(row.high)}]"
        out.append(
            f'<g><text class="tick end" x="{left - 10}" y="{y + 4:.1f}">{escape(row.name)}</text>'
            f'<path class="line l{colour}" d="M{px(row.low):.1f} {y:.1f}H{px(row.high):.1f}"/>'
            f'<circle class="f{colour}" cx="{px(row.value):.1f}" cy="{y:.1f}" r="4.5"/>'
            f"<title>{escape(text)}</title></g>"
        )
    out.append("</svg>")
    return "".join(out)
