"""SimCSE: dropout copies or annotated pairs, with hard negatives where there are any."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nearfar import distributed
from nearfar.batch import Batch
from nearfar.checks import expect
from nearfar.method import Progress, Terms
from nearfar.objectives import simcse
from nearfar.rng import Rng
from nearfar_sentences.encoder import TextEncoder
from nearfar_sentences.methods.sentences import Sentences, text_ids
from nearfar_sentences.words import mask_first, word_loss

if TYPE_CHECKING:
    from nearfar_sentences.systems.simcse import SimCSEConfig


class SimCSE(Sentences):
    """The contrast of `nearfar.objectives.simcse`, with words masked and predicted beside it where asked for.

    Args:
        config: see `SimCSEConfig`.
        encoder: of sentences.
    """

    config: SimCSEConfig

    def __init__(self, config: SimCSEConfig, encoder: TextEncoder) -> None:
        super().__init__(config, encoder)
        dim = encoder.feature_dim
        short = all(d < dim for d in config.matryoshka)
        expect(short, "method.matryoshka", f"numbers below the {dim} of a feature", config.matryoshka)
        self.words = nn.Linear(encoder.feature_dim, encoder.tokenizer.size) if config.mlm_weight else None
        if self.words is not None:
            expect(encoder.tokenizer.mask >= 0, "method.mlm_weight", "a tokenizer with a mask token", "none")

    def views(self, batch: Batch, rng: Rng) -> Batch:
        """Tokens; with mask_duplicates also equal numbers for equal sentences, with mlm_weight the masked text."""
        made = super().views(batch, rng)
        if self.config.mask_duplicates:
            made["text_id"] = text_ids(batch["text"], batch["index"].device)
        if self.words is not None:
            made["masked"] = mask_first(made["tokens"], self.encoder, batch["index"], rng)
        return made

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """As the base; with mlm_weight also "word_loss" [B, 2]: a sentence's summed loss and its masked tokens."""
        z = super().encode(batch)
        if self.words is not None:
            z["word_loss"] = word_loss(self.encoder, self.words, batch["masked"])
        return z

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        embedding = z["embedding"]
        everyone, offset = self.everyone(embedding)
        hard = embedding.shape[1] == 3
        expect(
            hard or self.config.hard_negative_weight == 0,
            "method.hard_negative_weight", "0 without data.negative", self.config.hard_negative_weight,
        )  # fmt: skip
        ids = None
        if self.config.mask_duplicates:
            own = batch["text_id"]
            ids = (own, own if distributed.world() == 1 else distributed.gather(own, grad=False))
        losses = []
        for dim in (*self.config.matryoshka, embedding.shape[2]):
            part, others = embedding[..., :dim], everyone[..., :dim]
            loss, stats = simcse(
                part[:, 0], part[:, 1], part[:, 2] if hard else None, temperature=self.config.temperature,
                hard_negative_weight=self.config.hard_negative_weight, ids=ids,
                gathered=(others[:, 1], *([others[:, 2]] if hard else [])), offset=offset, with_stats=True,
            )  # fmt: skip
            losses.append(loss)
        loss = torch.stack(losses).mean()
        terms = Terms().add("contrast", loss, count=stats.num_anchors)
        if self.words is not None:
            total, num = z["word_loss"].sum(0)
            terms.add("words", total / num.clamp_min(1), weight=self.config.mlm_weight, count=float(num.detach()))
        self.log_pairs(terms, z["feature"], stats.accuracy)
        return terms
