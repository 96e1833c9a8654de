"""Nearest neighbours by cosine, and the vote of their labels.

Letters: Q queries, N bank rows, D features, C classes, k neighbours.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nearfar.checks import expect, expect_choice, expect_positive
from nearfar.evaluate import inputs
from nearfar.evaluate.score import Score, wilson

QUERY_TILE, BANK_TILE = 512, 16384  # a tile of similarities takes 32 MiB in fp32


def knn(
    train_x: Float[Tensor, "N D"],
    train_y: Int[Tensor, " N"],
    test_x: Float[Tensor, "Q D"],
    test_y: Int[Tensor, " Q"],
    *,
    k: int = 5,
    weights: Literal["uniform", "softmax"] = "uniform",
    temperature: float = 0.07,
    confidence: float = 0.95,
) -> Score:
    """Accuracy of the cosine k-nearest-neighbour vote, with Wilson's interval.

    Args:
        train_x, train_y: the bank and its class ids.
        test_x, test_y: queries and their class ids; a class that the bank lacks counts as wrong.
        k, weights, temperature: see `predict`.
        confidence: of the interval.

    Raises:
        ValueError: as `predict`, and unequal widths, or labels that do not fit.
    """
    predicted = predict(train_x, train_y, test_x, k=k, weights=weights, temperature=temperature)
    truth = inputs.labels("test_y", test_y, len(test_x)).to(predicted.device)
    return wilson(int((predicted == truth).sum()), len(truth), confidence)


def predict(
    train_x: Float[Tensor, "N D"],
    train_y: Int[Tensor, " N"],
    test_x: Float[Tensor, "Q D"] | None = None,
    *,
    k: int = 5,
    weights: Literal["uniform", "softmax"] = "uniform",
    temperature: float = 0.07,
) -> Int[Tensor, " Q"]:
    """Class ids by the vote of the k nearest rows of the bank; among equal votes the smallest id.

    Args:
        train_x, train_y: the bank and its class ids.
        test_x: queries; None: every row of the bank, judged by the others (leave one out).
        k: neighbours.
        weights: "uniform" counts votes; "softmax" weighs a vote by exp(cosine / temperature), as instance
            discrimination does (Wu et al., CVPR 2018).
        temperature: divides the cosine.

    Raises:
        ValueError: non-finite features (the row is named), a single class, k beyond the bank, unknown weights.

    Notes:
        Memory is O(tile^2 + Q C / Q tiles): votes are summed by scatter-add, without a one-hot tensor.
    """
    expect_choice("weights", weights, ("uniform", "softmax"))
    expect_positive("temperature", temperature)
    train_x = inputs.features("train_x", train_x)
    ids_C, label_N = inputs.classes("train_y", inputs.labels("train_y", train_y, len(train_x)).to(train_x.device))
    cosine_Qk, index_Qk = neighbours(train_x, test_x, k=k)
    out = []
    for cosine, index in zip(cosine_Qk.split(QUERY_TILE), index_Qk.split(QUERY_TILE), strict=True):
        vote = torch.ones_like(cosine) if weights == "uniform" else ((cosine - cosine[:, :1]) / temperature).exp()
        votes_QC = vote.new_zeros(len(vote), len(ids_C)).scatter_add_(1, label_N[index], vote)
        out.append(ids_C[votes_QC.argmax(1)])
    return torch.cat(out)


def neighbours(
    bank_x: Float[Tensor, "N D"], query_x: Float[Tensor, "Q D"] | None = None, *, k: int
) -> tuple[Float[Tensor, "Q k"], Int[Tensor, "Q k"]]:
    """Cosines and bank rows of the k nearest neighbours, nearest first; among equal cosines the earlier row.

    Args:
        bank_x: the bank.
        query_x: queries; None: every row of the bank, without itself.
        k: neighbours, at most the rows there are.

    Raises:
        ValueError: non-finite or empty features, unequal widths, k below 1 or beyond the bank.

    Notes:
        Tiles over queries and bank with a running top k: Q x N similarities never exist. A zero row has cosine 0 to
        everything.
    """
    bank = inputs.normalised(inputs.features("bank_x", bank_x))
    leave_out = query_x is None
    query = bank if query_x is None else inputs.normalised(inputs.features("query_x", query_x))
    inputs.same_width(bank, query)
    query = query.to(bank.dtype)
    available = len(bank) - leave_out
    expect(1 <= k <= available, "k", f"a number of neighbours in [1, {available}], the rows of the bank", k)
    cosines, indices = [], []
    for start in range(0, len(query), QUERY_TILE):
        rows = query[start : start + QUERY_TILE]
        best: tuple[Tensor, Tensor] | None = None
        for first in range(0, len(bank), BANK_TILE):
            tile = rows @ bank[first : first + BANK_TILE].T
            if leave_out:
                tile[_own(start, first, tile)] = -torch.inf
            cosine, index = _top(tile, min(k, tile.shape[1]))
            index += first
            if best is not None:  # earlier rows stand first, so that a stable sort keeps them first among equals
                cosine, index = torch.cat([best[0], cosine], 1), torch.cat([best[1], index], 1)
                cosine, order = cosine.sort(dim=1, descending=True, stable=True)
                cosine, index = cosine[:, :k], index.gather(1, order[:, :k])
            best = cosine, index
        assert best is not None
        cosines.append(best[0])
        indices.append(best[1])
    return torch.cat(cosines), torch.cat(indices)


def _own(start: int, first: int, tile: Tensor) -> tuple[Tensor, Tensor]:
    """Where the tile holds a query's similarity to itself."""
    low, high = max(start, first), min(start + tile.shape[0], first + tile.shape[1])
    same = torch.arange(low, max(low, high), device=tile.device)
    return same - start, same - first


def _top(tile: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row in order, the earlier column first among equals, which topk alone does not promise."""
    more = min(k + 1, tile.shape[1])
    value, index = tile.topk(more, dim=1)
    index, order = index.sort(dim=1)
    value, order = value.gather(1, order).sort(dim=1, descending=True, stable=True)
    index = index.gather(1, order)
    if more > k:
        # equal values across the cut: which of them topk took is chance; those rows are sorted in full
        rows = (value[:, k - 1] == value[:, k]).nonzero().flatten()
        if len(rows):
            full, order = tile[rows].sort(dim=1, descending=True, stable=True)
            value[rows], index[rows] = full[:, :more], order[:, :more]
    return value[:, :k], index[:, :k]
