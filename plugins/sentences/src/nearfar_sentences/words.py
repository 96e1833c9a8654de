"""Words masked and predicted, by BERT's rule.

Legend: B sentences, V copies, L tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nearfar.rng import Rng
from nearfar_sentences.encoder import TextEncoder


def mask_first(tokens: Mapping[str, Tensor], encoder: TextEncoder, index: Tensor, rng: Rng) -> dict[str, Tensor]:
    """BERT's masked words of the first copy: 15 % of tokens, of which 80 % masked, 10 % another word, 10 % as they are.

    Returns:
        input_ids, attention_mask [B, L] and labels [B, L], -100 where nothing is to be predicted.
    """
    return masked({name: x[:, 0] for name, x in tokens.items()}, encoder, index, rng, share=0.15)


def masked(
    tokens: Mapping[str, Tensor], encoder: TextEncoder, index: Tensor, rng: Rng, *, share: float, name: str = "mask"
) -> dict[str, Tensor]:
    """Tokens [B, L] by BERT's rule with another share, and the labels beside."""
    ids = tokens["input_ids"]
    length = ids.shape[1]
    draw = rng.uniform(index, name, 3 * encoder.max_length).to(ids.device).unflatten(1, (3, -1))[:, :, :length]
    special = torch.zeros_like(ids, dtype=torch.bool)
    for number in encoder.tokenizer.special:
        special |= ids == number
    chosen = (draw[:, 0] < share) & ~special & (tokens["attention_mask"] > 0)
    kind = draw[:, 1]
    other = (draw[:, 2] * encoder.tokenizer.size).long()
    changed = torch.where(chosen & (kind < 0.8), encoder.tokenizer.mask, ids)
    changed = torch.where(chosen & (kind >= 0.9), other, changed)
    rest = {key: value for key, value in tokens.items() if key != "input_ids"}
    return rest | {"input_ids": changed, "labels": torch.where(chosen, ids, -100)}


def word_loss(encoder: TextEncoder, words: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Summed cross-entropy of a sentence's masked tokens and their number, [B, 2]."""
    labels = batch["labels"]
    hidden = encoder.states({key: value for key, value in batch.items() if key != "labels"}).hidden[-1]
    loss = hidden.new_zeros(labels.shape, dtype=torch.float32)
    chosen = labels >= 0
    if chosen.any():
        each = nn.functional.cross_entropy(words(hidden[chosen]).float(), labels[chosen], reduction="none")
        loss = loss.masked_scatter(chosen, each)
    return torch.stack([loss.sum(1), chosen.sum(1).float()], 1)
