"""Puts the page together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from nearfar.report import curves, tables
from nearfar.report.pictures import NeighbourRow, neighbour_rows, view_rows
from nearfar.report.plane import Embedding, drawn
from nearfar.report.style import SHEET, highlight
from nearfar.report.svg import scatter, swatch

# Nothing is fetched and nothing runs, whatever a class name may hold.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write_report(
    path: str | Path,
    *,
    title: str,
    recipe: Mapping[str, Any],
    metrics: Sequence[Mapping[str, Any]],
    timings: Sequence[Mapping[str, Any]] = (),
    scores: Mapping[str, Mapping[str, Mapping[str, float]]],
    environment: Mapping[str, Any],
    embedding: Embedding | None = None,
    neighbours: Sequence[NeighbourRow] | None = None,
    views: Sequence[Sequence[np.ndarray]] | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Writes the page of a run: one HTML file that needs neither network nor script.

    Args:
        path: the file; written aside and renamed, so that nobody reads half a page.
        title: heads the page.
        recipe: the JSON form, {"recipe": name, "values": {part: {field: value}}}.
        metrics: rows of metrics.jsonl: "step" with numbers (loss, lr, alignment, ...), or "step" with "scores".
        timings: rows of timings.jsonl: "step" with numbers.
        scores: {"before": {name: {"value", "low", "high"}}, "after": {...}}; either may be absent.
        environment: versions and machine.
        embedding: the map, from `map2d`.
        neighbours: queries with their nearest images.
        views: pictures [H, W, C] uint8, one sample a row.
        notes: warnings, shown first.
    """
    name = str(recipe.get("recipe", ""))
    points, labels, names = drawn(embedding) if embedding else ([], [], [])
    body = [
        f'<header><h1>{escape(title)}</h1><p class="soft">{escape(_subtitle(name, metrics, environment))}</p></header>',
        tables.tiles(scores),
        _notes(notes),
        tables.before_after(scores),
        curves.training(metrics),
        curves.geometry(metrics),
        _map(points, labels, names) if points else "",
        _section("Nearest neighbours", "query, then its nearest in feature space", neighbour_rows(neighbours))
        if neighbours
        else "",
        _section("Views", "what the method sees, one sample a row", view_rows(views)) if views else "",
        curves.others(metrics, timings),
        tables.recipe(recipe),
        tables.environment(environment),
    ]
    style = SHEET + highlight(sorted(set(labels)))
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{style}</style></head><body><main>{''.join(body)}</main></body></html>\n"
    )
    place = Path(path)
    partial = place.with_name(f".{place.name}.partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(place)


def _subtitle(name: str, metrics: Sequence[Mapping[str, Any]], environment: Mapping[str, Any]) -> str:
    steps = [row["step"] for row in metrics if isinstance(row.get("step"), int)]
    parts = [f"recipe {name}" if name else "", f"{max(steps):,} steps" if steps else ""]
    parts.append(str(environment.get("device", "")))
    return "  \u00b7  ".join(part for part in parts if part)


def _section(heading: str, text: str, content: str) -> str:
    return f'<section><h2>{escape(heading)}</h2><p class="soft">{escape(text)}</p>{content}</section>'


def _notes(notes: Sequence[str]) -> str:
    if not notes:
        return ""
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f'<section class="notes"><h2>Warnings</h2><ul>{items}</ul></section>'


def _map(points: list[list[float]], labels: list[int], names: list[str]) -> str:
    items = [
        f'<li data-class="{k}">{swatch(k)}{escape(names[k] if k < len(names) else str(k))}</li>'
        for k in sorted(set(labels))
        if k >= 0
    ]
    legend = f'<ul class="legend">{"".join(items)}</ul>' if items else ""
    chart = scatter(points, labels, names, title="map of the embedding")
    text = f"{len(labels):,} samples in the plane; near means similar, far distances mean little"
    return _section("Map", text, f'<div class="embedding">{legend}{chart}</div>')
