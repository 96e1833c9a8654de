"""Which features contrast keeps: class collapse and feature suppression, in a linear laboratory or of embeddings.

Without a file the laboratory runs: data of known features, and the embedding of least norm among those of least loss,
supervised, unsupervised and jointly. With files, the same scores of their embeddings.

Legend: N samples, P width of the embedding, V views, B batch, D embedding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.markup import escape

from nearfar.analysis._factors import Array, Factors, Sample
from nearfar.analysis._feature_bias import (
    Descent,
    Minimiser,
    Moments,
    descend,
    empirical,
    feature_weights,
    minimiser,
    population,
    spectral_gradient,
    spectral_loss,
    subclass_share,
    suppression,
)
from nearfar.analysis._files import classes, fields, matrix, write
from nearfar.analysis._plots import chart
from nearfar.checks import expect
from nearfar.flags import parse
from nearfar.report.svg import Series
from nearfar.terminal import console, print_json, table

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "Descent",
    "Factors",
    "Minimiser",
    "Moments",
    "Sample",
    "descend",
    "empirical",
    "feature_weights",
    "joint",
    "main",
    "minimiser",
    "population",
    "spectral_gradient",
    "spectral_loss",
    "subclass_share",
    "suppression",
]

NUM_TEST = 2000
"""fresh samples that embeddings are judged on, half of them to fit the probes"""
LOSSES = ("SCL", "joint", "UCL")
SCORES = ("probe_class", "probe_subclass", "subclass_share")


def joint(z_VBD: Tensor, labels: Tensor, *, beta: float = 0.5, temperature: float = 0.1, **options: Any) -> Tensor:
    """Supervised and unsupervised contrast of the same views: neither collapses classes nor suppresses features.

    L = beta SupCon + (1 - beta) NT-Xent

    Args:
        z_VBD: two or more views [V, B, D].
        labels: class ids [B].
        beta: share of the supervised loss in [0, 1].
        temperature: of both.
        **options: of both objectives, e.g. `offset` and `tile`.

    Raises:
        ValueError: beta outside [0, 1], and what the objectives refuse.

    Source: Xue, Joshi, Gan, Chen, Mirzasoleiman, "Which Features are Learnt by Contrastive Learning? On the Role of
    Simplicity Bias in Class Collapse and Feature Suppression", ICML 2023.
    """
    from nearfar.objectives import nt_xent, supcon

    expect(0 <= beta <= 1, "beta", "a number in [0, 1]", beta)
    supervised = supcon(z_VBD, labels, temperature=temperature, **options)
    return beta * supervised + (1 - beta) * nt_xent(z_VBD, temperature=temperature, **options)


@dataclass(frozen=True, kw_only=True)
class FeatureOptions:
    """Which features contrast keeps: a linear laboratory, or scores of embeddings where files are named."""

    files: tyro.conf.Positional[tuple[str, ...]] = ()
    """.npz files of embeddings with the fields features [N, P], label [N] and, for collapse, subclass [N]"""
    widths: tuple[int, ...] = (2, 6, 10)
    """of the laboratory's embedding"""
    beta: float = 0.5
    """share of the supervised loss in the joint one"""
    samples: int = 150
    """of the finite data, which stand beside the whole population"""
    dim: int = 200
    """of the data; more than samples: over-parametrised"""
    class_strength: float = 1.0
    subclass_strength: float = 0.7
    irrelevant: tuple[float, ...] = (2.0, 2.0, 2.0, 2.0, 2.0)
    """strengths of features that tell nothing of class and subclass"""
    flip_class: float = 0.0
    """probability that an augmentation turns the class feature's sign"""
    flip_subclass: float = 0.0
    flip_irrelevant: float = 0.0
    """0.5: the augmentation leaves nothing of the irrelevant features"""
    noise: float = 0.3
    """standard deviation of a sample's own noise, over all dimensions together"""
    augment_noise: float = 0.0
    """the same of noise that every augmentation draws anew"""
    correlation: float = 0.0
    """of class and subclass, in (-1, 1)"""
    steps: int = 0
    """of gradient descent from small weights, shown beside the closed form; 0: none"""
    seed: int = 0
    json: bool = False
    """print JSON and nothing else"""
    out: Annotated[str, tyro.conf.arg(metavar="FOLDER")] = ""
    """folder of report.json and plot.svg"""


def main(argv: list[str]) -> int:
    """`nearfar analyse feature_bias [FILE ...]`."""
    options = parse(FeatureOptions, argv, "nearfar analyse feature_bias")
    report = (
        {"files": [of_file(path, options.seed) for path in options.files]} if options.files else laboratory(options)
    )
    if options.out:
        write(options.out, report, _plot(report))
    if options.json:
        print_json(report)
    else:
        _show(report)
    return 0


def laboratory(options: FeatureOptions) -> dict[str, Any]:
    """What the minimisers of least norm keep, for every loss and width, of the population and of finite data."""
    side = math.sqrt(options.dim)
    factors = Factors(
        class_strength=options.class_strength,
        subclass_strength=options.subclass_strength,
        irrelevant=options.irrelevant,
        flips=(options.flip_class, options.flip_subclass, *(options.flip_irrelevant,) * len(options.irrelevant)),
        dim=options.dim,
        noise=options.noise / side,
        augment_noise=options.augment_noise / side,
        correlation=options.correlation,
    )
    expect(len(options.widths) >= 1, "widths", "one or more", options.widths)
    expect(options.samples >= 4, "samples", "4 or more", options.samples)
    expect(options.steps >= 0, "steps", "0 or more", options.steps)
    sample, test = factors.draw(options.samples, options.seed), factors.draw(NUM_TEST, options.seed + 1)
    rows = [
        {"data": data, "loss": name, "width": width, **_kept(moments, width, test, options)}
        for data, name, moments in _cases(factors, sample, options.beta)
        for width in options.widths
    ]
    return {"strengths": factors.strengths.tolist(), "beta": options.beta, "rows": rows}


