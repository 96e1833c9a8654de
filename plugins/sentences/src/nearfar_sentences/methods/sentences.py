"""What every system on sentences shares: tokens of copies or columns, encoder, head, and what users keep.

A system adds its `loss`. Legend: B batch, V copies or columns, L tokens, D width, E embedding.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nearfar import distributed
from nearfar.batch import Batch
from nearfar.checks import expect
from nearfar.method import BATCH_NORM, Method, Terms
from nearfar.objectives import alignment, uniformity
from nearfar.rng import Rng
from nearfar_sentences.config import TextMethodConfig
from nearfar_sentences.encoder import TextEncoder


class Sentences(Method):
    """Embeddings of every copy or column of a sample's sentences.

    With a column `positive` the V sentences of a sample are text and positive, and negative where there is one; else
    they are `config.copies` copies of the text, which differ by the dropout that each meets.

    `views` turns the texts into batch["tokens"]: input_ids, attention_mask [B, V, L]. `encode` gives "embedding"
    [B, V, E], what the loss sees, and "feature" [B, V, D], what the encoder says before the head.

    Args:
        config: copies, head, temperature.
        encoder: of sentences.
    """

    outputs = ("default", "embedding")

    def __init__(self, config: TextMethodConfig, encoder: TextEncoder) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self._told = False
        dim = encoder.feature_dim
        self.head = make_head(config.head, dim)
        has_norm = any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in self.modules())
        self.cache = f"{BATCH_NORM} in the head mixes samples" if has_norm else "exact"

    @property
    def dropout(self) -> float:
        """The largest share of dropout in the encoder."""
        return max((part.p for part in self.encoder.modules() if isinstance(part, nn.Dropout)), default=0.0)

    def read_corpus(self, texts: Sequence[str]) -> None:
        """Called with the training sentences before training where `config.reads_corpus`."""

    # -- the step ------------------------------------------------------------------------------------------------------

    def columns(self, batch: Batch) -> list[list[str]]:
        """The V lists of B sentences of a batch."""
        if "positive" not in batch:
            if self.training and self.dropout == 0 and not self._told:
                self._told = True
                warnings.warn(
                    "encoder: expected dropout, which alone makes the copies of a sentence differ, received none",
                    UserWarning,
                    stacklevel=2,
                )
            return [batch["text"]] * self.config.copies
        return [batch["text"], batch["positive"], *([batch["negative"]] if "negative" in batch else [])]

    def views(self, batch: Batch, rng: Rng) -> Batch:
        """The batch with its tokens in the place of its texts."""
        columns = self.columns(batch)
        kept = {name: value for name, value in batch.items() if name not in ("text", "positive", "negative")}
        return kept | {"tokens": self.tokens(columns, batch["index"].device)}

    def tokens(
        self, columns: list[list[str]], device: torch.device, encoder: TextEncoder | None = None
    ) -> dict[str, Tensor]:
        """Tokens [B, V, L] of V lists of sentences, of this encoder's or another's; equal lists are read once."""
        distinct: list[list[str]] = []
        for column in columns:
            if not any(column is other for other in distinct):
                distinct.append(column)
        place = [next(i for i, other in enumerate(distinct) if other is column) for column in columns]
        found = (encoder or self.encoder).tokenise([text for column in distinct for text in column])
        shaped = {name: x.unflatten(0, (len(distinct), -1)).transpose(0, 1) for name, x in found.items()}
        return {name: x[:, place].contiguous().to(device) for name, x in shaped.items()}

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """Features [B, V, D] and embeddings [B, V, E] of all sentences in one forward."""
        tokens = batch["tokens"]
        size = tokens["input_ids"].shape[:2]
        feature = self.encoder({name: x.flatten(0, 1) for name, x in tokens.items()})
        return {"embedding": self.head(feature).unflatten(0, size), "feature": feature.unflatten(0, size)}

    def everyone(self, z_BVE: Tensor) -> tuple[Tensor, int]:
        """Embeddings of all processes [N, V, E] with gradient, and where this process's rows begin."""
        if distributed.world() == 1:
            return z_BVE, 0
        return distributed.gather(z_BVE), distributed.offset(len(z_BVE))

    @torch.no_grad()
    def log_pairs(self, terms: Terms, feature_BVD: Tensor, accuracy: Tensor | None) -> None:
        """Shows how near the first two copies' features are, how spread the first's, and the accuracy where known."""
        unit = nn.functional.normalize(feature_BVD.detach().float(), dim=-1)
        terms.log(alignment=alignment(unit[:, 0], unit[:, 1]))
        if len(unit) > 1:
            terms.log(uniformity=uniformity(unit[:, 0]))
        if accuracy is not None:  # of large batches it would cost a pass
            terms.log(accuracy=accuracy)

    # -- what users keep -----------------------------------------------------------------------------------------------

    def features(self, batch: Batch, output: str = "default") -> Tensor:
        """The encoder's features [B, D] of the text, or the head's embedding."""
        device = next(self.parameters()).device
        tokens = {name: x.to(device) for name, x in self.encoder.tokenise(batch["text"]).items()}
        feature = self.encoder(tokens)
        kept = output == "default" and not self.config.head_at_test
        return feature if kept else self.head(feature)


def make_head(kind: str, dim: int) -> nn.Module:
    """The head between features and embeddings, both of width `dim`.

    Args:
        kind: tanh: one layer with tanh; relu: two layers with ReLU between; mlp: two layers without bias, of width
            2 dim between, with batch normalisation after each, the last without weights; none.
    """
    if kind == "tanh":
        return nn.Sequential(nn.Linear(dim, dim), nn.Tanh())
    if kind == "relu":
        return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))
    if kind == "mlp":
        return nn.Sequential(
            nn.Linear(dim, 2 * dim, bias=False), nn.BatchNorm1d(2 * dim), nn.ReLU(),
            nn.Linear(2 * dim, dim, bias=False), nn.BatchNorm1d(dim, affine=False),
        )  # fmt: skip
    expect(kind == "none", "head", "tanh, relu, mlp or none", kind)
    return nn.Identity()


def text_ids(texts: list[str], device: torch.device) -> Tensor:
    """Numbers [B] that are equal exactly where texts are, on every process alike."""
    digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return torch.tensor([int.from_bytes(digest, "big", signed=True) for digest in digests], device=device)
