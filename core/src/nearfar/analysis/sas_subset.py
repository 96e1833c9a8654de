"""The rows that contrastive pretraining needs most, chosen greedily inside every (approximate) class of a file.

Legend: N rows, M views of a row, D embedding. Importing it loads no torch.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import tyro
from rich.markup import escape

from nearfar.analysis._files import fields, matrix, write
from nearfar.checks import expect, expect_positive
from nearfar.flags import parse
from nearfar.terminal import console, print_json, table

if TYPE_CHECKING:
    from torch import Tensor

SHOWN = 6
"""classes whose gains are drawn, the largest"""


@dataclass(frozen=True, kw_only=True)
class SubsetOptions:
    """A subset of embeddings to pretrain on: the most similar to their class, none too many alike."""

    file: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FILE")]
    """.npz with features [N, D], or views of every row [N, M, D]; for --classes label or probe label [N];
    for probe also strong [N, E], features of a strong model; difficulty [N] where known; path [N] for --images"""
    share: float = 0.5
    """of every class that is kept"""
    min_per_class: int = 0
    """rows that every class keeps at least, as far as it has them"""
    classes: Literal["label", "kmeans", "probe"] = "label"
    """the field label; k-means of the features; or a linear classifier on strong, learnt where label is not -1"""
    num_classes: int = 10
    """of kmeans"""
    objective: Literal["graph_cut", "row_sum", "facility_location"] = "graph_cut"
    """row_sum: what the authors' code comes to, the rows most similar to their class, however much alike"""
    threshold: float = 0.0
    """cosines below it count as 0"""
    penalty: float = 1e-3
    """of the classifier's squared weights, beside its mean loss"""
    seed: int = 0
    """of kmeans"""
    images: str = ""
    """new folder of the chosen images, in their subfolders, to train on: hard links, copies from another disk"""
    json: bool = False
    """print JSON and nothing else"""
    out: Annotated[str, tyro.conf.arg(metavar="FOLDER")] = ""
    """folder of report.json, plot.svg, and subset.npz with index and gain of the chosen rows and class of all"""


def main(argv: list[str]) -> int:
    """`nearfar analyse sas_subset FILE`."""
    options = parse(SubsetOptions, argv, "nearfar analyse sas_subset")
    report, arrays = of_file(options)
    if options.images:
        paths = fields(options.file).get("path")
        expect(paths is not None, "images", f"a field 'path' in {options.file}", "none")
        gather(options.images, [str(p) for p in paths], arrays["index"])  # type: ignore[union-attr]
    if options.out:
        write(options.out, report, _plot(arrays))
        np.savez(Path(options.out) / "subset.npz", **arrays)  # type: ignore[arg-type]
    if options.json:
        print_json(report)
    else:
        _show(report)
    return 0


