"""miCSE: the contrast of SimCSE, and dropout copies that attend alike.

Legend: B batch, V copies, S layers, H heads, L tokens (twice: query, key), E embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nearfar import distributed
from nearfar.batch import Batch
from nearfar.checks import expect
from nearfar.method import Progress, Terms
from nearfar.objectives import alignment, simcse, uniformity
from nearfar.rng import Rng
from nearfar_sentences.attention import attention_information, row_sizes, valid_entries
from nearfar_sentences.encoder import TextEncoder, pool
from nearfar_sentences.methods.sentences import Sentences

if TYPE_CHECKING:
    from nearfar_sentences.systems.micse import MiCSEConfig


class MiCSE(Sentences):
    """`nearfar.objectives.simcse` of two dropout copies, less the mutual information of their attention maps.

    Args:
        config: see `MiCSEConfig`.
        encoder: of sentences; with a weight on attention it attends without fused kernels, which give no maps.
    """

    config: MiCSEConfig

    def __init__(self, config: MiCSEConfig, encoder: TextEncoder) -> None:
        super().__init__(config, encoder)
        shape: Any = encoder.backbone.config
        num = int(shape.num_hidden_layers)
        first, end = config.layers or (num // 2, num)
        expect(end <= num, "method.layers", f"layers of the {num} that the encoder has, 0 to {num}", config.layers)
        self.layers, self.num_heads = slice(first, end), int(shape.num_attention_heads)
        if config.attention_weight:
            encoder.backbone.set_attn_implementation("eager")  # type: ignore[operator]

    def views(self, batch: Batch, rng: Rng) -> Batch:
        """Tokens, and with a weight on attention the draws [B, S, H, L, L] that choose entries of its maps."""
        expect("positive" not in batch, "data.positive", "none with micse, which compares copies of a sentence",
               "a column")  # fmt: skip
        made = super().views(batch, rng)
        if self.config.attention_weight:
            longest, length = self.encoder.max_length, made["tokens"]["input_ids"].shape[2]
            size = (self.layers.stop - self.layers.start, self.num_heads, longest, longest)
            draws = rng.uniform(batch["index"], "attention", torch.Size(size).numel()).unflatten(1, size)
            made["draws"] = draws[..., :length, :length].contiguous()
        return made

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """As the base; with a weight on attention also "maps" [B, V, S, H, L, L] of the chosen layers."""
        if not self.config.attention_weight:
            return super().encode(batch)
        size = batch["tokens"]["input_ids"].shape[:2]
        tokens = {name: x.flatten(0, 1) for name, x in batch["tokens"].items()}
        states = self.encoder.states(tokens, attention=True)
        feature = pool(states.hidden, tokens["attention_mask"], self.encoder.pooling)
        maps = torch.stack(states.attention[self.layers], 1)
        return {
            "embedding": self.head(feature).unflatten(0, size), "feature": feature.unflatten(0, size),
            "maps": maps.unflatten(0, size),
        }  # fmt: skip

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        embedding_BVE = z["embedding"]
        everyone, offset = self.everyone(embedding_BVE)
        loss, stats = simcse(
            embedding_BVE[:, 0], embedding_BVE[:, 1], temperature=self.config.temperature,
            gathered=(everyone[:, 1],), offset=offset, with_stats=True,
        )  # fmt: skip
        terms = Terms().add("contrast", loss, weight=self.config.contrast_weight, count=stats.num_anchors)
        if self.config.attention_weight:
            self._add_attention(terms, z["maps"], batch["tokens"]["attention_mask"][:, 0], batch["draws"])
        with torch.no_grad():
            unit = nn.functional.normalize(z["feature"].detach().float(), dim=-1)
            terms.log(alignment=alignment(unit[:, 0], unit[:, 1]), accuracy=stats.accuracy)
            if len(unit) > 1:
                terms.log(uniformity=uniformity(unit[:, 0]))
        return terms

    def _add_attention(self, terms: Terms, maps: Tensor, mask: Tensor, draws: Tensor) -> None:
        """Minus the information, which counts as many rows as this process keeps."""
        options = self.config
        sizes = None
        if distributed.world() > 1:
            sizes = distributed.gather(row_sizes(valid_entries(maps, mask), options.chunks), grad=False)
        found = attention_information(
            maps, mask, draws, num_samples=options.num_samples, chunks=options.chunks, gathered=sizes, eps=options.eps
        )
        count = float(found.num_rows)
        terms.add("attention", -found.scale * found.information, weight=options.attention_weight, count=count)
        terms.log(information=found.information, attention_scale=found.scale, entries=found.num_entries.float())
