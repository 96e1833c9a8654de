"""Sparse codes of embeddings: trains a coder of k entries on a file, or codes a file, and tells what the codes keep.

Legend: N rows, D embedding, H latents. Importing it loads no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from nearfar.checks import expect
from nearfar.flags import parse
from nearfar.terminal import console, print_json, table

if TYPE_CHECKING:
    import numpy as np
    from scipy import sparse
    from torch import Tensor

    from nearfar.analysis._csr_codes import encode, load, save, scores, search
    from nearfar.analysis._csr_sparse import Objective, SparseCoder, code_contrast, fit, loss, top

__all__ = [
    "Objective", "SparseCoder", "code_contrast", "encode", "fit", "load", "loss", "main", "save", "scores", "search",
    "top",
]  # fmt: skip

_CODES = ("encode", "load", "save", "scores", "search")


def __getattr__(name: str) -> Any:
    if name in __all__:
        from importlib import import_module

        return getattr(import_module(f"nearfar.analysis.{'_csr_codes' if name in _CODES else '_csr_sparse'}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@dataclass(frozen=True, kw_only=True)
class CSROptions:
    """Sparse codes of embeddings, and what they keep at every number of entries."""

    file: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FILE")]
    """.npz with features [N, D] (or .npy); label [N] where there is one; pair [N, D]: what belongs to each row"""
    coder: str = ""
    """coder.safetensors of an earlier --out: nothing is trained, and the whole file is judged"""
    k: int = 8
    """entries of a code in training, and in codes.npz"""
    at: tuple[int, ...] = (2, 4, 8, 16, 32)
    """numbers of entries to judge; those above H are left out"""
    hidden: int = 0
    """latents H; 0: four times the width of the embeddings"""
    layer_norm: bool = False
    """take out every row's own mean and deviation before coding"""
    num_dead: int = 0
    """idle latents that may explain the residual at a time; 0: half of all, at most 512"""
    dead_after: int = 10
    """steps without use after which a latent is idle"""
    wide_weight: float = 0.125
    """of the reconstruction with 4 k entries"""
    dead_weight: float = 0.03125
    """of what idle latents explain"""
    contrast_weight: float = 0.1
    """of the contrast among codes"""
    temperature: float = 0.2
    """of the contrast"""
    contrast: Literal["cosine", "dot"] = "cosine"
    """dot: as the paper writes it, without temperature"""
    labels: bool = False
    """rows of one label are positives of the contrast"""
    steps: int = 3000
    batch: int = 512
    lr: float = 4e-4
    held_out: float = 0.2
    """share of the rows that are judged and not trained on"""
    seed: int = 0
    """of weights, order and split"""
    json: bool = False
    """print JSON and nothing else"""
    out: Annotated[str, tyro.conf.arg(metavar="FOLDER")] = ""
    """folder of report.json, plot.svg, coder.safetensors, and codes.npz: all rows' codes as scipy.sparse writes them"""


def main(argv: list[str]) -> int:
    """`nearfar analyse csr_sparse FILE`."""
    options = parse(CSROptions, argv, "nearfar analyse csr_sparse")
    report, coder, codes = of_file(options)
    if options.out:
        from scipy.sparse import save_npz

        from nearfar.analysis._csr_codes import save
        from nearfar.analysis._files import write

        write(options.out, report, _plot(report["at"]))
        save(coder, Path(options.out) / "coder.safetensors", report["k"])
        save_npz(Path(options.out) / "codes.npz", codes)
    if options.json:
        print_json(report)
    else:
        _show(report)
    return 0


