"""Charts with a legend, for pictures that stand alone. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from nearfar.report.svg import HEIGHT, LEFT, NUM_COLOURS, WIDTH, Series, lines

ROW = 16


def chart(series: Sequence[Series], *, title: str, x_label: str) -> str:
    """`nearfar.report.svg.lines` with the names of the series below it."""
    drawn = lines(series, title=title, x_label=x_label)
    names = []
    for k, s in enumerate(series):
        y = HEIGHT + ROW * (k + 1) - 4
        names.append(f'<rect class="f{k % NUM_COLOURS}" x="{LEFT}" y="{y - 5}" width="14" height="3"/>')
        names.append(f'<text class="tick" x="{LEFT + 20}" y="{y}">{escape(s.name)}</text>')
    taller = f'viewBox="0 0 {WIDTH} {HEIGHT + ROW * len(series) + 4}"'
    return drawn.replace(f'viewBox="0 0 {WIDTH} {HEIGHT}"', taller, 1).replace("</svg>", "".join(names) + "</svg>")
