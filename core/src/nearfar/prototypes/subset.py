"""Subsets that stand for all rows, chosen greedily by submodular gains that are recomputed only when they matter.

Legend: N rows, M views of a row, D features, n chosen rows, b candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from nearfar._tiles import no_autocast
from nearfar.checks import expect, expect_choice
from nearfar.prototypes._gains import OBJECTIVES, Similarities


class Selection(NamedTuple):
    """Chosen rows.

    Args:
        index: int64 [n], in the order of the choice.
        gain: float64 [n], what each added to the objective.
    """

    index: Tensor
    gain: Tensor


@torch.no_grad()
def lazy_greedy(
    x: Float[Tensor, "N *M D"] | None,
    num: int,
    *,
    similarity: Float[Tensor, "N N"] | None = None,
    objective: str = "facility_location",
    threshold: float = 0.0,
) -> Selection:
    """The greedy choice of `num` rows for a submodular objective, equal to the exhaustive one.

    facility_location F(S) = sum_i max_{j in S} s_ij
    graph_cut         F(S) = sum_{i not in S} sum_{j in S} s_ij
    row_sum           F(S) = sum_{j in S} sum_i s_ij

    Args:
        x: rows [N, D], or M augmented views of each [N, M, D] whose pairwise cosines are averaged; None beside
            similarity.
        num: rows to choose, from 1 to N.
        similarity: s [N, N] instead of rows; symmetric for graph_cut.
        objective: one of the three; "row_sum" has no regard for what is chosen already.
        threshold: similarities below it count as 0; 0 or more, so that gains never grow.

    Returns:
        Selection; among equal gains the earlier row. The gains of graph_cut may become negative.

    Raises:
        ValueError: both or none of x and similarity, num outside 1 to N, zero or non-finite rows, a matrix that is not
            square, finite or (for graph_cut) symmetric, threshold negative, an unknown objective.

    Notes:
        facility_location keeps bounds on gains, which only fall as the set grows, in a heap, and recomputes the top
        until it is up to date (Minoux); its value is at least 1 - 1/e of the best possible. graph_cut keeps all gains
        up to date at N operations a choice. Up to 2^24 similarities are stored; beyond that a candidate costs N D
        operations when it is looked at, and memory is O(N D + tile). The first gains cost 2 N^2 D FLOP.

    Source: Minoux, "Accelerated greedy algorithms for maximizing submodular set functions", 1978; Joshi, Mirzasoleiman,
        "Data-Efficient Contrastive Self-supervised Learning", ICML 2023.
    """
    expect_choice("objective", objective, OBJECTIVES)
    expect(threshold >= 0, "threshold", "0 or more", threshold)
    expect((x is None) != (similarity is None), "similarity", "either rows x or similarity", "both or none")
    if similarity is not None:
        source: Tensor = similarity.detach()
        square = source.ndim == 2 and source.shape[0] == source.shape[1]
        expect(square, "similarity", "shape [N, N]", tuple(source.shape))
        expect(bool(source.isfinite().all()), "similarity", "finite numbers", "nan or inf")
        expect(
            objective != "graph_cut" or torch.allclose(source, source.T), "similarity", "a symmetric matrix", "another"
        )
    else:
        assert x is not None  # the line above
        source = x
    with no_autocast(source.device):
        matrix = (
            Similarities.stored(source.detach(), threshold) if x is None else Similarities.of(_unit(source), threshold)
        )
        expect(1 <= num <= matrix.num, "num", f"a number from 1 to {matrix.num}, the rows there are", num)
        return Selection(*OBJECTIVES[objective](matrix, num))


@torch.no_grad()
def class_subset(
    x: Float[Tensor, "N *M D"],
    label: Int[Tensor, " N"],
    *,
    share: float | None = None,
    budget: Mapping[int, int] | None = None,
    min_per_class: int = 0,
    objective: str = "graph_cut",
    threshold: float = 0.0,
) -> Selection:
    """`lazy_greedy` inside every class on its own.

    Args:
        x: rows [N, D] or [N, M, D].
        label: (approximate) classes of the rows, any integers [N].
        share: part of each class, in (0, 1]: int(share * rows), at least min_per_class; or
        budget: rows of each class by its label; classes it does not name give none.
        min_per_class: least rows of a class, as far as it has them; with share.
        objective, threshold: see `lazy_greedy`.

    Returns:
        Selection over all rows: classes in ascending order, in each the order of the choice.

    Raises:
        ValueError: as `lazy_greedy`; both or none of share and budget, share outside (0, 1], a budget above the rows of
            its class or for a class that does not occur; nothing chosen at all.

    Source: Joshi, Mirzasoleiman, "Data-Efficient Contrastive Self-supervised Learning", ICML 2023 (graph_cut).
    """
    expect(tuple(label.shape) == (len(x),), "label", f"shape {(len(x),)}", tuple(label.shape))
    expect((share is None) != (budget is None), "share", "either share or budget", "both or none")
    expect(share is None or 0 < share <= 1, "share", "a number in (0, 1]", share)
    expect(min_per_class >= 0, "min_per_class", "0 or more", min_per_class)
    expect(min_per_class == 0 or share is not None, "min_per_class", "0 beside budget", min_per_class)
    classes, counts = (part.tolist() for part in label.unique(return_counts=True))
    unknown = sorted(set(budget or ()) - set(classes))
    expect(not unknown, "budget", "classes that occur", unknown)
    index, gain = [], []
    for c, count in zip(classes, counts, strict=True):
        if share is None:
            num = (budget or {}).get(c, 0)
            expect(0 <= num <= count, f"budget of class {c}", f"a number from 0 to {count}", num)
        else:
            # 0.29 * 100 is a little below 29 in binary
            num = min(count, max(min_per_class, int(share * count + 1e-9)))
        if num:
            member = (label == c).nonzero().flatten()
            found = lazy_greedy(x[member], num, objective=objective, threshold=threshold)
            index.append(member[found.index])
            gain.append(found.gain)
    expect(bool(index), "share", "at least one row of some class (or min_per_class)", share)
    return Selection(torch.cat(index), torch.cat(gain))


def _unit(x: Tensor) -> Tensor:
    """[N, D], whose products are the (mean) cosines."""
    expect(x.ndim in (2, 3) and x.numel() > 0, "x", "shape [N, D] or [N, M, D]", tuple(x.shape))
    expect(bool(x.isfinite().all()), "x", "finite features", "nan or inf")
    expect(bool((x != 0).any(-1).all()), "x", "rows that are not zero", "zero rows")
    x = F.normalize(x.detach() if x.dtype == torch.float64 else x.detach().float(), dim=-1)
    return x.mean(1) if x.ndim == 3 else x
