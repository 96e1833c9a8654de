"""InterCLR: a loss between views, and one between images that share a pseudo-class of a memory.

Legend: B batch, N rows of the memory, D embedding, C clusters, P negatives of an image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from nearfar import distributed
from nearfar.batch import Batch
from nearfar.checks import expect
from nearfar.config import DataInfo
from nearfar.contrast import contrast
from nearfar.memory import Bank
from nearfar.method import Engine, Progress, Terms, Views
from nearfar.methods import Contrast
from nearfar.prototypes import kmeans, repair_clusters
from nearfar.rng import Rng

if TYPE_CHECKING:
    from nearfar_images.systems.interclr import InterCLRConfig

SHARE = 50  # samples of a cluster where their number is not said
CHUNK = 1 << 24  # similarities that are held at a time
BITS = 24  # of a uniform draw


class InterCLR(Contrast):
    """The frame's loss between views, and a contrast with memory rows of the same and of other pseudo-classes.

    The memory begins with the features of the initial encoder, before the first epoch; until then, the loss is that
    between views alone.

    Args:
        config: the loss between views, clusters, negatives, margin.
        info: numbers of samples and indices.
        encoder: from a view to features.
        views: two random views.

    Attributes:
        memory: a row "feature" [D] and "label" [] of every sample; label -1: never in training.
        centroid: [C, D], means of their members.
        changed: [], share of the last batch's labels that changed.

    Raises:
        ValueError: more clusters than samples.

    Source: Xie et al., "Delving into Inter-Image Invariance for Unsupervised Visual Representations", IJCV 2022.
    """

    config: InterCLRConfig
    centroid: Tensor
    changed: Tensor
    num_updates: Tensor

    def __init__(self, config: InterCLRConfig, info: DataInfo, encoder: nn.Module, views: Views) -> None:
        super().__init__(config, encoder, views)
        num = config.num_clusters or max(2, info.num_samples // SHARE)
        expect(num <= info.num_samples, "method.num_clusters", f"at most the {info.num_samples} samples", num)
        self.min_size = max(1, min(config.min_cluster, info.num_samples // num // 2))
        self.memory = Bank(info.num_indices or info.num_samples, feature=self.head.dim, label=(0, torch.long))
        self.memory.view("label").fill_(-1)
        self.register_buffer("centroid", torch.zeros(num, self.head.dim))
        self.register_buffer("changed", torch.zeros(()))
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.long))

    @property
    def ready(self) -> bool:
        """Whether the memory has been filled."""
        return bool(self.memory.seen.any())

    # -- the step ------------------------------------------------------------------------------------------------------

    def views(self, batch: Batch, rng: Rng) -> Batch:
        """The views, and two draws a sample: which positive, and the number that its negatives are drawn by."""
        return super().views(batch, rng) | {"draw": rng.uniform(batch["index"], "interclr", 2)}

    def targets(self, batch: Batch, progress: Progress) -> dict[str, Any]:
        """Keys of the teacher, and the samples' numbers."""
        return super().targets(batch, progress) | {"index": batch["index"]}

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        """The loss between views and that between images, by their weights, which sum to 1."""
        config = self.config
        terms = super().loss(z, batch, targets, progress)
        terms.weights["contrast"] = 1 - config.inter_weight
        if not config.inter_weight or not self.ready:
            return terms
        feature_ND, label_N = self.memory.view("feature"), self.memory.view("label")
        label_B = self.memory.read("label", batch["index"])
        expect(bool((label_B >= 0).all()), "batch: index", "samples of the training data", "others")
        query_BD = normalize(z["embedding"][:, 0].float(), dim=1)
        positive_B = choose_positive(label_N, batch["index"], batch["draw"][:, 0], exclude_self=config.exclude_self)
        negative_BP = choose_negatives(
            query_BD.detach(), feature_ND, label_N, label_B, batch["draw"][:, 1],
            kind=config.negatives, num=config.num_negatives, pool=config.pool,
        )  # fmt: skip
        loss = inter_image(
            query_BD, feature_ND, positive_B, negative_BP, temperature=config.temperature, margin=config.inter_margin,
            form=config.margin_form,
        )  # fmt: skip
        terms.add("inter", loss, weight=config.inter_weight, count=len(query_BD))
        return terms.log(label_change=self.changed)

    @torch.no_grad()
    def after_update(self, z: Mapping[str, Tensor], targets: Mapping[str, Any], progress: Progress) -> None:
        """Teacher and queue; then rows, labels and, where due, centroids of the memory, small clusters repaired."""
        super().after_update(z, targets, progress)
        if not self.ready:
            return
        key = (targets["key"] if self.teacher is not None else z["embedding"])[:, -1]
        key_BD = normalize(distributed.gather(key, grad=False).float(), dim=1)
        index_B = distributed.gather(targets["index"], grad=False)
        old_B = self.memory.read("label", index_B)
        online = self.config.labels == "online"
        self.memory.write(index_B, momentum=self.config.memory_momentum, normalize=self.config.memory_momentum > 0,
                          feature=key_BD, label=old_B)  # fmt: skip
        if not online:
            return
        new_B = (self.memory.read("feature", index_B) @ self.centroid.T).argmax(1)
        self.memory.view("label")[index_B] = new_B
        self.changed.copy_((new_B != old_B).float().mean())
        self.num_updates += 1
        if int(self.num_updates) % self.config.centroid_every == 0:
            self.centroid.copy_(means(self.memory.view("feature"), self.memory.view("label"), self.centroid))
        self._repair()

    def _repair(self) -> None:
        rows = self.memory.seen
        label = self.memory.view("label")
        if int(label[rows].bincount(minlength=len(self.centroid)).min()) >= self.min_size:
            return
        found, centroid = repair_clusters(
            self.memory.view("feature")[rows], label[rows], self.centroid, min_size=self.min_size
        )
        label[rows] = found
        self.centroid.copy_(centroid)

    # -- over the whole data -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def on_epoch(self, engine: Engine) -> None:
        """Fills the memory before the first epoch; with offline labels clusters it anew when due."""
        if not self.config.inter_weight:
            return
        offline = self.config.labels == "offline" and engine.progress.epoch % self.config.cluster_every == 0
        if self.ready and not offline:
            return
        if not self.ready:
            feature, index = engine.features("embedding")
            device = self.centroid.device
            self.memory.write(index.to(device), feature=normalize(feature.to(device), dim=1),
                              label=torch.zeros_like(index).to(device))  # fmt: skip
        rows = self.memory.seen
        feature = self.memory.view("feature")[rows]
        num = len(self.centroid)
        # k-means++ costs the square of the clusters
        found = kmeans(feature, num, spherical=False, init="k-means++" if num <= 1000 else "random",
                       num_iterations=20, min_size=self.min_size, seed=engine.progress.epoch)  # fmt: skip
        self.memory.view("label")[rows] = found.label
        self.centroid.copy_(means(feature, found.label, self.centroid))


