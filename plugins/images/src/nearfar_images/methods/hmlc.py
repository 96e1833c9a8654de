"""Contrast on several levels of labels in features of their own, rebuilt from what is published.

Legend: B batch, V views, N rows of all processes, D embedding, H levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nearfar import distributed
from nearfar.batch import Batch
from nearfar.checks import expect
from nearfar.memory import Queue
from nearfar.method import Engine, Progress, Terms, Views
from nearfar.methods import Frame
from nearfar.objectives import hmce, hmlc, path_ids
from nearfar.prototypes import level_masks

if TYPE_CHECKING:
    from nearfar_images.systems.hmlc import HMLCConfig


class HMLC(Frame):
    """`nearfar.objectives.hmlc` of the head's embeddings, whose masks are learnt or fitted; `path` holds the labels.

    attention  m_h = sigmoid(a_h(z)) or D softmax(a_h(z)), a_h of two linear layers, the first D / 4 wide
    mixture    m_h of `nearfar.prototypes.level_masks`, fitted to the latest embeddings between epochs, 1 before

    A reconstruction: the paper's heads, what its mixture is fitted to and its weights were not read.

    Args:
        config: form, levels, weights.
        encoder: from a view to features.
        views: random views.

    Source: after Ott, Vysotskaya, Sun, Servadei, Wille, "Feature Identification for Hierarchical Contrastive
        Learning", 2025.
    """

    config: HMLCConfig
    masks: Tensor

    def __init__(self, config: HMLCConfig, encoder: nn.Module, views: Views) -> None:
        super().__init__(config, encoder, views)
        dim = self.head.dim
        width = max(dim // 4, 1)
        self.attention = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, width), nn.ReLU(), nn.Linear(width, dim))
            for _ in range(config.levels if config.form == "attention" else 0)
        )
        if config.form == "mixture":
            expect(dim >= config.levels, "method.head.dim", f"{config.levels} or more, one a level", dim)
            self.register_buffer("masks", torch.ones(config.levels, dim))
            self.samples = Queue(config.samples, embedding=dim, path=(config.levels, torch.long))

    def targets(self, batch: Batch, progress: Progress) -> dict[str, Any]:
        """Paths of the samples, which the mixture keeps beside their embeddings."""
        path_BH, levels = batch["path"], self.config.levels
        expect(path_BH.shape[1] == levels, "method.levels", f"{path_BH.shape[1]}, those of data.levels", levels)
        return super().targets(batch, progress) | {"path": path_BH}

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        """The levels' contrasts, and how like the masks are."""
        config, z_VBD, path_BH = self.config, z["embedding"].transpose(0, 1), batch["path"]
        count = z_VBD.shape[0] * z_VBD.shape[1]
        if config.form == "hmce":
            every_NH = distributed.gather(path_BH, grad=False)
            loss = hmce(self.everyone(z_VBD), every_NH, temperature=config.temperature)
            return Terms().add("hmce", loss, count=count)
        masks = self._masks(z_VBD)
        every_VND, offset = self.gathered(z_VBD)
        gathered: tuple[Any, ...] | None = None
        if every_VND is not None:
            gathered = (every_VND, distributed.gather(path_BH, grad=False))
            if masks is not None and masks.ndim == 4:
                gathered += (distributed.gather(masks.permute(2, 0, 1, 3).contiguous()).permute(1, 2, 0, 3),)
        weight = [0.0] * (config.levels - 1) + [1.0] if config.level_weight == "finest" else config.level_weight
        loss, levels_H = hmlc(
            z_VBD, path_BH, masks, level_weight=weight, temperature=config.temperature,
            balanced=[config.balanced] * (config.levels - 1) + [False], gathered=gathered, offset=offset,
            with_levels=True,
        )  # fmt: skip
        terms = Terms().add("hmlc", loss, count=count)
        terms.log(**{f"level{h + 1}": value for h, value in enumerate(levels_H)})
        if masks is None or config.levels == 1:
            return terms
        likeness = mean_cosine(masks)
        if config.distinct:
            terms.add("distinct", likeness, weight=config.distinct, count=count)
        return terms.log(mask_cosine=likeness)

    def _masks(self, z_VBD: Tensor) -> Tensor | None:
        """[H, V, B, D] of attention, [H, D] of the mixture."""
        if self.config.form == "attention":
            scores = torch.stack([head(z_VBD) for head in self.attention])
            return scores.sigmoid() if self.config.gate == "sigmoid" else scores.softmax(-1) * scores.shape[-1]
        return self.masks if self.config.form == "mixture" else None

    def after_update(self, z: Mapping[str, Tensor], targets: Mapping[str, Any], progress: Progress) -> None:
        """Keeps the embeddings of the first view with their paths, for the next fit."""
        super().after_update(z, targets, progress)
        if self.config.form == "mixture":
            first_ND = nn.functional.normalize(distributed.gather(z["embedding"][:, 0], grad=False).float(), dim=1)
            self.samples.push(embedding=first_ND, path=distributed.gather(targets["path"], grad=False))

    def on_epoch(self, engine: Engine) -> None:
        """Fits the masks anew."""
        epoch, config = engine.progress.epoch, self.config
        due = epoch >= config.warmup and (epoch - config.warmup) % config.every == 0
        if config.form == "mixture" and due and len(self.samples) > 1:
            found = level_masks(self.samples.view("embedding"), path_ids(self.samples.view("path")))
            self.masks.copy_(torch.tensor(distributed.broadcast(found.tolist())))


def mean_cosine(masks: Tensor) -> Tensor:
    """Mean cosine between the masks of two levels, [H, ..., D] with H >= 2."""
    unit = nn.functional.normalize(masks, dim=-1)
    pairs = [(unit[h] * unit[k]).sum(-1).mean() for h in range(len(unit)) for k in range(h)]
    return torch.stack(pairs).mean()
