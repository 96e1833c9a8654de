"""Tokens that a generator has replaced, and a discriminator that finds them with the help of a sentence's vector.

Legend: N sentences, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from nearfar.checks import expect

COUNTS = ("loss", "places", "replaced", "found", "tokens", "kept")
"""columns of `detection`: summed loss, its places, tokens that are replaced, those of them found, all tokens, and those
that are not replaced and are taken for what they are"""


def replace(
    filled_NL: Tensor, ids_NL: Tensor, mask_NL: Tensor, *, pad: int, special: Sequence[int] = ()
) -> tuple[Tensor, Tensor]:
    """What the discriminator reads, and which of it is not what the sentence says.

    Args:
        filled_NL: ids that a generator gives.
        ids_NL: ids of the sentence.
        mask_NL: 0 at padding, where `pad` stands then.
        pad: id.
        special: ids that stay where they stand; the first token stays anyhow.

    Returns:
        Ids [N, L], and labels [N, L], 1 where an id differs from the sentence's; a word that is restored is 0.
    """
    expect(filled_NL.shape == ids_NL.shape, "filled", f"shape {tuple(ids_NL.shape)}", tuple(filled_NL.shape))
    stays = torch.zeros_like(ids_NL, dtype=torch.bool)
    stays[:, 0] = True
    for number in special:
        stays |= ids_NL == number
    real = mask_NL > 0
    found = torch.where(stays, ids_NL, filled_NL).where(real, pad)
    return found, ((found != ids_NL) & real).long()


class Discriminator(nn.Module):
    """Two logits a token: as it was, or replaced.

    Args:
        backbone: a transformers encoder that calls its embedding `embeddings`.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.answer = nn.Linear(int(backbone.config.hidden_size), 2)  # type: ignore[union-attr, arg-type]

    def forward(self, tokens: Mapping[str, Tensor], vector_ND: Tensor) -> Tensor:
        """Logits [N, L, 2] of tokens, where the vector stands for the first token."""
        return self.answer(inject(self.backbone, tokens, vector_ND))


def inject(backbone: nn.Module, tokens: Mapping[str, Tensor], vector_ND: Tensor) -> Tensor:
    """Last states [N, L, D] of a model for which the vector takes the place of the first token's embedding.

    What is replaced is the output of the embedding module: words, positions, normalisation and dropout are in it, so
    that all layers attend to the vector as it is.

    Raises:
        ValueError: no module `embeddings` in the model, or one of another width than the vector.
    """
    found = [module for name, module in backbone.named_modules() if name.rpartition(".")[2] == "embeddings"]
    expect(len(found) > 0, "encoder", "a model with a module named embeddings", type(backbone).__name__)

    def first(module: nn.Module, args: object, output: Tensor) -> Tensor:
        width = output.shape[-1]
        expect(vector_ND.shape[-1] == width, "vector", f"a width of {width}, as the embedding has", vector_ND.shape[-1])
        return torch.cat([vector_ND.to(output.dtype).unsqueeze(1), output[:, 1:]], 1)

    handle = found[0].register_forward_hook(first)
    try:
        return backbone(**tokens).last_hidden_state
    finally:
        handle.remove()


def detection(logits_NL2: Tensor, labels_NL: Tensor, mask_NL: Tensor, *, count_padding: bool = False) -> Tensor:
    """Sums over a sentence's tokens [N, 6], named by `COUNTS`.

    Args:
        logits_NL2: as it was, replaced.
        labels_NL: 1 where replaced.
        mask_NL: 0 at padding.
        count_padding: padding is a place that is as it was, as in the authors' code, and dilutes the loss.
    """
    real = mask_NL > 0
    loss = nn.functional.cross_entropy(logits_NL2.float().transpose(1, 2), labels_NL, reduction="none")
    places = torch.ones_like(real) if count_padding else real
    with torch.no_grad():
        says, is_new = logits_NL2[..., 1] > logits_NL2[..., 0], (labels_NL > 0) & real
    columns = (places, is_new, is_new & says, real, real & ~is_new & ~says)
    return torch.stack([torch.where(places, loss, 0.0).sum(1), *(x.sum(1).to(loss.dtype) for x in columns)], 1)
