"""Images inside the page: PNG as base64, in rows of neighbours and of views."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from PIL import Image

from nearfar.checks import expect

SIDE = 128  # pixels kept of the longer side: twice what is shown, for dense screens


@dataclass(frozen=True)
class NeighbourRow:
    """A query and what lies nearest to it.

    Args:
        query: uint8 [H, W, C].
        neighbours: nearest first, each uint8 [H, W, C].
        right: whether each neighbour is of the query's class; empty without labels.
        label: the query's class, shown below it.
        labels: the neighbours' classes, shown below them; may be empty.
    """

    query: np.ndarray
    neighbours: Sequence[np.ndarray]
    right: Sequence[bool] = ()
    label: str = ""
    labels: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in ("right", "labels"):
            count = len(getattr(self, name))
            expect(count in (0, len(self.neighbours)), f"neighbours: {name}", f"0 or {len(self.neighbours)}", count)


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
        cells = [_cell(row.query, f"query {row.label}".strip(), row.label or "query", "query")]
        for k, image in enumerate(row.neighbours):
            text = row.labels[k] if row.labels else ""
            if row.right:
                word = "right" if row.right[k] else "wrong"
                mark = "\u2713" if row.right[k] else "\u2717"
                cells.append(_cell(image, f"neighbour {k + 1}, {word}", f"{mark} {text}".strip(), word))
            else:
                cells.append(_cell(image, f"neighbour {k + 1}", text, ""))
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