def _cases(factors: Factors, sample: Sample, beta: float) -> Iterator[tuple[str, str, Moments]]:
    shares = dict(zip(LOSSES, (1.0, beta, 0.0), strict=True))
    for name, share in shares.items():
        yield "population", name, population(factors, share)
    for name, share in shares.items():
        yield "sample", name, empirical(sample, share)


def _kept(moments: Moments, width: int, test: Sample, options: FeatureOptions) -> dict[str, Any]:
    found = minimiser(moments, width)
    weights = feature_weights(found.weight, test.factors, moments.second)
    z, half = test.x @ found.weight.T, NUM_TEST // 2
    row = {
        "weights": weights.tolist(),
        "suppression": suppression(weights),
        "subclass_share": subclass_share(z, test.label, test.subclass),
        "probe_class": _probe(z[:half], test.label[:half], z[half:], test.label[half:]),
        "probe_subclass": _probe(z[:half], test.subclass[:half], z[half:], test.subclass[half:]),
        "loss_value": found.loss,
        "eigenvalues": found.eigenvalues[: width + 1].tolist(),
    }
    if options.steps:
        end = descend(moments, width, num_steps=options.steps, seed=options.seed)
        row["descent_loss"] = end.losses[-1]
        row["descent_weights"] = feature_weights(end.weight, test.factors, moments.second).tolist()
    return row


def of_file(path: str, seed: int = 0) -> dict[str, Any]:
    """Scores of the embeddings in a file: linear probes of class and subclass, and how far classes have collapsed.

    Args:
        path: .npz with `features` [N, P], `label` [N] and, where there is one, `subclass` [N].
        seed: of the split, half of the rows to fit the probes on and half to judge.
    """
    import numpy as np

    arrays = fields(path)
    z = matrix(path, arrays, "features", least=4)
    label = classes(path, arrays, "label", len(z))
    order = np.random.default_rng(seed).permutation(len(z))
    fit, judge = order[: len(z) // 2], order[len(z) // 2 :]
    report: dict[str, Any] = {"file": path, "rows": len(z), "width": z.shape[1]}
    report["probe_class"] = _probe(z[fit], label[fit], z[judge], label[judge])
    if "subclass" in arrays:
        subclass = classes(path, arrays, "subclass", len(z))
        report["probe_subclass"] = _probe(z[fit], subclass[fit], z[judge], subclass[judge])
        report["subclass_share"] = subclass_share(z, label, subclass)
    return report


def _probe(z: Array, y: Any, test_z: Array, test_y: Any) -> float:
    """Accuracy of a linear probe."""
    import torch

    from nearfar.evaluate import linear_probe

    return linear_probe(*(torch.from_numpy(part) for part in (z, y, test_z, test_y))).value


def _show(report: dict[str, Any]) -> None:
    out = console()
    if "files" in report:
        rows = table("file", "rows", "width", "class probe", "subclass probe", "share within")
        for row in report["files"]:
            scores = (f"{row[name]:.3f}" if name in row else "-" for name in SCORES)
            rows.add_row(escape(row["file"]), str(row["rows"]), str(row["width"]), *scores)
        out.print(rows)
    else:
        names = ("data", "loss", "width", "class", "sub", "other", "probe c", "probe s", "within")
        descent = "descent_weights" in report["rows"][0]
        rows = table(*names, *(("flow c", "flow s") if descent else ()))
        for row in report["rows"]:
            weights = row["weights"]
            kept = [weights[0], weights[1], max(weights[2:], default=0.0), *(row[name] for name in SCORES)]
            kept += row["descent_weights"][:2] if descent else []
            rows.add_row(row["data"], row["loss"], str(row["width"]), *(f"{value:.2f}" for value in kept))
        out.print(rows)
        out.print(
            "[dim]class, sub, other: weight of the feature in the embedding, of the strongest irrelevant one\n"
            "probe c, probe s: linear probes of class and subclass on unseen data[/]"
        )
        if descent:
            out.print("[dim]flow c, flow s: weights of class and subclass where gradient descent came[/]")
    out.print("[dim]within: share of the variance between subclasses that lies within classes; 0: collapsed[/]")


def _plot(report: dict[str, Any]) -> str:
    if "files" in report:
        points = {
            name: [(k, row[name]) for k, row in enumerate(report["files"], 1) if name in row] for name in SCORES[:2]
        }
        title, x_label = "linear probes of every file", "file"
    else:
        points = {
            f"{loss} {name}": [
                (row["width"], row[name])
                for row in report["rows"]
                if (row["data"], row["loss"]) == ("population", loss)
            ]
            for loss in LOSSES
            for name in SCORES[:2]
        }
        title, x_label = "linear probes by width of the embedding", "width"
    series = [Series(name, [x for x, _ in rows], [y for _, y in rows]) for name, rows in points.items() if rows]
    return chart(series, title=title, x_label=x_label)
