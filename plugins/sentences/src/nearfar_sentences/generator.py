"""A frozen masked language model that fills in words: of a run, of transformers, or learnt from the corpus at hand.

Legend: N sentences, L tokens, W words of the vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nearfar.checks import expect
from nearfar.rng import Rng
from nearfar_sentences.encoder import TextEncoder
from nearfar_sentences.tokens import Tokenizer, load_tokenizer
from nearfar_sentences.words import masked, word_loss

LOGITS = 2**25
"""logits that are held at a time"""
RATE, BATCH = 1e-3, 64
"""of a generator that is learnt from the corpus"""


class Generator(nn.Module):
    """Logits of every token; frozen, and in evaluation mode whatever it is told.

    Args:
        backbone: a transformers encoder, or a masked language model.
        words: from the encoder's last states to logits; None: the backbone gives logits.
    """

    def __init__(self, backbone: nn.Module, words: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone, self.words = backbone, words
        self.num_words = int(backbone.config.vocab_size if words is None else words.out_features)  # type: ignore[union-attr, arg-type]
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Generator:
        return super().train(False)

    def forward(self, ids_NL: Tensor, mask_NL: Tensor) -> Tensor:
        """Logits [N, L, W]."""
        found = self.backbone(input_ids=ids_NL, attention_mask=mask_NL)
        return found.logits if self.words is None else self.words(found.last_hidden_state)

    @torch.no_grad()
    def fill(self, ids_NL: Tensor, mask_NL: Tensor, draws_NL: Tensor | None = None) -> Tensor:
        """A word for every token [N, L], masked or not: the likeliest, or with draws from [0, 1) by probability."""
        found, rows = [], max(1, LOGITS // (ids_NL.shape[1] * self.num_words))
        for start in range(0, len(ids_NL), rows):
            part = slice(start, start + rows)
            logits = self(ids_NL[part], mask_NL[part])
            found.append(logits.argmax(-1) if draws_NL is None else _drawn(logits, draws_NL[part]))
        return torch.cat(found)


def _drawn(logits: Tensor, draws: Tensor) -> Tensor:
    """By inverting the distribution function; the last word where rounding leaves the sum below the draw."""
    below = logits.float().softmax(-1).cumsum(-1)
    place = torch.searchsorted(below, draws.unsqueeze(-1).to(below.dtype), right=True).squeeze(-1)
    return place.clamp_max(logits.shape[-1] - 1)


def load_generator(name: str, tokenizer: Tokenizer, max_length: int) -> Generator:
    """The masked language model of a run folder of this plugin, or of transformers.

    Args:
        name: run folder, e.g. of sentences/mlm, or folder or name of a transformers masked language model.
        tokenizer: of the encoder; the generator's has to give every word the same number.
        max_length: tokens that it has to read.

    Raises:
        ValueError: a run that predicts no words, another vocabulary, or a model for shorter sentences.
    """
    if Path(name, "recipe.json").is_file():
        from nearfar_sentences.pipeline import load_run

        method: Any = load_run(name, "last").method
        words = getattr(method, "words", None)
        predicts = isinstance(words, nn.Module)
        expect(predicts, "method.generator", "a run that predicts masked words, e.g. of sentences/mlm", name)
        theirs, found = method.encoder.tokenizer, Generator(method.encoder.backbone, words)
    else:
        from transformers import AutoModelForMaskedLM

        theirs, found = load_tokenizer(name), Generator(AutoModelForMaskedLM.from_pretrained(name))
    ours, other = tokenizer.fast.get_vocab(), theirs.fast.get_vocab()
    expect(len(other) == len(ours), "method.generator", f"the encoder's vocabulary of {len(ours)} words", len(other))
    expect(other == ours, "method.generator", "the encoder's vocabulary, word by word", f"another one in {name}")
    limit = getattr(found.backbone.config, "max_position_embeddings", max_length)
    expect(limit >= max_length, "method.generator", f"a model that reads {max_length} tokens", limit)
    return found


def learn_generator(encoder: TextEncoder, texts: Sequence[str], steps: int) -> Generator:
    """A copy of the encoder that learns to predict masked words of the corpus, by BERT's rule, then stands still.

    The same for the same encoder and sentences; nobody else's random numbers are used.

    Args:
        encoder: copied.
        texts: of the corpus.
        steps: of 64 sentences.
    """
    expect(encoder.tokenizer.mask >= 0, "encoder", "a tokenizer with a mask token", "none")
    own, order, device = copy.deepcopy(encoder).train(), np.random.default_rng(0), next(encoder.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        words = nn.Linear(own.feature_dim, own.tokenizer.size).to(device)
        parameters = [*own.parameters(), *words.parameters()]
        optimiser = torch.optim.AdamW(parameters, lr=RATE)
        with torch.enable_grad():
            for step in range(steps):
                rows = order.integers(len(texts), size=min(BATCH, len(texts)))
                tokens = {name: x.to(device) for name, x in own.tokenise([texts[i] for i in rows.tolist()]).items()}
                batch = masked(tokens, own, torch.from_numpy(rows).to(device), Rng(0, step), share=0.15)
                total, num = word_loss(own, words, batch).sum(0)
                optimiser.param_groups[0]["lr"] = RATE * (1 - step / steps)
                optimiser.zero_grad()
                (total / num.clamp_min(1)).backward()
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimiser.step()
        optimiser.zero_grad()
    return Generator(own.backbone, words)
