"""Hydra: pairs of any two classes, compared through a gate that is made of both.

Legend: B batch, V views, N rows of all processes, C classes, D embedding.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nearfar import distributed
from nearfar.batch import Batch
from nearfar.checks import expect
from nearfar.config import DataInfo
from nearfar.method import Progress, Terms, Views
from nearfar.methods import Frame
from nearfar.methods.frame import encode_views
from nearfar.objectives import hydra
from nearfar.objectives._shared import Temperature
from nearfar.rng import Rng

if TYPE_CHECKING:
    from nearfar_images.systems.hydra import HydraConfig

log = logging.getLogger(__name__)


class FeatureGate(nn.Module):
    """g = sigmoid(MLP((E[y] + E[p]) / 2)), MLP = ReLU, BN, Linear, ReLU, BN, Linear; the same for (y, p) and (p, y).

    Args:
        num_classes: rows of E.
        dim: features that are gated.
        label_dim: width of E.
        hidden: width between the linear layers.
    """

    def __init__(self, num_classes: int, dim: int, *, label_dim: int = 512, hidden: int = 1024) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_classes, label_dim)
        self.layers = nn.Sequential(
            nn.ReLU(), nn.BatchNorm1d(label_dim), nn.Linear(label_dim, hidden),
            nn.ReLU(), nn.BatchNorm1d(hidden), nn.Linear(hidden, dim),
        )  # fmt: skip

    def forward(self, labels: Tensor, partners: Tensor) -> Tensor:
        """Gates [B, D] between 0 and 1, of two classes [B] each."""
        expect(len(labels) >= 2 or not self.training or distributed.world() > 1, "batch", "2 samples or more, for the "
               "gate's batch norm", len(labels))  # fmt: skip
        return self.layers((self.embedding(labels) + self.embedding(partners)) / 2).sigmoid()


class Hydra(Frame):
    """`nearfar.objectives.hydra` of the layer-normalised head: the first view meets the second of all processes.

    With one view anchors meet each other. `gate` is not needed after training; `gate.eval()(y, p)` tells which features
    two classes share.

    Args:
        config: pairing, gate, probe.
        info: its `num_classes` is how many classes are embedded.
        encoder: from a view to features.
        views: one or two random views.

    Source: Wu, Atito, Feng, Mo, Kittler, Awais, "Rethinking Positive Pairs in Contrastive Learning", 2024.
    """

    config: HydraConfig

    def __init__(self, config: HydraConfig, info: DataInfo, encoder: nn.Module, views: Views) -> None:
        super().__init__(config, encoder, views)
        expect(info.num_classes >= 2, "data", "2 classes or more", info.num_classes)
        if info.num_classes == 2 and config.pairing != "identical":
            log.warning("hydra: with two classes a pair of both has no negatives, and its loss is 0")
        self.num_classes = info.num_classes
        self.norm = nn.LayerNorm(self.head.dim)
        self.gate = FeatureGate(info.num_classes, self.head.dim, label_dim=config.label_dim, hidden=config.gate_hidden)
        self.tau = Temperature(config.temperature, config.learnable_temperature)
        probe = nn.Linear(int(encoder.feature_dim), info.num_classes)  # type: ignore[arg-type]
        self.probe = probe if config.probe != "none" else None

    def views(self, batch: Batch, rng: Rng) -> Batch:
        """The batch with its random views, and what partner classes are drawn by."""
        return super().views(batch, rng) | {"draw": rng.uniform(batch["index"], "hydra.partner")[:, 0]}

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Embeddings [B, V, D], and the encoder's features where a probe needs them."""
        feature = encode_views(self.encoder, batch["views"])
        embedding = self.norm(self.head(feature.flatten(0, 1))).unflatten(0, feature.shape[:2])
        return {"embedding": embedding} | ({"feature": feature} if self.probe is not None else {})

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        """The contrast with the partner classes' samples, and the probe's cross-entropy."""
        config, z_VBD, label_B = self.config, z["embedding"].transpose(0, 1), batch["label"]
        expect(len(z_VBD) in (1, 2), "views.num_views", "1 or 2", len(z_VBD))
        label_N, every_VND = distributed.gather(label_B, grad=False), self.everyone(z_VBD)
        offset = distributed.offset(len(label_B))
        partner_B = partners(label_B, label_N, batch["draw"], offset, config.pairing, self.num_classes)
        gate_BD = self.gate(label_B, partner_B)
        own = torch.arange(len(label_B), device=label_B.device) + offset if len(z_VBD) == 1 else None
        both = [(0, 1), (1, 0)] if config.symmetric else [(0, 1)]
        losses, positives, alone = [], 0, 0
        for first, second in both if own is None else [(0, 0)]:
            loss, stats = hydra(z_VBD[first], gate_BD, label_B, partner_B, every_VND[second], label_N,
                                temperature=self.tau(), own=own, with_stats=True)  # fmt: skip
            losses.append(loss)
            positives, alone = stats.num_positives, stats.num_alone
        terms = Terms().add("hydra", torch.stack(losses).mean(), count=positives)
        entropy = F.binary_cross_entropy(gate_BD.float(), gate_BD.float(), reduction="mean")
        terms.log(gate_sum=gate_BD.float().sum(1).mean(), gate_entropy=entropy, without_negatives=alone / len(label_B))
        if self.probe is not None:
            feature = z["feature"] if config.probe == "joint" else z["feature"].detach()
            logits, label = self.probe(feature.flatten(0, 1)).float(), label_B.repeat_interleave(feature.shape[1])
            terms.add("probe", F.cross_entropy(logits, label), count=len(label))
            terms.log(accuracy=(logits.argmax(1) == label).float().mean())
        return terms

    def features(self, batch: Batch, output: str = "default") -> Tensor:
        """Encoder features [B, D] of the plain view, or the normalised head's embedding."""
        found = super().features(batch, output)
        return found if output == "default" else self.norm(found)


def partners(
    label_B: Tensor, label_N: Tensor, draw_B: Tensor, offset: int, pairing: str, num_classes: int
) -> Tensor:  # fmt: skip
    """Partner classes [B] of this process's samples.

    Args:
        label_B, label_N: classes of this process's samples, and of all.
        draw_B: uniform numbers of the samples.
        offset: where this process's samples begin among all.
        pairing: as in `HydraConfig`.
        num_classes: C.
    """
    if pairing == "identical":
        return label_B
    if pairing == "distinct":
        other = (draw_B.double() * (num_classes - 1)).long()
        return other + (other >= label_B).long()
    order_N = distributed.gather(draw_B, grad=False).argsort(stable=True)
    return label_N[order_N[offset : offset + len(label_B)]]