def of_file(options: SubsetOptions) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The report on a file, and the arrays index and gain [n] of the chosen rows and class [N] of all.

    Raises:
        FileNotFoundError, ValueError: a file, field or option that does not fit; the message names it.
    """
    import torch

    from nearfar.prototypes import class_subset

    arrays = fields(options.file)
    x = _views(options.file, arrays)
    label = classes_of(options, arrays, x)
    how: dict[str, Any] = {"objective": options.objective, "threshold": options.threshold}
    chosen = class_subset(
        torch.from_numpy(x), torch.from_numpy(label), share=options.share, min_per_class=options.min_per_class, **how
    )  # fmt: skip
    index = chosen.index.numpy()
    ids, counts = np.unique(label, return_counts=True)
    report: dict[str, Any] = {
        "file": options.file, "rows": len(x), "chosen": len(index), "share": options.share,
        "objective": options.objective, "classes_from": options.classes,
        "classes": [
            {"class": int(c), "rows": int(n), "chosen": int((label[index] == c).sum())}
            for c, n in zip(ids, counts, strict=True)
        ],
    }  # fmt: skip
    if "difficulty" in arrays:
        hard = _column(options.file, arrays, "difficulty", len(x), "fiu").astype(np.float64)
        everything = class_subset(torch.from_numpy(x), torch.from_numpy(label), share=1.0, **how).index.numpy()
        report["difficulty"] = {
            "chosen": float(hard[index].mean()),
            "all": float(hard.mean()),
            "rank_correlation": place_correlation(everything, label, hard),
        }
    return report, {"index": index, "gain": chosen.gain.numpy(), "class": label}


def classes_of(options: SubsetOptions, arrays: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """The (approximate) class of every row [N]."""
    import torch

    from nearfar.evaluate import fit_probe
    from nearfar.prototypes import kmeans

    mean = torch.from_numpy(x).mean(1) if x.ndim == 3 else torch.from_numpy(x)
    if options.classes == "kmeans":
        expect(1 <= options.num_classes <= len(x), "num_classes", f"1 to the {len(x)} rows", options.num_classes)
        return kmeans(mean, options.num_classes, num_restarts=5, seed=options.seed).label.numpy()
    label = _column(options.file, arrays, "label", len(x), "iubU")
    if options.classes == "label":
        return np.unique(label, return_inverse=True)[1].astype(np.int64)
    expect_positive("penalty", options.penalty)
    strong = torch.from_numpy(matrix(options.file, arrays, "strong"))
    where = f"file {options.file}: field"
    expect(len(strong) == len(x), f"{where} 'strong'", f"{len(x)} rows", len(strong))
    expect(label.dtype.kind in "iu", f"{where} 'label'", "integers, -1 where it is unknown", label.dtype)
    known = torch.from_numpy(label >= 0)
    expect(
        len(np.unique(label[label >= 0])) >= 2, f"{where} 'label'", "2 known classes or more", np.unique(label).tolist()
    )
    given = torch.from_numpy(label.astype(np.int64))[known]
    probe = fit_probe(strong[known], given, penalty=options.penalty * len(given))
    return probe.predict(strong).numpy()


def place_correlation(order: np.ndarray, label: np.ndarray, difficulty: np.ndarray) -> float:
    """Spearman's correlation of difficulty with how early a row is chosen in its class; -1: the easiest rows first.

    Args:
        order: all rows, class after class, in each as they are chosen.
        label: class of every row.
        difficulty: of every row.

    Returns:
        0 where either does not vary.
    """
    from scipy.stats import spearmanr

    expect(len(np.unique(order)) == len(label), "order", f"each of the {len(label)} rows once", len(order))
    early = np.empty(len(label))
    for c in np.unique(label):
        member = order[label[order] == c]
        early[member] = 1 - np.arange(len(member)) / len(member)
    if np.ptp(difficulty) == 0 or np.ptp(early) == 0:
        return 0.0
    result: Any = spearmanr(early, difficulty)
    return float(result.statistic)


def el2n(logits: Tensor, labels: Tensor) -> Tensor:
    """Difficulty of every row for a classifier trained a little: |softmax(logits) - one-hot(label)|, [N].

    Args:
        logits: of one network [N, C], or of several [R, N, C], whose norms are averaged.
        labels: class ids [N].

    Source: Paul, Ganguli, Dziugaite, "Deep Learning on a Data Diet", NeurIPS 2021.
    """
    from torch.nn.functional import one_hot

    expect(logits.ndim in (2, 3), "logits", "shape [N, C] or [R, N, C]", tuple(logits.shape))
    expect(logits.shape[-2:-1] == labels.shape, "labels", f"shape ({logits.shape[-2]},)", tuple(labels.shape))
    norm = (logits.softmax(-1) - one_hot(labels, logits.shape[-1])).norm(dim=-1)
    return norm.mean(0) if norm.ndim == 2 else norm


def gather(folder: str | Path, paths: list[str], index: np.ndarray) -> None:
    """A folder of the files chosen, in the subfolders where they are: hard links, copies from another disk.

    Args:
        folder: new, or empty.
        paths: of all files.
        index: which of them.

    Raises:
        ValueError: the folder has something in it.
        FileNotFoundError: one of the files is not there.
    """
    place = Path(folder)
    expect(not place.exists() or not any(place.iterdir()), "images", "a new or an empty folder", folder)
    files = [Path(path).absolute() for path in paths]
    root = Path(os.path.commonpath([file.parent for file in files]))
    place.mkdir(parents=True, exist_ok=True)
    disk = place.stat().st_dev
    for file in (files[i] for i in index.tolist()):
        expect(file.is_file(), "path", "a file", str(file), FileNotFoundError)
        target = place / file.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.stat().st_dev == disk:
            os.link(file.resolve(), target)
        else:
            shutil.copy2(file, target)


def _views(file: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The field features as finite float64, [N, D] or [N, M, D]."""
    found = arrays.get("features")
    if found is None or found.ndim != 3:
        return matrix(file, arrays, "features", least=2)
    flat = matrix(file, {"features": found.reshape(-1, found.shape[-1])}, "features", least=2)
    return flat.reshape(found.shape)


def _column(file: str, arrays: dict[str, np.ndarray], name: str, num: int, kinds: str) -> np.ndarray:
    where = f"file {file}: field {name!r}"
    expect(name in arrays, where, f"one value a row, {num}", f"the fields {', '.join(sorted(arrays))}")
    found = arrays[name]
    expect(found.dtype.kind in kinds, where, "integers or words" if "U" in kinds else "numbers", found.dtype)
    expect(found.shape == (num,), where, f"shape ({num},), one value a row", found.shape)
    expect(found.dtype.kind != "f" or bool(np.isfinite(found).all()), where, "finite numbers", "nan or inf")
    return found


def _show(report: dict[str, Any]) -> None:
    rows = table("class", "rows", "chosen")
    for row in report["classes"]:
        rows.add_row(*(str(row[name]) for name in ("class", "rows", "chosen")))
    out = console()
    out.print(rows)
    out.print(f"{report['chosen']} of {report['rows']} rows of {escape(report['file'])}", soft_wrap=True)
    if "difficulty" in report:
        hard = report["difficulty"]
        out.print(
            f"[dim]difficulty {hard['chosen']:.3f} of those chosen, {hard['all']:.3f} of all; rank correlation of "
            f"being chosen early with difficulty {hard['rank_correlation']:+.2f}[/]",
            soft_wrap=True,
        )


def _plot(arrays: dict[str, np.ndarray]) -> str:
    from nearfar.analysis._plots import chart
    from nearfar.report.svg import Series

    label = arrays["class"]
    ids, counts = np.unique(label[arrays["index"]], return_counts=True)
    series = []
    for c in ids[np.argsort(-counts, kind="stable")][:SHOWN]:
        gain = arrays["gain"][label[arrays["index"]] == c]
        series.append(Series(f"class {c}", list(range(1, len(gain) + 1)), gain.tolist()))
    return chart(series, title="what every choice adds", x_label="choice")
