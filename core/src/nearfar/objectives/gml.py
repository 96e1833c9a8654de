"""GML: contrast over classes whose prior stands inside the logarithm, for long-tailed labels.

Legend: B queries, K keys, C classes, D embedding.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from nearfar._compile import eager
from nearfar._similarity import accumulation, normalize
from nearfar._tiles import no_autocast
from nearfar.checks import expect, expect_choice, expect_positive
from nearfar.contrast import Stats, contrast
from nearfar.objectives._shared import _AtLeast, reduced


@eager
def gml(
    query: Tensor,
    query_labels: Tensor,
    key: Tensor,
    key_labels: Tensor,
    class_counts: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    ids: tuple[Tensor, Tensor] | None = None,
    part: str = "both",
    reduction: str = "mean",
    tile: int | None = None,
    with_stats: bool = False,
) -> Any:
    """Cross-entropy of a query's class under kernel densities of the classes' keys, times the classes' prior.

    L = -log[ p_y S_y / sum_c p_c S_c ],  S_c = mean_{k of class c} exp(q . k / t_c),  p_c = n_c / sum n,  unit vectors

    "contrast" learns queries and keys, with t held; "bandwidth" is the same value form that learns t alone and leaves
    out keys of the query's own sample (leave-one-out likelihood); "both" is their sum.

    Args:
        query: q [B, D].
        query_labels: int64 [B], below C.
        key: k [K, D], for instance of a `ClassQueue`, whose every class has keys.
        key_labels: int64 [K].
        class_counts: n [C], samples of each class in the training set.
        temperature: t; a number, or a tensor [] or [C] that gets a gradient from "bandwidth".
        ids: numbers of the samples, ([B], [K]), for "bandwidth"; a sample has one class. None: no key is of a query's
            sample.
        part: "both", "contrast" or "bandwidth".
        reduction: "mean", "sum" or "none" ([B]).
        tile: see `contrast`.
        with_stats: also return Stats.

    Returns:
        The loss, or (loss, Stats).

    Raises:
        ValueError: a class count of 0, a label that is no class, a query whose class has no (other) key.

    Notes:
        A class mean removes what frequency does to S and the prior puts it back, as logit adjustment does; at test time
        classify without the prior. A class without keys counts as S = 0 where it is not the query's. Give t no weight
        decay. "contrast" costs what `contrast` with labels costs, "bandwidth" goes in strips: 2 B K D FLOP.

    Relations:
        With one key a class it is the cross-entropy of a cosine classifier adjusted by log p.

    Example:
        >>> import torch
        >>> from nearfar.objectives import gml
        >>> q, y = torch.tensor([[1.0, 0.0]]), torch.tensor([0])
        >>> key = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> loss = gml(q, y, key, torch.tensor([0, 1]), torch.tensor([1, 3]), temperature=0.5, part="contrast")
        >>> round(float(loss), 4)  # log(1 + 3 exp(-1/0.5))
        0.3408

    Source: Suh, Seo, "Long-Tailed Recognition by Mutual Information Maximization between Latent Features and
    Ground-Truth Labels", ICML 2023.
    """
    expect_choice("part", part, ("both", "contrast", "bandwidth"))
    num_classes = len(class_counts)
    expect(class_counts.ndim == 1 and bool((class_counts > 0).all()), "class_counts", "numbers > 0, shape [C]",
           class_counts)  # fmt: skip
    for name, labels, rows in (("query_labels", query_labels, len(query)), ("key_labels", key_labels, len(key))):
        expect(tuple(labels.shape) == (rows,), name, f"shape [{rows}]", tuple(labels.shape))
        inside = bool(((labels >= 0) & (labels < num_classes)).all())
        expect(inside, name, f"classes from 0 to {num_classes - 1}", labels)
    with no_autocast(query.device):
        kind = accumulation(query, key)
        t_C = _temperatures(temperature, num_classes, key.device).to(kind)
        q, k = (normalize(x.to(kind)) for x in (query, key))
        prior_C = (class_counts / class_counts.sum()).to(kind).log()
        num_C = torch.bincount(key_labels, minlength=num_classes)
        losses = []
        if part != "bandwidth":
            scaled = k / t_C.detach()[key_labels, None]
            losses.append(_part(q, scaled, query_labels, key_labels, prior_C, num_C, None, tile))
        if part != "contrast":
            scaled = k.detach() / t_C[key_labels, None]
            losses.append(_part(q.detach(), scaled, query_labels, key_labels, prior_C, num_C, ids, tile))
        loss_B = losses[0] if len(losses) == 1 else losses[0] + losses[1]
    expect_choice("reduction", reduction, ("mean", "sum", "none"))
    loss = reduced(loss_B, reduction)
    return (loss, Stats(len(query), 0, None)) if with_stats else loss


def _temperatures(value: float | Tensor, num_classes: int, device: torch.device) -> Tensor:
    t = value if isinstance(value, Tensor) else torch.tensor(float(value), device=device)
    expect(tuple(t.shape) in ((), (num_classes,)), "temperature", f"shape [] or [{num_classes}]", tuple(t.shape))
    expect_positive("temperature", float(t.detach().min()))
    return t.expand(num_classes)


def _part(
    q: Tensor, k: Tensor, y: Tensor, key_labels: Tensor, prior_C: Tensor, num_C: Tensor,
    ids: tuple[Tensor, Tensor] | None, tile: int | None,
) -> Tensor:  # fmt: skip
    """-log of the posterior of every query's class."""
    own_B = num_C[y]
    log_weight_K = (prior_C - num_C.clamp_min(1).log())[key_labels]
    if ids is not None:  # leave-one-out: the mean of a query's class is over the keys of other samples
        stored = ids[1].sort().values
        own_B = own_B - torch.searchsorted(stored, ids[0], right=True) + torch.searchsorted(stored, ids[0])
    mine_B = prior_C[y] - own_B.clamp_min(1).log()

    def log_weight_rows(rows: Tensor) -> Tensor:
        return torch.where(y[rows, None] == key_labels, mine_B[rows, None], log_weight_K)

    expect(bool((own_B > 0).all()), "key", "a key of every query's class (and of another sample)", own_B)
    loss_B = contrast(
        q, k, labels=(y, key_labels), positives="sum", similarity="dot", temperature=1.0, normalize=(),
        log_weight=log_weight_K if ids is None else log_weight_rows, ignore=ids, reduction="none", tile=tile,
    )  # fmt: skip
    return loss_B - prior_C[y] + own_B.to(prior_C.dtype).log()