def of_file(options: CSROptions) -> tuple[dict[str, Any], SparseCoder, sparse.csr_array]:
    """The report on a file, the coder, and the codes of all its rows.

    Raises:
        FileNotFoundError, ValueError: a file, field or option that does not fit; the message names it.
    """
    import torch

    from nearfar.analysis import _csr_codes as codes
    from nearfar.analysis import _csr_sparse as coders
    from nearfar.analysis._files import classes, fields, matrix

    arrays = fields(options.file)
    x = torch.from_numpy(matrix(options.file, arrays, "features", least=10)).float()
    y = torch.from_numpy(classes(options.file, arrays, "label", len(x))) if "label" in arrays else None
    pair = _pair(options.file, arrays, x)
    expect(not options.labels or y is not None, "labels", f"a field 'label' in {options.file}", "none")
    expect(0 < options.held_out < 1, "held_out", "a share between 0 and 1", options.held_out)
    num = min(max(1, round(options.held_out * len(x))), len(x) - 2)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(options.seed))
    query, bank = order[:num], order[num:]
    if options.coder:
        coder, k = codes.load(options.coder)
        where = f"file {options.file}: field 'features'"
        expect(x.shape[1] == coder.dim, where, f"rows of width {coder.dim}, as the coder's", x.shape[1])
    else:
        hidden, k = options.hidden or 4 * x.shape[1], options.k
        objective = coders.Objective(
            k=k, num_dead=options.num_dead or min(max(hidden // 2, 1), 512), dead_after=options.dead_after,
            wide_weight=options.wide_weight, dead_weight=options.dead_weight, contrast_weight=options.contrast_weight,
            temperature=options.temperature, contrast=options.contrast,
        )  # fmt: skip
        coder = coders.fit(
            x[bank], objective, hidden=hidden, layer_norm=options.layer_norm,
            labels=y[bank] if options.labels and y is not None else None, pair=None if pair is None else pair[bank],
            steps=options.steps, batch=options.batch, lr=options.lr, seed=options.seed,
        )  # fmt: skip
    labels = None if y is None else (y[bank], y[query])
    rows = []
    for entries in (n for n in options.at if n <= coder.hidden):
        row: dict[str, Any] = {"k": entries} | codes.scores(coder, x[bank], x[query], entries, labels)
        mean, axes = codes.principal(x[bank], min(entries, x.shape[1]))
        shown = ((x[bank] - mean) @ axes.T, (x[query] - mean) @ axes.T)
        row |= {f"pca_{n}": v for n, v in codes.dense_scores(shown, (x[bank], x[query]), labels).items()}
        rows.append(row)
    expect(bool(rows), "at", f"numbers from 1 to {coder.hidden}, the latents there are", options.at)
    made = codes.encode(coder, x, k)
    report: dict[str, Any] = {
        "file": options.file, "rows": len(x), "dim": x.shape[1], "hidden": coder.hidden, "k": k, "judged": num,
        "unused": codes.unused(made), "at": rows,
    }  # fmt: skip
    if labels is not None:
        report["dense"] = codes.dense_scores((x[bank], x[query]), (x[bank], x[query]), labels)["nearest"]
    return report, coder, made


def _pair(file: str, arrays: dict[str, np.ndarray], x: Tensor) -> Tensor | None:
    import torch

    from nearfar.analysis._files import matrix

    if "pair" not in arrays:
        return None
    pair = torch.from_numpy(matrix(file, arrays, "pair")).float()
    expect(pair.shape == x.shape, f"file {file}: field 'pair'", f"shape {tuple(x.shape)}", tuple(pair.shape))
    return pair


NAMES = {"explained": "explained", "recall": "recall@10", "nearest": "nearest", "empty": "empty"}


def _show(report: dict[str, Any]) -> None:
    out = console()
    names = [name for name in NAMES if name in report["at"][0]]
    pca = [name for name in ("pca_recall", "pca_nearest") if name in report["at"][0]]
    rows = table("k", *(NAMES[name] for name in names), *(f"PCA {NAMES[name[4:]]}" for name in pca))
    for row in report["at"]:
        rows.add_row(str(row["k"]), *(f"{row[name]:.3f}" for name in (*names, *pca)))
    out.print(rows)
    dense = f"; nearest by the embeddings themselves {report['dense']:.3f}" if "dense" in report else ""
    out.print(
        f"[dim]{report['judged']} of {report['rows']} rows judged among the others{dense}\n"
        f"{report['unused']} of {report['hidden']} latents unused; PCA: as many dimensions as a code has entries[/]"
    )


def _plot(rows: list[dict[str, Any]]) -> str:
    from nearfar.analysis._plots import chart
    from nearfar.report.svg import Series

    names = [name for name in ("recall", "pca_recall", "nearest", "pca_nearest") if name in rows[0]]
    at = [row["k"] for row in rows]
    series = [Series(name.replace("_", " "), at, [row[name] for row in rows]) for name in names]
    return chart(series, title="what codes keep", x_label="entries of a code")
