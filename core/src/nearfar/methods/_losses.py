"""The losses of the declarative frame: how each is made from a config, and how queries meet keys under it.

Legend: B queries, N keys of the batch (all processes) or rows of a bank, K queue, D embedding, V views.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nearfar import distributed
from nearfar.config import ContrastConfig
from nearfar.contrast import Stats, contrast
from nearfar.methods.masked import pair_loss
from nearfar.objectives import (
    DCL,
    WMSE,
    Barlow,
    InfoNCE,
    MutualInformation,
    NTXent,
    PairMargin,
    Regression,
    SupCon,
    Triplet,
    VICReg,
)
from nearfar.objectives._shared import Temperature


def make_objective(config: ContrastConfig) -> nn.Module:
    """The objective that a config names, with its options."""
    unit = config.similarity == "cosine"
    tempered: dict[str, Any] = {
        "temperature": 1.0 if config.similarity == "distance" else config.temperature,
        "learnable_temperature": config.learnable_temperature,
    }
    match config.loss:
        case "nt_xent":
            return NTXent(**tempered)
        case "dcl":
            return DCL(**tempered, vmf_sigma=config.vmf_sigma or None)
        case "supcon":
            return SupCon(**tempered, positives=config.positives)
        case "info_nce":
            return InfoNCE(**tempered)
        case "binary_nce":
            return BinaryPairs(*tempered.values())
        case "jensen_shannon" | "donsker_varadhan":
            return MutualInformation(config.loss, **tempered, normalize=unit)
        case "triplet":
            distance = "cosine" if unit else "squared"
            return Triplet(config.margin, mining=config.mining, distance=distance, normalize=unit)
        case "pair_margin":
            return PairMargin(config.margin, normalize=unit)
        case "regression":
            return Regression(config.regression, all_pairs=not config.symmetric)
        case "barlow":
            return Barlow(config.barlow.off_diagonal, config.barlow.scale)
        case "vicreg":
            return VICReg(config.vicreg.invariance, config.vicreg.variance, config.vicreg.covariance)
        case "wmse":
            return WMSE(config.wmse.size, form=config.wmse.form, eps=config.wmse.eps)


class BinaryPairs(nn.Module):
    """`pair_loss` with loss "binary_nce" and a temperature; see there.

    Args:
        temperature: fixed, or where a learnt one starts.
        learnable_temperature: learn it.
    """

    def __init__(self, temperature: float, learnable_temperature: bool) -> None:
        super().__init__()
        self.tau = Temperature(temperature, learnable_temperature)

    @property
    def temperature(self) -> float | Tensor:
        """The temperature in use."""
        return self.tau()


class Similarity(nn.Module):
    """Vectors whose products are the similarity of a query and a key.

    Args:
        kind: "cosine" and "dot" change nothing, since losses normalise themselves; "bilinear" turns the query by a
            learnt matrix that starts as the identity; "distance" gives vectors [D + 2] with product -|q - k|^2.
        dim: D.
    """

    def __init__(self, kind: str, dim: int) -> None:
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.eye(dim)) if kind == "bilinear" else None

    def query(self, q: Tensor) -> Tensor:
        """[B, D] to [B, D] or [B, D + 2]."""
        if self.weight is not None:
            return q @ self.weight
        if self.kind != "distance":
            return q
        return torch.cat([2 * q, -q.square().sum(1, keepdim=True), q.new_full((len(q), 1), -1.0)], 1)

    def key(self, k: Tensor) -> Tensor:
        """[N, D] to [N, D] or [N, D + 2]."""
        if self.kind != "distance":
            return k
        return torch.cat([k, k.new_ones(len(k), 1), k.square().sum(1, keepdim=True)], 1)


@dataclass(frozen=True)
class Keys:
    """What queries meet: keys of the batch or of a bank, which of them is each query's own, and further ones.

    Args:
        key: [N, D].
        own: [B], the row of each query's own key.
        ids: (of the queries [B], of the keys [N]); equal ones are positive.
        queue: [K, D] with its ids [K], or None.
    """

    key: Tensor
    own: Tensor
    ids: tuple[Tensor, Tensor]
    queue: tuple[Tensor, Tensor] | None = None

    def all(self) -> tuple[Tensor, Tensor]:
        """Keys and queue as one [N + K, D], and their ids."""
        if self.queue is None:
            return self.key, self.ids[1]
        rows, ids = self.queue
        return torch.cat([self.key, rows.to(self.key.dtype)]), torch.cat([self.ids[1], ids])


def meet(objective: nn.Module, similarity: Similarity, query: Tensor, keys: Keys) -> tuple[Tensor, Stats]:
    """The loss of queries [B, D] that meet keys."""
    match objective:
        case InfoNCE():
            return _info_nce(objective.temperature, similarity, query, keys)
        case SupCon():
            key, ids = keys.all()
            return contrast(query, key, labels=(keys.ids[0], ids), temperature=objective.temperature, with_stats=True)
        case BinaryPairs():
            key, ids = keys.all()
            positive = keys.ids[0][:, None] == ids
            kind = "cosine" if similarity.kind == "cosine" else "dot"
            value = pair_loss(similarity.query(query), similarity.key(key), positive, ~positive, loss="binary_nce",
                              similarity=kind, temperature=objective.temperature)  # fmt: skip
            return value, Stats(len(query), 0, None)
        case MutualInformation():
            return _information(objective, similarity, query, keys)
        case _:
            return objective(query, keys.ids[0], keys=keys.all(), with_stats=True)


def _info_nce(temperature: Any, similarity: Similarity, query: Tensor, keys: Keys) -> tuple[Tensor, Stats]:
    """Each query among all keys; with a queue, as in MoCo, among its own key and the queue."""
    form: dict[str, Any] = {"temperature": temperature, "with_stats": True}
    if similarity.kind != "cosine":
        form |= {"similarity": "dot", "normalize": ()}
    q, key = similarity.query(query), similarity.key(keys.key)
    if keys.queue is None:
        return contrast(q, key, targets=keys.own, **form)
    return contrast(q, own_positive=key[keys.own].unsqueeze(1), extra=(similarity.key(keys.queue[0]),), **form)


def _information(
    objective: MutualInformation, similarity: Similarity, query: Tensor, keys: Keys
) -> tuple[Tensor, Stats]:
    q, key = similarity.query(query), similarity.key(keys.key)
    queue = None if keys.queue is None else similarity.key(keys.queue[0])
    if objective.options["bound"] == "donsker_varadhan":
        # its logarithm stands outside the mean over queries: every process computes the whole
        everyone = q if distributed.world() == 1 else distributed.gather(q)
        return objective(everyone, key, queue=queue), Stats(1, 0, None)
    return objective(q, key[keys.own], queue=queue, gathered=key, offset=int(keys.own[0]), with_stats=True)