def inter_image(
    query_BD: Tensor, feature_ND: Tensor, positive_B: Tensor, negative_BP: Tensor, *, temperature: float = 0.2,
    margin: float = 0.0, form: str = "cosine",
) -> Tensor:  # fmt: skip
    """InfoNCE with rows of a memory, and a margin of the positive.

    L = mean -log [ exp((s+ - m) / t) / (exp((s+ - m) / t) + sum_j exp(s-_j / t)) ], with form "arc" cos(theta+ + m)

    Args:
        query_BD: of unit length.
        feature_ND: of unit length, without gradient.
        positive_B: a row of the memory for each query.
        negative_BP: rows of the memory, -1: none.
        temperature: t.
        margin: m; a negative one draws the boundary nearer.
        form: "cosine" or "arc".
    """
    positive_BD = feature_ND[positive_B]
    if form == "arc":  # turned away from the query by the margin: its product with it is cos(theta + m)
        along_B1 = (query_BD * positive_BD).sum(1, keepdim=True)
        across_BD = normalize(query_BD - along_B1 * positive_BD, dim=1)
        positive_BD, margin = math.cos(margin) * positive_BD - math.sin(margin) * across_BD, 0.0
    return contrast(query_BD, own_positive=positive_BD[:, None], per_anchor=(feature_ND, negative_BP),
                    temperature=temperature, margin=margin)  # fmt: skip


