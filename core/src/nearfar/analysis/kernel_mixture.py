"""Contrast as spectral clustering: spectrum, clusters and free embeddings of a similarity graph, or of embeddings.

Legend: N nodes or rows, D dimensions. Importing it loads no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.markup import escape

from nearfar.checks import expect
from nearfar.flags import parse
from nearfar.terminal import console, print_json, table

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from nearfar.analysis._kernel_mixture import (
        block_graph,
        eigengap,
        embed,
        identities,
        laplacian,
        leading_eigenspace,
        principal_angles,
        similarity_graph,
        spectral_clusters,
        spectrum,
        transition,
    )

__all__ = [
    "block_graph",
    "eigengap",
    "embed",
    "identities",
    "laplacian",
    "leading_eigenspace",
    "main",
    "principal_angles",
    "similarity_graph",
    "spectral_clusters",
    "spectrum",
    "transition",
]

MOST = 10
"""clusters that the gap between eigenvalues may suggest"""


def __getattr__(name: str) -> Any:
    if name in __all__:
        from importlib import import_module

        return getattr(import_module("nearfar.analysis._kernel_mixture"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@dataclass(frozen=True, kw_only=True)
class KernelOptions:
    """Spectral clustering of a similarity graph, and what contrast makes of it."""

    files: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="FILE ...")] = ()
    """.npz with features [N, D], or graph [N, N] of weights >= 0, or both, and label [N] where there is one; .npy of
    features. With views [N, D], other views of the same rows, the graph is that of the pairs, as in CLIP"""
    clusters: int = 0
    """0: where the eigenvalues make their largest step, from 2 to 10"""
    neighbours: int = 10
    """of a row, by cosine, in the graph of features"""
    temperature: float = 0.5
    """divides squared distances of the features' unit rows; twice the paper's tau"""
    embed: int = 0
    """dimensions of free embeddings with the least expected InfoNCE of the graph; 0: none"""
    gamma: float = 2.0
    """exponent of the kernel they are made with; 1: Laplacian, 2: Gaussian"""
    max_rows: int = 2000
    """of more rows a random sample is taken"""
    seed: int = 0
    json: bool = False
    """print JSON and nothing else"""
    out: Annotated[str, tyro.conf.arg(metavar="FOLDER")] = ""
    """folder of report.json, plot.svg, and of every file NUMBER.npz with row and cluster (and embedding)"""


def main(argv: list[str]) -> int:
    """`nearfar analyse kernel_mixture FILE ...`."""
    options = parse(KernelOptions, argv, "nearfar analyse kernel_mixture")
    expect(len(options.files) >= 1, "files", "one or more .npz or .npy files", "none")
    found = [of_file(path, options) for path in options.files]
    rows = [row for row, _ in found]
    report = {"temperature": options.temperature, "files": rows}
    if options.out:
        _write(options.out, report, [arrays for _, arrays in found])
    if options.json:
        print_json(report)
    else:
        _show(rows)
    return 0


def of_file(path: str, options: KernelOptions) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What is told of one file, and the arrays row and cluster (and embedding) of its sample.

    Raises:
        FileNotFoundError, ValueError: the file is not there, or a field of it is missing or does not fit.
    """
    import numpy as np
    import torch

    from nearfar.analysis import _kernel_mixture as maths
    from nearfar.analysis._files import classes, fields
    from nearfar.prototypes import kmeans

    arrays = fields(path)
    rows = _rows(path, arrays, options)
    graph, z = _inputs(path, arrays, rows, options)
    value, _ = maths.spectrum(graph)
    suggested = maths.eigengap(value, min(MOST, len(value) - 1))
    num = options.clusters or suggested
    cluster = maths.spectral_clusters(graph, num, seed=options.seed)
    report: dict[str, Any] = {
        "file": path, "rows": len(graph), "eigenvalues": value[: MOST + 1].tolist(), "suggested": suggested,
        "clusters": num, "sizes": cluster.bincount(minlength=num).tolist(),
    }  # fmt: skip
    kept = {"row": rows, "cluster": cluster.numpy()}
    label = None
    if "label" in arrays:
        label = classes(path, arrays, "label", len(arrays["graph" if "graph" in arrays else "features"]))[rows]
        report["agreement"] = _agreement(label, cluster)
    if z is not None:
        report["identity"] = maths.identities(graph, z, temperature=options.temperature)
    if "views" in arrays and z is not None:
        report["pairs"] = _pairs(path, arrays, rows, z, options.temperature)
    if options.embed:
        free = maths.embed(graph, options.embed, gamma=options.gamma, seed=options.seed)
        angles = maths.principal_angles(maths.leading_eigenspace(graph, min(options.embed, len(graph) - 1)), free)
        groups = kmeans(free, num, spherical=False, num_restarts=10, seed=options.seed).label
        report["free"] = {
            "degrees": torch.rad2deg(angles).tolist(),
            "agreement_with_spectral": _agreement(cluster.numpy(), groups),
        } | ({} if label is None else {"agreement": _agreement(label, groups)})
        kept["embedding"] = free.numpy()
    return report, {name: np.ascontiguousarray(array) for name, array in kept.items()}


