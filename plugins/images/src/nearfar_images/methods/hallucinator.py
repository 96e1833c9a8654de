"""Hallucinated positives for MoCo, SimCLR and SimSiam.

Legend: B batch, V views, N rows of all processes, D embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nearfar import distributed
from nearfar.batch import Batch
from nearfar.checks import expect
from nearfar.contrast import Stats, contrast
from nearfar.method import Progress, Terms, Views
from nearfar.methods import Frame
from nearfar.objectives import info_nce, nt_xent
from nearfar.rng import Rng

if TYPE_CHECKING:
    from nearfar_images.systems.hallucinator import HallucinatorConfig


class Hallucinator(Frame):
    """The base's loss over the pairs (q, k) and (h, k), with h = `module`([q, e]) and e = `extrapolate`(q, k, r).

    r is drawn once a step and pair of views, from 0 to `ratio`. The module is used in training alone.

    Args:
        config: base, ratio, what of it is on.
        encoder: from a view to features.
        views: random views; `views.centred_views` makes the first one a centre crop.

    Source: Wu, Hobbs, Hovakimyan, "Hallucination Improves the Performance of Unsupervised Visual Representation
        Learning", ICCV 2023.
    """

    config: HallucinatorConfig

    def __init__(self, config: HallucinatorConfig, encoder: nn.Module, views: Views) -> None:
        super().__init__(config, encoder, views)
        self.module = make_module(self.head.dim) if config.hallucinate == "both" else None

    def views(self, batch: Batch, rng: Rng) -> Batch:
        """The batch with its random views, and the seed that ratios are drawn by."""
        return super().views(batch, rng) | {"seed": rng.seed}

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        """The base's loss, and how similar queries and hallucinated ones are to their partners."""
        config, query_VBD = self.config, z["embedding"].transpose(0, 1)
        # every step and pair its own, the same on all processes
        draws = Rng(batch["seed"], progress.step).uniform(torch.arange(64), "hallucinator.ratio")[:, 0]
        ratios = iter((config.ratio * draws).tolist())
        if config.base == "moco":
            loss, stats = self._moco(query_VBD, targets["key"].transpose(0, 1), ratios)
        else:
            expect(len(query_VBD) == 2, "views.num_views", f"2 with base {config.base!r}", len(query_VBD))
            if config.base == "simclr":
                loss, stats = self._simclr(query_VBD, next(ratios))
            else:
                loss, stats = self._simsiam(query_VBD, z["projection"].transpose(0, 1), ratios)
        return Terms().add(config.base, loss, count=stats.num_anchors)

    def hallucinate(self, query: Tensor, partner: Tensor, ratio: float) -> Tensor:
        """Queries [B, D] or [2 B, D], those given followed by those made of them."""
        if self.config.hallucinate == "none":
            return query
        if self.config.normalize_first:
            query, partner = F.normalize(query, dim=1), F.normalize(partner, dim=1)
        made = extrapolate(query, partner, ratio)
        if self.module is not None:
            made = self.module(torch.cat([query, made], 1))
        return torch.cat([query, made])

    def _moco(self, query_VBD: Tensor, key_WBD: Tensor, ratios: Any) -> tuple[Tensor, Stats]:
        """Queries, given and made, among the keys of the queue; while it is empty, among those of the batch."""
        config, losses, stats = self.config, [], Stats(0, 0, None)
        key_WBD = F.normalize(key_WBD.float(), dim=-1)
        bank = self.queue.view("key") if self.queue is not None and len(self.queue) else None
        for q, k in self.pairs(len(query_VBD), len(key_WBD)):
            queries = self.hallucinate(query_VBD[q], key_WBD[k], next(ratios))
            times = len(queries) // len(query_VBD[q])
            if bank is not None:
                loss, stats = info_nce(queries, key_WBD[k].repeat(times, 1), bank, temperature=config.temperature,
                                       with_stats=True)  # fmt: skip
            else:
                key_ND = distributed.gather(key_WBD[k], grad=False)
                own = torch.arange(len(query_VBD[q]), device=key_ND.device) + distributed.offset(len(query_VBD[q]))
                loss, stats = contrast(queries, key_ND, targets=own.repeat(times), temperature=config.temperature,
                                       with_stats="counts")  # fmt: skip
            losses.append(loss)
        return torch.stack(losses).mean(), stats

    def _simclr(self, query_VBD: Tensor, ratio: float) -> tuple[Tensor, Stats]:
        """NT-Xent of [q; h] with [k; k]; embeddings of one image are positives or nothing to each other."""
        first, second = query_VBD
        every = self.hallucinate(first, second, ratio)
        times = len(every) // len(first)
        stacked_VBD = torch.cat([every.unflatten(0, (times, -1)), second.expand(times, *second.shape)])
        if self.config.keep_twins:
            return self._nt_xent(stacked_VBD)
        every_VND, offset = self.everyone(stacked_VBD), distributed.offset(len(first))
        num, num_all = len(first), every_VND.shape[1]
        sample_B = torch.arange(num, device=first.device) + offset
        view = torch.arange(2 * times, device=first.device)
        own = (view[:, None] * num_all + sample_B).flatten()
        partner = (((view + times) % (2 * times))[:, None] * num_all + sample_B).flatten()
        ids = sample_B.repeat(2 * times), torch.arange(num_all, device=first.device).repeat(2 * times)
        return contrast(
            stacked_VBD.flatten(0, 1), every_VND.flatten(0, 1), targets=partner, own=own, ignore=ids,
            temperature=self.config.temperature, with_stats="counts",
        )  # fmt: skip

    def _nt_xent(self, stacked_VBD: Tensor) -> tuple[Tensor, Stats]:
        """NT-Xent of all queries with all partners, twins among the negatives.

        Each process's two halves stand together, so that one offset tells where they are among all.
        """
        first, second = (half.flatten(0, 1) for half in stacked_VBD.chunk(2))
        if distributed.world() == 1:
            return nt_xent(first, second, temperature=self.config.temperature, with_stats=True)
        gathered = [distributed.gather(half) for half in (first, second)]
        return nt_xent(first, second, temperature=self.config.temperature, gathered=gathered,
                       offset=distributed.offset(len(first)), with_stats=True)  # fmt: skip

    def _simsiam(self, query_VBD: Tensor, target_VBD: Tensor, ratios: Any) -> tuple[Tensor, Stats]:
        """Minus the cosine of what the predictor says, given and made, and the other view's projection."""
        losses = []
        for q, k in ((0, 1), (1, 0)):
            queries = self.hallucinate(query_VBD[q], query_VBD[k], next(ratios))
            target = target_VBD[k].detach().repeat(len(queries) // len(target_VBD[k]), 1)
            losses.append(-F.cosine_similarity(queries.float(), target.float(), dim=1).mean())
        return torch.stack(losses).mean(), Stats(query_VBD.shape[1], 0, None)


def extrapolate(query: Tensor, partner: Tensor, ratio: float) -> Tensor:
    """e = (1 + r) q - r k: the query moved on, away from its partner.

    Args:
        query: [B, D].
        partner: [B, D]; its gradient is the caller's choice.
        ratio: r, 0 or more.

    Returns:
        [B, D]. For unit q and k of cosine c, cos(e, k) = ((1 + r) c - r) / sqrt((1 + r)^2 + r^2 - 2 r (1 + r) c).

    Raises:
        ValueError: another shape of partners, a negative ratio.
    """
    expect(query.shape == partner.shape, "partner", f"the shape of query, {tuple(query.shape)}", tuple(partner.shape))
    expect(ratio >= 0, "ratio", "0 or more", ratio)
    return (1 + ratio) * query - ratio * partner


def make_module(dim: int) -> nn.Sequential:
    """The network [B, 2 D] -> [B, D] that smooths an extrapolation, of three linear layers."""
    wide = 2 * dim
    return nn.Sequential(nn.Linear(wide, wide), nn.ReLU(), nn.Linear(wide, wide), nn.ReLU(), nn.Linear(wide, dim))
