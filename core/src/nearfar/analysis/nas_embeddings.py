"""Vectors of network architectures: an encoder of what untrained networks do to probes, and search by what it gives.

Legend: A architectures, M initialisations, N probes, R components, E embedding. Importing it loads no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import tyro

from nearfar.analysis._files import fields, write
from nearfar.analysis._nas_search import (
    Search,
    best_so_far,
    expected_improvement,
    guess,
    random_search,
    rank_agreement,
    search,
)
from nearfar.checks import expect
from nearfar.flags import parse
from nearfar.terminal import console, print_json, table

if TYPE_CHECKING:
    from nearfar.analysis._nas_embeddings import (
        ArchitectureEncoder,
        describe,
        embed,
        fit,
        jacobian,
        project,
        retrieval,
    )

_TORCH = ("ArchitectureEncoder", "describe", "embed", "fit", "jacobian", "project", "retrieval")
__all__ = [
    "ArchitectureEncoder", "Search", "best_so_far", "describe", "embed", "expected_improvement", "fit", "guess",
    "jacobian", "main", "project", "random_search", "rank_agreement", "retrieval", "search",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _TORCH:
        from importlib import import_module

        return getattr(import_module("nearfar.analysis._nas_embeddings"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@dataclass(frozen=True, kw_only=True)
class NASOptions:
    """Embeddings of architectures from their Jacobians, and search by them."""

    file: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FILE")]
    """.npz with jacobian [A, M, N, R] as `nearfar.analysis.nas_embeddings.describe` gives it; where there are any
    finite [A, M], accuracy [A] and parameters [A]"""
    sizes: bool = False
    """the encoder sees the logarithm of the field parameters too"""
    hidden: int = 256
    dim: int = 256
    """of the embedding"""
    temperature: float = 0.1
    steps: int = 500
    batch: int = 1024
    """architectures of a step"""
    lr: float = 5e-5
    held_out: float = 0.2
    """share of the architectures that the encoder is not trained on, for retrieval"""
    search: Search = field(default_factory=Search)
    runs: int = 20
    """searches, each from other starts"""
    seed: int = 0
    json: bool = False
    """print JSON and nothing else"""
    out: Annotated[str, tyro.conf.arg(metavar="FOLDER")] = ""
    """folder of report.json, plot.svg, embeddings.npz (embedding [A, M, E]) and encoder.safetensors"""


def main(argv: list[str]) -> int:
    """`nearfar analyse nas_embeddings FILE`."""
    options = parse(NASOptions, argv, "nearfar analyse nas_embeddings")
    report, embedding, encoder = of_file(options)
    if options.out:
        from safetensors.torch import save_file

        write(options.out, report, _plot(report))
        np.savez(Path(options.out) / "embeddings.npz", embedding=embedding)
        save_file(encoder.state_dict(), Path(options.out) / "encoder.safetensors")
    if options.json:
        print_json(report)
    else:
        _show(report)
    return 0


def of_file(options: NASOptions) -> tuple[dict[str, Any], np.ndarray, ArchitectureEncoder]:
    """The report on a file, embeddings [A, M, E], and the encoder.

    Raises:
        FileNotFoundError, ValueError: a file, field or option that does not fit; the message names it.
    """
    import torch

    from nearfar.analysis import _nas_embeddings as nas

    arrays = fields(options.file)
    j = _field(options.file, arrays, "jacobian", "fiu", (None,) * 4)
    expect(len(j) >= 10 and j.shape[1] >= 2, f"file {options.file}: field 'jacobian'",
           "shape [A, M, N, R], A >= 10 and M >= 2", f"shape {j.shape}")  # fmt: skip
    finite = np.ones(j.shape[:2], bool)
    if "finite" in arrays:
        finite = _field(options.file, arrays, "finite", "b", j.shape[:2])
    size = _field(options.file, arrays, "parameters", "fiu", (len(j),)) if options.sizes else None
    expect(size is None or bool((size > 0).all()), f"file {options.file}: field 'parameters'", "numbers > 0", "others")
    accuracy = _field(options.file, arrays, "accuracy", "fiu", (len(j),)) if "accuracy" in arrays else None
    expect(0 < options.held_out < 1, "held_out", "a share between 0 and 1", options.held_out)
    expect(options.runs >= 1, "runs", "1 or more", options.runs)
    order = np.random.default_rng(options.seed).permutation(len(j))
    num = min(max(2, round(options.held_out * len(j))), len(j) - 2)
    x, known = torch.from_numpy(j).float(), torch.from_numpy(order[num:])
    extra = None if size is None else _standard(np.log(size.astype(np.float64)))
    encoder = nas.fit(
        x[known], finite=torch.from_numpy(finite)[known], extra=None if extra is None else extra[known],
        hidden=options.hidden, dim=options.dim, temperature=options.temperature, steps=options.steps,
        batch=options.batch, lr=options.lr, seed=options.seed,
    )  # fmt: skip
    made = nas.embed(encoder, x, extra)
    report: dict[str, Any] = {
        "file": options.file, "architectures": len(j), "not_finite": int((~finite).sum()), "held_out": num,
        "retrieval": nas.retrieval(made[torch.from_numpy(order[:num])]), "chance": 1 / num,
    }  # fmt: skip
    embedding = made.numpy()
    if accuracy is not None:
        report |= searched(embedding, accuracy, options.search, options.runs, options.seed)
    return report, embedding, encoder


def searched(embedding: np.ndarray, accuracy: np.ndarray, how: Search, runs: int, seed: int = 0) -> dict[str, Any]:
    """Kendall's tau of a forest on embeddings, and the best accuracy after each evaluation, mean over runs.

    Args:
        embedding: [A, M, E].
        accuracy: [A].
        how: of `search`.
        runs: searches from other starts; random search has the same.
        seed: of the first.
    """
    x, y = embedding.astype(np.float64), accuracy.astype(np.float64)
    curves = [best_so_far(y, search(x, y, how, seed=seed + run)) for run in range(runs)]
    chance = [best_so_far(y, random_search(len(y), how.budget, seed=seed + run)) for run in range(runs)]
    return {
        "kendall": rank_agreement(x, y, seed=seed),
        "best": float(y.max()),
        "search": np.mean(curves, 0).tolist(),
        "random": np.mean(chance, 0).tolist(),
    }


def _standard(x: np.ndarray) -> Any:
    import torch

    spread = x.std()
    return torch.from_numpy((x - x.mean()) / (spread if spread > 0 else 1.0)).float()[:, None]


def _field(
    file: str, arrays: dict[str, np.ndarray], name: str, kinds: str, shape: tuple[int | None, ...]
) -> np.ndarray:
    where, wanted = f"file {file}: field {name!r}", ", ".join("*" if n is None else str(n) for n in shape)
    expect(name in arrays, where, f"an array [{wanted}]", f"the fields {', '.join(sorted(arrays))}")
    found = arrays[name]
    expect(found.dtype.kind in kinds, where, "booleans" if kinds == "b" else "numbers", found.dtype)
    fits = found.ndim == len(shape) and all(n in (None, m) for n, m in zip(shape, found.shape, strict=False))
    expect(fits, where, f"shape [{wanted}]", f"shape {found.shape}")
    expect(bool(np.isfinite(found).all()), where, "finite numbers", "nan or inf")
    return found


def _show(report: dict[str, Any]) -> None:
    out = console()
    rows = table("", "")
    rows.add_row(
        "retrieval", f"{report['retrieval']:.3f}  of {report['held_out']} held out, {report['chance']:.3f} by chance"
    )
    if "search" in report:
        rows.add_row("Kendall's tau", f"{report['kendall']:.3f}  of a random forest's guesses, five folds")
        rows.add_row("search", f"{report['search'][-1]:.4f}  after {len(report['search'])} evaluations")
        rows.add_row("random search", f"{report['random'][-1]:.4f}")
        rows.add_row("best there is", f"{report['best']:.4f}")
    out.print(rows)
    if report["not_finite"]:
        out.print(f"[dim]{report['not_finite']} initialisations whose Jacobian is not finite[/]")


def _plot(report: dict[str, Any]) -> str:
    from nearfar.analysis._plots import chart
    from nearfar.report.svg import Series

    if "search" not in report:
        chance = Series("by chance", [0, 1], [report["chance"]] * 2)
        return chart([Series("retrieval", [0, 1], [report["retrieval"]] * 2), chance], title="retrieval", x_label="")
    at = list(range(1, len(report["search"]) + 1))
    series = [Series(name, at, report[name]) for name in ("search", "random")]
    return chart(series, title="best accuracy found", x_label="evaluations")
