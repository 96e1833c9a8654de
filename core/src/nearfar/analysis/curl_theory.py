"""CURL theory: what the contrastive loss of an encoder promises of its mean classifier, and whether it holds.

Reads features and labels; importing it loads no torch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from nearfar.checks import expect, expect_positive
from nearfar.flags import parse
from nearfar.terminal import console, print_json, table

if TYPE_CHECKING:
    from nearfar.analysis._curl_report import contrastive_loss, curl_theory, supervised_loss
    from nearfar.analysis._curl_tasks import Tasks
    from nearfar.analysis._curl_theory import collision, spread

__all__ = [
    "Contrastive",
    "CurlReport",
    "Tasks",
    "collision",
    "contrastive_loss",
    "curl_theory",
    "main",
    "spread",
    "supervised_loss",
]


@dataclass(frozen=True, kw_only=True)
class Contrastive:
    """The loss of contrast with k negatives and blocks of b points, and what it bounds.

    Args:
        num_negatives: k.
        block: b; with 1 the loss is L_un, with more L_block.
        tau: chance that a negative is of the anchor's class, one or more of k.
        loss: (1 - tau) apart + tau collided.
        error: its standard error; 0 where every combination was visited.
        apart: the loss given no collision (L_un_neq).
        collided: the loss given one or more (L_un_eq); at least `floor`.
        floor: E[ l_t(0) ] given a collision, what collisions cost whatever the encoder.
        bound: (loss - tau floor) / (1 - tau).
        mean_classifier: the mean classifier's loss on the same tasks, the anchor's class against the k others; at most
            `bound`. With k = 1 it is L_sup_mu.
        exact: whether every combination was visited.
    """

    num_negatives: int
    block: int
    tau: float
    loss: float
    error: float
    apart: float
    collided: float
    floor: float
    bound: float
    mean_classifier: float
    exact: bool


@dataclass(frozen=True, kw_only=True)
class CurlReport:
    """Everything that the theory says of one encoder.

    Args:
        loss: "logistic", in bits, or "hinge".
        num_points, num_classes: of the sample, which is taken for the whole world.
        tau: chance that two classes drawn from the prior are one.
        spread: s(f), the intraclass deviation.
        sup_mu: L_sup_mu, the mean classifier's loss over tasks of two classes.
        sup: L_sup, the best linear classifier's, from above; at most sup_mu.
        accuracy: of the mean classifier on the same tasks.
        num_fitted: tasks on which the best classifier was sought, of `num_tasks`.
        bound_a: the least of the bounds with one negative; at least sup_mu.
        bound_b: L_un_neq + c' tau / (1 - tau) s(f), with c' = 1/sqrt(2) (hinge) or 1/(sqrt(2) log 2) (logistic).
        contrastive: one entry for each number of negatives and size of block; the first is k = 1, b = 1.
    """

    loss: str
    num_points: int
    num_classes: int
    tau: float
    spread: float
    sup_mu: float
    sup: float
    accuracy: float
    num_fitted: int
    num_tasks: int
    bound_a: float
    bound_b: float
    contrastive: tuple[Contrastive, ...]


_WHERE = {
    "contrastive_loss": "_curl_report",
    "curl_theory": "_curl_report",
    "supervised_loss": "_curl_report",
    "Tasks": "_curl_tasks",
    "collision": "_curl_theory",
    "spread": "_curl_theory",
}


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        from importlib import import_module

        return getattr(import_module(f"nearfar.analysis.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@dataclass(frozen=True, kw_only=True)
class CurlOptions:
    """Losses of contrast over classes, and the bounds they put on classifiers, for embeddings with labels."""

    files: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="FILE ...")] = ()
    """.npz files with fields features [N, D] and label [N], as `nearfar images embed` writes them; prior [C] if any"""
    loss: Literal["logistic", "hinge"] = "logistic"
    """logistic is in bits, so that l(0) = 1"""
    negatives: tuple[int, ...] = (1, 4, 10)
    """numbers of negatives"""
    blocks: tuple[int, ...] = (1, 5)
    """points of a block, with one negative"""
    normalize: bool = False
    """scale features to unit length first"""
    temperature: float = 1.0
    """divides products: features are divided by its root"""
    limit: int = 10_000_000
    """visit every combination where there are at most so many, else draw"""
    draws: int = 100_000
    """of a loss that is not enumerated"""
    num_fitted: int = 200
    """tasks at most on which the best linear classifier is sought"""
    seed: int = 0
    """of the draws"""
    out: Annotated[str, tyro.conf.arg(metavar="FOLDER")] = ""
    """also write report.json and plot.svg there"""
    json: bool = False
    """print JSON and nothing else"""


def main(argv: list[str]) -> int:
    """`nearfar analyse curl_theory FILE ...`."""
    options = parse(CurlOptions, argv, "nearfar analyse curl_theory")
    expect(bool(options.files), "files", "one or more .npz files", "none")
    expect_positive("temperature", options.temperature)
    reports = [(path, _of_file(path, options)) for path in options.files]
    result = {"analysis": "curl_theory", "files": [{"file": path, **asdict(report)} for path, report in reports]}
    if options.out:
        from nearfar.analysis import _files

        _files.write(options.out, result, _plot(reports))
    if options.json:
        print_json(result)
    else:
        for path, report in reports:
            _show(path, report)
    return 0


def _of_file(path: str, options: CurlOptions) -> CurlReport:
    import torch

    from nearfar.analysis import _files
    from nearfar.analysis._curl_report import curl_theory

    arrays = _files.fields(path)
    features = torch.from_numpy(_files.matrix(path, arrays, "features", least=2))
    labels = torch.from_numpy(_files.classes(path, arrays, "label", len(features)))
    if options.normalize:
        norm = features.norm(dim=1, keepdim=True)
        zero = (norm == 0).nonzero()[:, 0].tolist()
        expect(not zero, f"file {path}: field 'features'", "no rows of length 0 with --normalize", zero[:5])
        features = features / norm
    return curl_theory(
        features / options.temperature**0.5,
        labels,
        torch.from_numpy(arrays["prior"]) if "prior" in arrays else None,
        loss=options.loss,
        num_negatives=options.negatives,
        blocks=options.blocks,
        limit=options.limit,
        draws=options.draws,
        num_fitted=options.num_fitted,
        seed=options.seed,
    )


def _show(path: str, report: CurlReport) -> None:
    unit = " in bits" if report.loss == "logistic" else ""
    out = console()
    out.print(
        f"{path}: {report.num_points:,} points of {report.num_classes} classes, {report.loss} loss{unit}",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    rows = table("negatives", "block", "tau", "loss", "error", "apart", "collided", "bound", "sup_mu")
    for c in report.contrastive:
        error = "exact" if c.exact else f"{c.error:.4f}"
        rest = (c.apart, c.collided, c.bound, c.mean_classifier)
        head = (str(c.num_negatives), str(c.block), f"{c.tau:.4f}", f"{c.loss:.4f}", error)
        rows.add_row(*head, *(f"{x:.4f}" for x in rest))
    out.print(rows)
    rows = table("over tasks of two classes", "")
    fitted = "" if report.num_fitted == report.num_tasks else f", from {report.num_fitted} of {report.num_tasks} tasks"
    for name, value in (
        ("bound A, (loss - tau) / (1 - tau)", f"{report.bound_a:.4f}"),
        ("bound B, by the intraclass deviation", f"{report.bound_b:.4f}"),
        ("mean classifier, L_sup_mu", f"{report.sup_mu:.4f}"),
        ("best linear classifier, L_sup", f"{report.sup:.4f} or less{fitted}"),
        ("accuracy of the mean classifier", f"{report.accuracy:.4f}"),
        ("intraclass deviation, s(f)", f"{report.spread:.4f}"),
    ):
        rows.add_row(name, value)
    out.print(rows)
    out.print()


def _plot(reports: list[tuple[str, CurlReport]]) -> str:
    from nearfar.analysis._plots import chart
    from nearfar.report.svg import Series

    series = []
    for path, report in reports:
        line = [c for c in report.contrastive if c.block == 1]
        x = [float(c.num_negatives) for c in line]
        start = f"{path}: " if len(reports) > 1 else ""
        series.append(Series(f"{start}bound", x, [c.bound for c in line]))
        series.append(Series(f"{start}mean classifier", x, [c.mean_classifier for c in line]))
    return chart(series, title="bound and mean classifier", x_label="negatives")
