"""Alignment and uniformity of embeddings in files, beside the values of an even sphere and of a regular simplex.

Legend: N rows, D dimensions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.markup import escape

from nearfar.checks import expect, expect_positive
from nearfar.flags import parse
from nearfar.terminal import console, print_json, table

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["main", "measure", "simplex_bound", "uniform_law"]


def uniform_law(dim: int, t: float = 2.0) -> float:
    """Uniformity of a perfectly even law on the sphere in `dim` dimensions.

    log E exp(-t |u - v|^2) = -2 t + log 0F1(; D/2; t^2)

    Args:
        dim: D, 2 or more.
        t: sharpness > 0.

    Notes:
        The series has positive terms only and is summed by their logarithms: exact to rounding at every t, at O(t)
        terms. -2 t as D grows; -2 t + log I0(2 t) for D = 2, -2 t + log(sinh(2 t) / (2 t)) for D = 3.

    Example:
        >>> from nearfar.analysis.align_uniform import uniform_law
        >>> round(uniform_law(3), 4)
        -2.0798

    Source: Wang, Isola, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
    Hypersphere", ICML 2020.
    """
    expect(dim >= 2, "dim", "2 or more", dim)
    expect_positive("t", t)
    terms, log_term, k = [0.0], 0.0, 0
    while log_term > max(terms) - 40 or k < t:  # rising up to about k = t, then falling fast
        log_term += 2 * math.log(t) - math.log((dim / 2 + k) * (k + 1))
        terms.append(log_term)
        k += 1
    top = max(terms)
    return -2 * t + top + math.log(math.fsum(math.exp(term - top) for term in terms))


def simplex_bound(num: int, t: float = 2.0) -> float:
    """The least uniformity of `num` points, that of a regular simplex: -2 t N/(N - 1); D >= N - 1 attains it."""
    expect(num >= 2, "num", "2 or more", num)
    expect_positive("t", t)
    return -2 * t * num / (num - 1)


def measure(
    x: Tensor, views: Tensor | None = None, *, alpha: float = 2.0, t: float = 2.0, max_rows: int = 20000, seed: int = 0
) -> dict[str, float]:
    """Alignment and uniformity of embeddings, and what there is to compare them with.

    Args:
        x: embeddings [N, D], of any length; they are scaled to unit length.
        views: row i is another view of row i of `x`.
        alpha: exponent of the alignment.
        t: sharpness of the uniformity.
        max_rows: uniformity is exact up to this many rows and that of a random sample of them beyond.
        seed: of the sample, and of the pairs of `unrelated`.

    Returns:
        "uniformity"; "uniform_law", its value for an even sphere in D dimensions; "simplex_bound", the least that the
        rows could have; "filled", uniformity as a share of the even sphere's (0: collapsed, 1: even); with views
        "alignment" and "unrelated", the alignment of rows that are no pairs; "rows", "dimensions", and the least and
        greatest norm before scaling.

    Raises:
        ValueError: fewer than two rows, views of another shape, rows that are zero or not finite.

    Notes:
        2 max_rows^2 D FLOP in tiles; memory O(N D + tile).
    """
    import torch

    from nearfar.objectives import alignment, uniformity

    for name, rows in (("x", x), ("views", x if views is None else views)):
        expect(rows.ndim == 2 and len(rows) >= 2, name, "shape [N, D], N >= 2", tuple(rows.shape))
        expect(bool(rows.isfinite().all()), name, "finite numbers", "nan or inf")
    expect(views is None or views.shape == x.shape, "views", f"shape {tuple(x.shape)} of x",
           None if views is None else tuple(views.shape))  # fmt: skip
    expect(max_rows >= 2, "max_rows", "2 or more", max_rows)
    norms = torch.linalg.vector_norm(x.detach().double(), dim=1)
    expect(float(norms.min()) > 0, "x", "rows that are not zero", f"{int((norms == 0).sum())} zero rows")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        sample = x if len(x) <= max_rows else x[torch.randperm(len(x), generator=generator)[:max_rows].to(x.device)]
        found = {"uniformity": float(uniformity(sample, t=t))}
        law = uniform_law(x.shape[1], t) if x.shape[1] >= 2 else math.log((1 + math.exp(-4 * t)) / 2)
        found |= {"uniform_law": law, "simplex_bound": simplex_bound(len(sample), t)}
        found["filled"] = found["uniformity"] / law
        if views is not None:
            shift = int(torch.randint(1, len(x), (), generator=generator))
            found["alignment"] = float(alignment(x, views, alpha=alpha))
            found["unrelated"] = float(alignment(x, views.roll(shift, 0), alpha=alpha))
    found |= {"rows": float(len(x)), "dimensions": float(x.shape[1])}
    return found | {"least_norm": float(norms.min()), "greatest_norm": float(norms.max())}


@dataclass(frozen=True, kw_only=True)
class AlignOptions:
    """Alignment and uniformity of embeddings, one file an encoder."""

    files: tyro.conf.Positional[tuple[str, ...]]
    """.npz with the field features [N, D] and, for alignment, views [N, D]; or .npy of features"""
    views: tuple[str, ...] = ()
    """files with the other views of the same rows, one a file, instead of the field views"""
    alpha: float = 2.0
    """exponent of the alignment"""
    t: float = 2.0
    """sharpness of the uniformity"""
    max_rows: int = 20000
    """uniformity of more rows is that of a random sample"""
    seed: int = 0
    json: bool = False
    """print JSON and nothing else"""
    out: Annotated[str, tyro.conf.arg(metavar="FOLDER")] = ""
    """folder of report.json and plot.svg"""


def main(argv: list[str]) -> int:
    """`nearfar analyse align_uniform FILE ...`."""
    options = parse(AlignOptions, argv, "nearfar analyse align_uniform")
    expect(len(options.files) >= 1, "files", "one or more .npz or .npy files", "none")
    expect(
        len(options.views) in (0, len(options.files)), "views", f"none, or {len(options.files)}, one a file",
        len(options.views),
    )  # fmt: skip
    rows = [_of_file(path, k, options) for k, path in enumerate(options.files)]
    report = {"alpha": options.alpha, "t": options.t, "files": rows}
    if options.out:
        from nearfar.analysis._files import write

        write(options.out, report, _plot(rows))
    if options.json:
        print_json(report)
    else:
        _show(rows)
    return 0


def _of_file(path: str, number: int, options: AlignOptions) -> dict[str, Any]:
    import torch

    from nearfar.analysis._files import fields, matrix

    arrays = fields(path)
    x = matrix(path, arrays, "features", least=2)
    views = None
    if options.views:
        other = options.views[number]
        views = matrix(other, fields(other), "features", least=2)
    elif "views" in arrays:
        views = matrix(path, arrays, "views", least=2)
    if views is not None:
        where = f"file {options.views[number]}: field 'features'" if options.views else f"file {path}: field 'views'"
        expect(views.shape == x.shape, where, f"shape {x.shape} of the features of {path}", views.shape)
    found = measure(
        torch.from_numpy(x), None if views is None else torch.from_numpy(views),
        alpha=options.alpha, t=options.t, max_rows=options.max_rows, seed=options.seed,
    )  # fmt: skip
    return {"file": path, **found}


def _show(rows: list[dict[str, Any]]) -> None:
    out = console()
    shown = table("file", "rows", "dim", "uniformity", "even", "least", "filled", "alignment", "unrelated")
    for row in rows:
        values = (row[name] for name in ("uniformity", "uniform_law", "simplex_bound", "filled"))
        pairs = (f"{row[name]:.3f}" if name in row else "-" for name in ("alignment", "unrelated"))
        head = (escape(row["file"]), f"{row['rows']:.0f}", f"{row['dimensions']:.0f}")
        shown.add_row(*head, *(f"{value:.3f}" for value in values), *pairs)
    out.print(shown)
    out.print(
        "[dim]even: uniformity of an even sphere; least: of a regular simplex of as many points; filled: 0 collapsed, "
        "1 even\nalignment: distance of views, lower is closer; unrelated: the same of rows that are no pairs[/]"
    )


def _plot(rows: list[dict[str, Any]]) -> str:
    """Uniformity of every file, lower is more even, and where there are views their alignment."""
    from nearfar.analysis._plots import chart
    from nearfar.report.svg import Series

    numbers = [float(k) for k in range(1, len(rows) + 1)]
    series = [
        Series("uniformity", numbers, [row["uniformity"] for row in rows]),
        Series("uniformity of an even sphere", numbers, [row["uniform_law"] for row in rows]),
    ]
    pairs = [(k, row["alignment"]) for k, row in zip(numbers, rows, strict=True) if "alignment" in row]
    if pairs:
        series.append(Series("alignment", [k for k, _ in pairs], [value for _, value in pairs]))
    return chart(series, title="alignment and uniformity of every file", x_label="file")
