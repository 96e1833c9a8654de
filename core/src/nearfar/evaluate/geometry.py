"""How embeddings lie in space, with and without labels, and signs of collapse.

Letters: N rows, D dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from nearfar.checks import expect
from nearfar.evaluate import inputs
from nearfar.objectives.align_uniform import uniformity


def geometry(
    z: Float[Tensor, "N D"],
    views: Float[Tensor, "N D"] | None = None,
    *,
    max_rows: int = 8192,
    seed: int = 0,
) -> dict[str, float]:
    """Measures of an embedding's spread. With u = z / |z|:

    - "alignment": mean |u_i - v_i|^2 over the pairs of `z` and `views`; 0 best, 2 for unrelated pairs;
    - "uniformity": log mean_{i != j} exp(-2 |u_i - u_j|^2); 0 when all rows are one, about -4 on a full sphere;
    - "effective_rank": exp of the entropy of s / sum s, s the singular values of z; in [1, min(N, D)];
    - "std": mean over dimensions of the deviation of u, times sqrt(D); 0 when all rows are one, 1 when they fill it;
    - "dead_dimensions": dimensions of z that do not vary;
    - "rows", "dimensions": N and D.

    Args:
        z: embeddings.
        views: row i is another view of row i of `z`.
        max_rows: uniformity is exact up to this many rows and taken from a random sample of them beyond.
        seed: of the sample.

    Raises:
        ValueError: fewer than two rows, non-finite rows (named), views of another shape.

    Notes:
        Alignment and uniformity: Wang and Isola, ICML 2020. Effective rank: Roy and Vetterli, EUSIPCO 2007. Cost
        max_rows^2 D + N D^2; pairs are tiled. Singular values come from the D x D Gram matrix in fp64, which is exact
        to about 1e-8 of the largest.
    """
    z = inputs.features("z", z)
    expect(len(z) >= 2, "z", "at least 2 rows", len(z))
    expect(max_rows >= 2, "max_rows", "2 or more", max_rows)
    unit = inputs.normalised(z)
    found = {}
    if views is not None:
        views = inputs.features("views", views)
        expect(views.shape == z.shape, "views", f"shape {tuple(z.shape)} of z", tuple(views.shape))
        found["alignment"] = float((unit - inputs.normalised(views)).square().sum(1).mean())
    sample = unit
    if len(unit) > max_rows:
        rows = torch.randperm(len(unit), generator=torch.Generator().manual_seed(seed))[:max_rows]
        sample = unit[rows.to(unit.device)]
    low, high = z.aminmax(dim=0)
    found |= {
        "uniformity": float(uniformity(sample)),
        "effective_rank": _effective_rank(z),
        "std": float(unit.std(0, correction=0).mean()) * math.sqrt(z.shape[1]),
        "dead_dimensions": float((high - low <= 1e-6 * z.abs().max()).sum()),
        "rows": float(len(z)),
        "dimensions": float(z.shape[1]),
    }
    return found


def collapse(measures: Mapping[str, float]) -> str | None:
    """A warning in plain words when the result of `geometry` looks collapsed, else None.

    Warns when "std" is below 0.05 (all rows nearly the same), when half of the dimensions do not vary, or when the
    effective rank is below 2 or below a fiftieth of what N and D allow. The bounds are far below what trained encoders
    show, so that a warning is worth reading.
    """
    rows, dimensions, rank = (measures[name] for name in ("rows", "dimensions", "effective_rank"))
    dead = measures["dead_dimensions"]
    if measures["std"] < 0.05:
        return (
            f"collapsed: all embeddings are nearly the same (spread {measures['std']:.3f} of a possible 1); the loss "
            "lacks what keeps embeddings apart, or the learning rate is too high"
        )
    if dimensions >= 2 and dead >= dimensions / 2:
        return f"partly collapsed: {dead:.0f} of {dimensions:.0f} dimensions are the same for every sample"
    possible = min(rows, dimensions)
    if possible >= 8 and rank < max(2.0, possible / 50):
        return (
            f"dimensional collapse: embeddings use about {rank:.1f} of {possible:.0f} possible directions; "
            "stronger views or a larger batch may help"
        )
    return None


def _effective_rank(z: Tensor) -> float:
    z = z.double()
    peak = z.abs().max()
    if peak == 0:
        return 0.0
    z = z / peak
    gram = z.T @ z if z.shape[0] >= z.shape[1] else z @ z.T
    values = torch.linalg.eigvalsh(gram)
    # below the rounding of the Gram matrix an eigenvalue is noise, whose root would count
    singular = values[values > values[-1] * len(gram) * torch.finfo(torch.float64).eps].sqrt()
    share = singular / singular.sum()
    return float((-(share * share.log()).sum()).exp())