@torch.no_grad()
def choose_positive(label_N: Tensor, index_B: Tensor, draw_B: Tensor, *, exclude_self: bool = False) -> Tensor:
    """A random member [B] of each sample's cluster.

    Args:
        label_N: cluster of every row, -1: none.
        index_B: the samples' rows.
        draw_B: in [0, 1).
        exclude_self: not the sample itself, unless it is alone.
    """
    order_N = label_N.argsort(stable=True)
    ordered_N, label_B = label_N[order_N], label_N[index_B]
    start_B = torch.searchsorted(ordered_N, label_B)
    size_B = torch.searchsorted(ordered_N, label_B, right=True) - start_B
    if not exclude_self:
        return order_N[start_B + (draw_B * size_B).long()]
    rank_N = torch.empty_like(order_N)
    rank_N[order_N] = torch.arange(len(order_N), device=order_N.device)
    own_B = rank_N[index_B] - start_B
    place_B = (draw_B * (size_B - 1)).long()
    return order_N[start_B + torch.where(size_B > 1, place_B + (place_B >= own_B), 0)]


@torch.no_grad()
def choose_negatives(
    query_BD: Tensor, feature_ND: Tensor, label_N: Tensor, label_B: Tensor, draw_B: Tensor, *, kind: str, num: int,
    pool: float,
) -> Tensor:  # fmt: skip
    """Rows of other labels for each query, [B, P]; -1 where there are fewer than P.

    Args:
        query_BD, feature_ND: of unit length.
        label_N: of the rows, -1: takes no part.
        label_B: of the queries.
        draw_B: in [0, 1), what a query's negatives are drawn by.
        kind: "hard": the most similar; "random": drawn without replacement; "semi_hard", "semi_easy": drawn from the
            nearest, or farthest, share `pool` of the rows.
        num: P, at most the rows that are drawn from.
        pool: share of the rows, in (0, 1].
    """
    known = label_N >= 0
    total = int(known.sum())
    size = total if kind in ("random", "hard") else max(1, round(pool * total))
    num = min(num, size)
    ids_B = (draw_B * (1 << BITS)).long()
    everything = known.nonzero()[:, 0]
    found = []
    for rows in torch.arange(len(query_BD), device=query_BD.device).split(max(1, CHUNK // len(label_N))):
        own = label_B[rows, None]
        if kind == "hard":
            cosine = query_BD[rows] @ feature_ND.T
            best = cosine.masked_fill_((label_N == own) | ~known, -torch.inf).topk(num, dim=1)
            found.append(best.indices.masked_fill(best.values == -torch.inf, -1))
            continue
        if kind == "random":
            pool_RP = everything.expand(len(rows), -1)
        else:
            sign = 1.0 if kind == "semi_hard" else -1.0
            cosine = (sign * query_BD[rows]) @ feature_ND.T
            pool_RP = cosine.masked_fill_(~known, -torch.inf).topk(size, dim=1).indices
        chance = Rng().uniform(ids_B[rows], "interclr.negatives", size)
        best = chance.masked_fill_(label_N[pool_RP] == own, -1.0).topk(num, dim=1)
        found.append(pool_RP.gather(1, best.indices).masked_fill(best.values < 0, -1))
    return torch.cat(found)


@torch.no_grad()
def means(feature_ND: Tensor, label_N: Tensor, before_CD: Tensor) -> Tensor:
    """Mean [C, D] of every cluster's rows, not rescaled; empty clusters keep what they had."""
    known = label_N >= 0
    label, feature = label_N[known], feature_ND[known]
    one_CD = torch.zeros_like(before_CD).index_put_((label,), feature.to(before_CD), accumulate=True)
    count_C = label.bincount(minlength=len(before_CD))
    return torch.where((count_C > 0)[:, None], one_CD / count_C.clamp(min=1)[:, None], before_CD)
