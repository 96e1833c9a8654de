"""Masked language modelling alone: what a small encoder starts from, and the line that contrast has to beat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from nearfar.batch import Batch
from nearfar.checks import expect
from nearfar.method import Progress, Terms
from nearfar.rng import Rng
from nearfar_sentences.encoder import TextEncoder
from nearfar_sentences.methods.sentences import Sentences
from nearfar_sentences.words import masked, word_loss

if TYPE_CHECKING:
    from nearfar_sentences.systems.mlm import MLMConfig


class MLM(Sentences):
    """Masked words are predicted from the states of the last layer.

    Args:
        config: share of masked words.
        encoder: of sentences.
    """

    config: MLMConfig

    def __init__(self, config: MLMConfig, encoder: TextEncoder) -> None:
        super().__init__(config, encoder)
        expect(encoder.tokenizer.mask >= 0, "encoder", "a tokenizer with a mask token", "none")
        self.words = nn.Linear(encoder.feature_dim, encoder.tokenizer.size)

    def columns(self, batch: Batch) -> list[list[str]]:
        """The text alone."""
        return [batch["text"]]

    def views(self, batch: Batch, rng: Rng) -> Batch:
        """The masked tokens in the place of the texts."""
        made = super().views(batch, rng)
        first = {name: x[:, 0] for name, x in made.pop("tokens").items()}
        return made | {"masked": masked(first, self.encoder, batch["index"], rng, share=self.config.share)}

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Summed loss and number of masked words of every sentence [B, 2]."""
        return {"word_loss": word_loss(self.encoder, self.words, batch["masked"])}

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        total, num = z["word_loss"].sum(0)
        return Terms().add("words", total / num.clamp_min(1), count=float(num.detach()))