def log_likelihood(
    query: Tensor, key: Tensor, key_labels: Tensor, num_classes: int, *, temperature: float | Tensor = 0.1
) -> Tensor:
    """log S_c [B, C] of `gml`: how likely a query is in each class, whatever the class's size; to classify by.

    Args:
        query: q [B, D].
        key: k [K, D].
        key_labels: int64 [K], below C.
        num_classes: C.
        temperature: t; a number, or a tensor [] or [C].

    Returns:
        [B, C], -inf for a class without keys.
    """
    with no_autocast(query.device):
        kind = accumulation(query, key)
        t_C = _temperatures(temperature, num_classes, key.device).to(kind)
        s_BK = normalize(query.to(kind)) @ (normalize(key.to(kind)) / t_C[key_labels, None]).t()
        label_BK = key_labels.expand_as(s_BK)
        low = s_BK.new_full((len(query), num_classes), -math.inf)
        top_BC = low.scatter_reduce(1, label_BK, s_BK, "amax")
        near_BC = torch.zeros_like(low).scatter_add(1, label_BK, (s_BK - top_BC.gather(1, label_BK)).exp())
        num_C = torch.bincount(key_labels, minlength=num_classes).clamp_min(1)
        return top_BC + (near_BC / num_C).log()


class GML(nn.Module):
    """`gml` as a Module; see there.

    Args:
        class_counts: samples of each class.
        temperature: fixed, or where the classes' learnt ones start.
        learnable_temperature: learn one a class, held at 0.01 or above; their logarithms are the parameter
            `log_temperature`.
        tile: see `contrast`.
    """

    needs_negatives = True
    distributed = "local"
    symmetric = False
    class_counts: Tensor

    def __init__(
        self, class_counts: Tensor, temperature: float = 0.1, *, learnable_temperature: bool = True,
        tile: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        expect_positive("temperature", temperature)
        self.register_buffer("class_counts", class_counts.clone())
        start = torch.full((len(class_counts),), math.log(temperature))
        self.log_temperature = nn.Parameter(start, requires_grad=learnable_temperature)
        self.part, self.tile = "both" if learnable_temperature else "contrast", tile

    @property
    def temperature(self) -> Tensor:
        """The classes' temperatures in use."""
        return _AtLeast.apply(self.log_temperature, math.log(0.01)).exp()

    def forward(
        self, query: Tensor, query_labels: Tensor, key: Tensor, key_labels: Tensor, *, part: str | None = None,
        **options: Any,
    ) -> Any:  # fmt: skip
        """The loss; further options as `gml`."""
        return gml(
            query, query_labels, key, key_labels, self.class_counts, temperature=self.temperature, tile=self.tile,
            part=part or self.part, **options,
        )  # fmt: skip
