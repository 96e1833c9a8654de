"""WhitenedCSE: whitened copies of a sentence are its positives.

Legend: B batch, N gathered batch, V copies or columns, D width, E embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nearfar.batch import Batch
from nearfar.method import Progress, Terms
from nearfar.objectives import simcse
from nearfar.rng import Rng
from nearfar.whitening import GroupWhitening
from nearfar_sentences.encoder import TextEncoder
from nearfar_sentences.methods.sentences import Sentences

if TYPE_CHECKING:
    from nearfar_sentences.systems.whitenedcse import WhitenedCSEConfig


class WhitenedCSE(Sentences):
    """The sum, over the further copies, of SimCSE's contrast between whitened copies behind the head.

    Whitening mixes sentences, so it stands with the head in `loss`; `encode` gives features alone, and users keep them
    as they are.

    Args:
        config: see `WhitenedCSEConfig`.
        encoder: of sentences.

    Raises:
        ValueError: groups that do not divide the encoder's width.

    Source: Zhuo, Sun, Wang, Zhu, Yang, "WhitenedCSE: Whitening-based Contrastive Learning of Sentence Embeddings",
    ACL 2023.
    """

    config: WhitenedCSEConfig
    outputs = ("default",)

    def __init__(self, config: WhitenedCSEConfig, encoder: TextEncoder) -> None:
        super().__init__(config, encoder)
        self.cache = "exact"
        dim, groups = encoder.feature_dim, config.groups
        if groups and dim % groups:
            raise ValueError(f"method.groups: expected a divisor of the {dim} channels, or 0, received {groups}")
        self.whitening = None
        if config.whitening != "none":
            self.whitening = GroupWhitening(
                groups, engine=config.whitening, eps=config.eps, num_steps=config.newton_steps,
                synchronised=config.synchronised,
            )  # fmt: skip

    # -- the step ------------------------------------------------------------------------------------------------------

    def columns(self, batch: Batch) -> list[list[str]]:
        """Copies of the text, a positive in the second's place; at last the hard negative where there is one."""
        columns = super().columns(batch)
        if "positive" in batch:
            further = [batch["text"]] * (self.config.copies - 2)
            columns = [*columns[:2], *further, *columns[2:]]
        return columns

    def views(self, batch: Batch, rng: Rng) -> Batch:
        """Tokens [B, V, L], and the seed of the orders of channels."""
        return super().views(batch, rng) | {"order_seed": rng.seed}

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Features [B, V, D], which are the embedding until the loss whitens them."""
        tokens = batch["tokens"]
        size = tokens["input_ids"].shape[:2]
        feature = self.encoder({name: x.flatten(0, 1) for name, x in tokens.items()})
        return {"embedding": feature.unflatten(0, size)}

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        h_BVD, num = z["embedding"], self.config.copies
        z_BVE = self.head(self.whitened(h_BVD, batch["order_seed"], progress.step).flatten(0, 1))
        z_BVE = z_BVE.unflatten(0, h_BVD.shape[:2])
        everyone_NVE, offset = self.everyone(z_BVE)
        negative = [z_BVE[:, num]] if h_BVD.shape[1] > num else []
        further = [everyone_NVE[:, num]] if negative else []
        terms, losses, hits = Terms(), [], []
        for view in range(1, num):
            loss, stats = simcse(
                z_BVE[:, 0], z_BVE[:, view], *negative, temperature=self.config.temperature,
                gathered=(everyone_NVE[:, view], *further), offset=offset, with_stats=True,
            )  # fmt: skip
            losses.append(loss)
            hits += [] if stats.accuracy is None else [stats.accuracy]
        terms.add("contrast", torch.stack(losses).sum(), count=len(h_BVD))
        self.log_pairs(terms, h_BVD, torch.stack(hits).mean() if hits else None)
        return terms

    def whitened(self, h_BVD: Tensor, seed: int, step: int) -> Tensor:
        """Features with each copy whitened by itself, or by the statistics of all; as they are without whitening.

        Args:
            h_BVD: features.
            seed: of the run.
            step: of the run; with the seed it decides each copy's order of channels.
        """
        if self.whitening is None:
            return h_BVD
        rows = h_BVD.flatten(0, 1) if self.config.whiten_scope == "all" else None
        channels = torch.arange(h_BVD.shape[2], device=h_BVD.device)
        found = []
        for view, h_BD in enumerate(h_BVD.unbind(1)):
            order = None
            if self.config.shuffle:
                draw = Rng(seed, step, view).uniform(channels, "whitening")[:, 0]
                order = draw.argsort(stable=True)
            found.append(self.whitening(h_BD, order, rows))
        return torch.stack(found, 1)
