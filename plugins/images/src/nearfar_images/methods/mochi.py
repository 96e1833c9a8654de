"""MoCHi: queries against their keys, a queue, and negatives mixed for each query from its hardest ones.

Legend: B batch, V views, K queue, D embedding, P hardest keys, S mixtures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nearfar import distributed
from nearfar.batch import Batch
from nearfar.config import DataInfo
from nearfar.contrast import Stats, contrast
from nearfar.memory import others
from nearfar.method import Progress, Terms, Views
from nearfar.methods import Frame
from nearfar.negatives import hardest, mix_pairs, mix_with_query
from nearfar.rng import Rng

if TYPE_CHECKING:
    from nearfar_images.systems.mochi import MoCHiConfig

KINDS = {"pairs": 3, "with_query": 2}
"""numbers that a mixture of each kind is drawn by"""


class MoCHi(Frame):
    """MoCo whose denominator also holds mixtures; only real keys join the queue.

    Args:
        config: how many are mixed, and when.
        info: labels, where there are any, tell the share of false negatives among the hardest; they teach nothing.
        encoder: from a view to features.
        views: two random views or more.

    Notes:
        What is mixed is drawn by epoch and sample, so that it depends neither on the batch nor on the number of
        processes. Until the queue is full nothing is mixed, and until it holds something the negatives are the other
        keys of the batch. Mixtures take 3 B S D numbers.

    Source: Kalantidis, Sariyildiz, Pion, Weinzaepfel, Larlus, "Hard Negative Mixing for Contrastive Learning",
    NeurIPS 2020.
    """

    config: MoCHiConfig

    def __init__(self, config: MoCHiConfig, info: DataInfo, encoder: nn.Module, views: Views) -> None:
        kept = ("index", "label") if info.num_classes else ("index",)
        super().__init__(config, encoder, views, queued={name: (0, torch.long) for name in kept})
        self.kept = kept

    def views(self, batch: Batch, rng: Rng) -> Batch:
        """The batch with its views, and numbers [B, Q, S, 2 or 3] that choose the mixtures of each query view."""
        viewed = super().views(batch, rng)
        num_queries = self.query_views or len(viewed["views"])
        for name, kinds in KINDS.items():
            num = getattr(self.config, f"num_{name}") if rng.epoch >= getattr(self.config, f"{name}_from") else 0
            if num:
                drawn = [
                    rng.at(view=q).uniform(batch["index"], f"mochi.{name}", num * kinds) for q in range(num_queries)
                ]
                viewed[f"mix_{name}"] = torch.stack(drawn, 1).unflatten(2, (num, kinds))
        return viewed

    def targets(self, batch: Batch, progress: Progress) -> dict[str, Any]:
        """Keys of the teacher, and what is kept beside them."""
        return super().targets(batch, progress) | {name: batch[name] for name in self.kept}

    def enqueued(self, targets: Mapping[str, Any]) -> dict[str, Tensor]:
        """Keys of all processes with the number and label of their sample."""
        rows = super().enqueued(targets)
        num_views = targets["key"].shape[1]
        return rows | {n: distributed.gather(targets[n], grad=False).long().repeat(num_views) for n in self.kept}

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        """The mean over pairs of query and key views."""
        query_VBD, key_VBD = z["embedding"].transpose(0, 1), targets["key"].transpose(0, 1)
        mixed = {}
        if self.queue is not None and len(self.queue) == self.config.queue:
            mixed = {q: self._mix(query_VBD[q].detach(), q, batch) for q in range(len(query_VBD))}
        losses, accuracies = [], []
        for q, k in self.pairs(len(query_VBD), len(key_VBD)):
            loss, stats = self._contrast(query_VBD[q], key_VBD[k], batch["index"], mixed[q][0] if mixed else None)
            losses.append(loss)
            accuracies += [] if stats.accuracy is None else [stats.accuracy]
        terms = Terms().add("mochi", torch.stack(losses).mean(), count=query_VBD.shape[1])
        terms.log(mixtures=float(mixed[0][0].shape[1] if mixed else 0))
        if accuracies:
            terms.log(accuracy=torch.stack(accuracies).mean())
        false = [share for _, share in mixed.values() if share is not None]
        return terms.log(false_negatives=torch.stack(false).mean()) if false else terms

    def _contrast(self, query: Tensor, key: Tensor, index: Tensor, mixed: Tensor | None) -> tuple[Tensor, Stats]:
        assert self.queue is not None  # the config sees to it
        options: dict[str, Any] = {"temperature": self.config.temperature, "with_stats": True}
        if not len(self.queue):
            own = torch.arange(len(key), device=key.device) + distributed.offset(len(key))
            return contrast(query, distributed.gather(key, grad=False), targets=own, **options)
        if self.config.skip_own:
            options |= {"ignore": (index, index[:0]), "extra_ids": (self.queue.view("index"),)}
        extra = (self.queue.view("key"),)
        return contrast(query, own_positive=key.unsqueeze(1), extra=extra, per_anchor=mixed, **options)

    @torch.no_grad()
    def _mix(self, query_BD: Tensor, number: int, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Mixtures [B, S, D] of a query view, and the share of its hardest keys that have the query's label."""
        assert self.queue is not None  # the config sees to it
        bank, empty = self.queue.view("key"), query_BD.new_zeros(len(query_BD), 0, query_BD.shape[1])
        chosen = {name: batch[f"mix_{name}"][:, number] for name in KINDS if f"mix_{name}" in batch}
        if not chosen:
            return empty.float(), None
        allowed = others(batch["index"], self.queue.view("index")) if self.config.skip_own else None
        index_BP = hardest(query_BD, bank, self.config.num_hardest, allowed=allowed).index
        found = []
        if "pairs" in chosen:
            uniform = chosen["pairs"]
            found.append(mix_pairs(bank, index_BP, uniform.shape[1], uniform=uniform))
        if "with_query" in chosen:
            uniform = chosen["with_query"]
            found.append(mix_with_query(query_BD, bank, index_BP, uniform.shape[1], uniform=uniform))
        share = None
        if "label" in self.kept:
            share = (self.queue.view("label")[index_BP] == batch["label"].unsqueeze(1)).float().mean()
        return torch.cat(found, 1), share
