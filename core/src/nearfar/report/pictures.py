"""Images inside the page: PNG as base64, in rows of neighbours and of views."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import NotRequired, TypedDict

import numpy as np
from PIL import Image

from nearfar.checks import expect

SIDE = 128  # pixels kept of the longer side: twice what is shown, for dense screens


class NeighbourRow(TypedDict):
    """A query uint8 [H, W, C], its nearest `images`, nearest first, and whether each is `right`; None without labels.

    `names` are words shown below the pictures, the query's first.
    """

    query: np.ndarray
    images: Sequence[np.ndarray]
    right: Sequence[bool] | None
    names: NotRequired[Sequence[str]]


def picture(image: np.ndarray, alt: str) -> str:
    """An <img> that carries its pixels; large images are reduced, small ones shown with their pixels."""
    image = np.asarray(image)
    fits = image.ndim == 3 and image.shape[2] in (1, 3) and image.dtype == np.uint8 and image.size > 0
    expect(fits, "image", "uint8 [H, W, C] with C 1 or 3", f"{image.dtype} {image.shape}")
    small = max(image.shape[:2]) <= SIDE // 2
    made = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    made.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    made.save(out, "PNG", optimize=True)
    data = base64.b64encode(out.getvalue()).decode()
    kind = ' class="small"' if small else ""
    return f'<img{kind} src="data:image/png;base64,{data}" alt="{escape(alt)}">'


def neighbour_rows(rows: Sequence[NeighbourRow]) -> str:
    """Queries with their neighbours; right and wrong by border, line style and word."""
    out = []
    for row in rows:
        images, right = row["images"], row["right"]
        names = [str(name) for name in row.get("names") or [""] * (len(images) + 1)]
        expect(len(names) == len(images) + 1, "neighbours: names", f"{len(images) + 1} names", len(names))
        expect(right is None or len(right) == len(images), "neighbours: right", f"{len(images)} flags", right)
        cells = [_cell(row["query"], f"query {names[0]}".strip(), names[0] or "query", "query")]
        for k, (image, name) in enumerate(zip(images, names[1:], strict=True)):
            word = "" if right is None else "right" if right[k] else "wrong"
            mark = {"right": "\u2713 ", "wrong": "\u2717 "}.get(word, "")
            alt = f"neighbour {k + 1} {name} {word}"
            cells.append(_cell(image, " ".join(alt.split()), f"{mark}{name}".strip(), word))
        out.append(f'<div class="strip">{"".join(cells)}</div>')
    return f'<div class="pictures scroll">{"".join(out)}</div>'


def view_rows(rows: Sequence[Sequence[np.ndarray]]) -> str:
    """Views, one sample a row."""
    out = []
    for k, row in enumerate(rows):
        cells = [_cell(image, f"sample {k + 1}, picture {j + 1}", "", "") for j, image in enumerate(row)]
        out.append(f'<div class="strip">{"".join(cells)}</div>')
    return f'<div class="pictures views scroll">{"".join(out)}</div>'


def _cell(image: np.ndarray, alt: str, caption: str, kind: str) -> str:
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure class="{kind}">{picture(image, alt)}{below}</figure>'
