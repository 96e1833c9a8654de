"""CLEAR: two changed copies of a sentence find each other, while masked words of the sentence itself are predicted.

Legend: B batch, V views, L tokens, E embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from nearfar.batch import Batch
from nearfar.checks import expect
from nearfar.method import Progress, Terms
from nearfar.objectives import nt_xent
from nearfar.rng import Rng
from nearfar_sentences.augment import Augmenter, Table, coverage, generators, read_substitutes
from nearfar_sentences.encoder import TextEncoder, add_delete_token
from nearfar_sentences.methods.sentences import Sentences
from nearfar_sentences.words import masked, word_loss

if TYPE_CHECKING:
    from nearfar_sentences.systems.clear import CLEARConfig


class CLEAR(Sentences):
    """NT-Xent over the 2B changed copies, and BERT's masked words in a pass of their own.

    Args:
        config: see `CLEARConfig`.
        encoder: of sentences; a tokenizer without a token for deleted words gets one, and the model a row for it.
    """

    config: CLEARConfig

    def __init__(self, config: CLEARConfig, encoder: TextEncoder) -> None:
        super().__init__(config, encoder)
        if encoder.tokenizer.delete < 0:
            add_delete_token(encoder)
        self.words = nn.Linear(encoder.feature_dim, encoder.tokenizer.size) if config.mlm_weight else None
        if self.words is not None:
            expect(encoder.tokenizer.mask >= 0, "method.mlm_weight", "0 without a mask token", config.mlm_weight)
        self.table: Table | None = None

    def read_corpus(self, texts: Sequence[str]) -> None:
        """Finds the substitutes of the corpus's words: those of the config's file, else neighbours of their company."""
        options = self.config.augment
        if options.substitutes:
            self.table = read_substitutes(options.substitutes)
        else:
            from nearfar_sentences.neighbours import neighbours, word_vectors

            self.table = neighbours(*word_vectors(texts), num=options.num_neighbours)
        coverage(texts, self.table)

    # -- the step ------------------------------------------------------------------------------------------------------

    def views(self, batch: Batch, rng: Rng) -> Batch:
        """Tokens [B, 2, L] of the changed copies of the text alone, and the masked text."""
        kept = {name: value for name, value in batch.items() if name not in ("text", "positive", "negative")}
        texts, device = batch["text"], batch["index"].device
        kept["tokens"] = self.changed(texts, batch["index"], rng)
        if self.words is not None:
            plain = {name: x.to(device) for name, x in self.encoder.tokenise(texts).items()}
            kept["masked"] = masked(plain, self.encoder, batch["index"], rng, share=self.config.mlm_share)
        return kept

    def changed(self, texts: list[str], index: Tensor, rng: Rng) -> dict[str, Tensor]:
        """Tokens [B, 2, L] of two changed copies of every sentence."""
        options = self.config.augment
        word = options.level == "word"
        columns = []
        for view, names in enumerate((options.first, options.second)):
            mark = {} if word else {"mark": self.encoder.tokenizer.delete}
            augment = Augmenter(options, names, table=self.table, **mark)
            draws = generators(rng.at(view=view), index, "augment")
            if word:
                columns.append([augment.sentence(text, own) for text, own in zip(texts, draws, strict=True)])
            else:
                columns.append(self._rows(texts, augment, draws))
        if word:
            return self.tokens(columns, index.device)
        return {name: x.to(index.device) for name, x in self._padded(columns).items()}

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """As the base; with mlm_weight also "word_loss" [B, 2]: a sentence's summed loss and its masked tokens."""
        z = super().encode(batch)
        if self.words is not None:
            z["word_loss"] = word_loss(self.encoder, self.words, batch["masked"])
        return z

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        embedding_BVE = z["embedding"]
        everyone, offset = self.everyone(embedding_BVE)
        loss, stats = nt_xent(
            embedding_BVE.transpose(0, 1), temperature=self.config.temperature,
            gathered=None if everyone is embedding_BVE else everyone.transpose(0, 1), offset=offset, with_stats=True,
        )  # fmt: skip
        terms = Terms().add("contrast", loss, weight=self.config.contrast_weight, count=stats.num_anchors)
        if self.words is not None:
            total, num = z["word_loss"].sum(0)
            terms.add("words", total / num.clamp_min(1), weight=self.config.mlm_weight, count=float(num.detach()))
        self.log_pairs(terms, z["feature"], stats.accuracy)
        return terms

    # -- tokens instead of words ---------------------------------------------------------------------------------------

    def _rows(self, texts: list[str], augment: Augmenter, draws: Sequence[np.random.Generator]) -> list[list[int]]:
        """Changed ids of every sentence; what the tokenizer puts around a sentence stays around it."""
        tokenizer = self.encoder.tokenizer
        around = {tokenizer.cls, tokenizer.sep, tokenizer.pad}
        found = self.encoder.tokenise(texts)
        rows = []
        for ids, mask, own in zip(found["input_ids"].tolist(), found["attention_mask"].tolist(), draws, strict=True):
            row = [token for token, real in zip(ids, mask, strict=True) if real]
            inner = [place for place, token in enumerate(row) if token not in around]
            if not inner:
                rows.append(row)
                continue
            start, end = inner[0], inner[-1] + 1
            rows.append(row[:start] + augment(row[start:end], own) + row[end:])
        return rows

    def _padded(self, columns: list[list[list[int]]]) -> dict[str, Tensor]:
        """Lists of ids as tokens [B, V, L]."""
        tokenizer = self.encoder.tokenizer
        length = max(len(row) for column in columns for row in column)
        shape = (len(columns[0]), len(columns), length)
        ids, mask = torch.full(shape, tokenizer.pad), torch.zeros(shape, dtype=torch.int64)
        for view, column in enumerate(columns):
            for number, row in enumerate(column):
                ids[number, view, : len(row)] = torch.tensor(row)
                mask[number, view, : len(row)] = 1
        tokens = {"input_ids": ids, "attention_mask": mask}
        return tokens | ({"token_type_ids": torch.zeros_like(ids)} if tokenizer.types else {})