def _rows(path: str, arrays: Mapping[str, np.ndarray], options: KernelOptions) -> np.ndarray:
    """The rows that are looked at, in their order."""
    import numpy as np

    name = "graph" if "graph" in arrays else "features"
    where = f"file {path}: field {name!r}"
    expect(name in arrays, f"file {path}", "a field 'features' or 'graph'", f"the fields {', '.join(sorted(arrays))}")
    expect(arrays[name].ndim == 2 and len(arrays[name]) >= 4, where, "4 rows or more", f"shape {arrays[name].shape}")
    expect(options.max_rows >= 4, "max_rows", "4 or more", options.max_rows)
    num = len(arrays[name])
    if num <= options.max_rows:
        return np.arange(num)
    return np.sort(np.random.default_rng(options.seed).permutation(num)[: options.max_rows])


def _inputs(
    path: str, arrays: Mapping[str, np.ndarray], rows: np.ndarray, options: KernelOptions
) -> tuple[Tensor, Tensor | None]:
    """The graph of the chosen rows, and their features as unit rows where there are any."""
    import torch

    from nearfar.analysis import _kernel_mixture as maths
    from nearfar.analysis._files import matrix

    z = None
    if "features" in arrays:
        x = torch.from_numpy(matrix(path, arrays, "features", least=4))
        expect("graph" not in arrays or len(x) == len(arrays["graph"]), f"file {path}: field 'features'",
               "one row a node of the graph", len(x))  # fmt: skip
        z = torch.nn.functional.normalize(x[rows], dim=1)
    if "graph" not in arrays:
        assert z is not None  # _rows saw to it that one of both is there
        expect(1 <= options.neighbours < len(rows), "neighbours", f"1 to {len(rows) - 1}", options.neighbours)
        return maths.similarity_graph(z, options.neighbours), z
    graph = matrix(path, arrays, "graph", least=4)
    where = f"file {path}: field 'graph'"
    expect(graph.shape[0] == graph.shape[1], where, "shape [N, N]", f"shape {graph.shape}")
    expect(bool((graph >= 0).all()), where, "weights of 0 or more", f"{int((graph < 0).sum())} negative ones")
    graph = graph[rows][:, rows]
    alone = int((graph.sum(1) - graph.diagonal() <= 0).sum())
    expect(alone == 0, where, "a weight above 0 in every row, its own aside", f"none in {alone} of {len(rows)} rows")
    return torch.from_numpy(graph), z


def _pairs(
    path: str, arrays: Mapping[str, np.ndarray], rows: np.ndarray, z: Tensor, temperature: float
) -> dict[str, float]:
    """Both sides of the theorem for CLIP: the graph between two sides that ties every row to its other view."""
    import torch

    from nearfar.analysis import _kernel_mixture as maths
    from nearfar.analysis._files import matrix

    other = torch.from_numpy(matrix(path, arrays, "views", least=4))
    whole = (len(arrays["features"]), z.shape[1])
    expect(tuple(other.shape) == whole, f"file {path}: field 'views'", f"shape {whole}", tuple(other.shape))
    num = len(z)
    both = torch.cat([z, torch.nn.functional.normalize(other[rows], dim=1)])
    graph = torch.eye(num, dtype=both.dtype).repeat(2, 2).tril(-1)
    side = torch.arange(2).repeat_interleave(num)
    return maths.identities(graph + graph.t(), both, temperature=temperature, side=side)


def _agreement(truth: np.ndarray, cluster: Tensor) -> dict[str, float]:
    """Adjusted Rand index and normalised mutual information; 1: the same partition, about 0: unrelated ones."""
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    found = cluster.numpy()
    return {
        "ari": float(adjusted_rand_score(truth, found)), "nmi": float(normalized_mutual_info_score(truth, found)),
    }  # fmt: skip


def _write(folder: str, report: dict[str, Any], arrays: list[dict[str, np.ndarray]]) -> None:
    from pathlib import Path

    import numpy as np

    from nearfar.analysis._files import write
    from nearfar.analysis._plots import chart
    from nearfar.report.svg import Series

    series = [
        Series(row["file"], [float(k + 1) for k in range(len(row["eigenvalues"]))], row["eigenvalues"])
        for row in report["files"]
    ]
    write(folder, report, chart(series, title="least eigenvalues of the normalised Laplacian", x_label="number"))
    for number, kept in enumerate(arrays, 1):
        np.savez(Path(folder) / f"{number}.npz", **kept)  # type: ignore[arg-type]


def _show(rows: list[dict[str, Any]]) -> None:
    out = console()
    for row in rows:
        shown = table(escape(row["file"]), "")
        shown.add_row("rows", str(row["rows"]))
        shown.add_row("eigenvalues", "  ".join(f"{value:.3f}" for value in row["eigenvalues"]))
        shown.add_row("clusters", f"{row['clusters']} (the eigenvalues suggest {row['suggested']})")
        shown.add_row("sizes", "  ".join(map(str, row["sizes"])))
        free = row.get("free", {})
        for name, found in (
            ("spectral clusters and labels", row.get("agreement")),
            ("free embeddings and spectral clusters", free.get("agreement_with_spectral")),
            ("free embeddings and labels", free.get("agreement")),
        ):
            if found:
                shown.add_row(name, f"ARI {found['ari']:.3f}, NMI {found['nmi']:.3f}")
        if free:
            angles = ", ".join(f"{angle:.1f}" for angle in free["degrees"])
            shown.add_row("free embeddings from the eigenspace", f"{angles} degrees")
        for name, label in (("identity", "InfoNCE of the graph"), ("pairs", "InfoNCE of the views")):
            if name in row:
                found = row[name]
                text = f"{found['loss']:.4f} = cut {found['cut']:.4f} + repulsion {found['repulsion']:.4f}"
                shown.add_row(label, f"{text} (differ by {abs(found['gap']):.1g})")
        out.print(shown)
        out.print()
