"""DiffCSE: the contrast of SimCSE, and a discriminator that finds replaced words by the sentence's vector.

Legend: B batch, V copies or columns, L tokens, E embedding.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nearfar.batch import Batch
from nearfar.checks import expect
from nearfar.method import Progress, Terms
from nearfar.rng import Rng
from nearfar_sentences.encoder import TextEncoder
from nearfar_sentences.generator import Generator, learn_generator, load_generator
from nearfar_sentences.methods.simcse import SimCSE
from nearfar_sentences.replaced import COUNTS, Discriminator, detection, replace
from nearfar_sentences.words import masked

if TYPE_CHECKING:
    from nearfar_sentences.systems.diffcse import DiffCSEConfig


class DiffCSE(SimCSE):
    """SimCSE, and the cross-entropy of replaced tokens, found in a sentence that a frozen generator has edited.

    The generator comes with `read_corpus`; until then, as in a run that is loaded to embed, there is none.

    Args:
        config: see `DiffCSEConfig`.
        encoder: of sentences; the discriminator starts as a copy of it.
    """

    config: DiffCSEConfig

    def __init__(self, config: DiffCSEConfig, encoder: TextEncoder) -> None:
        super().__init__(config, encoder)
        self.generator: Generator | None = None
        self.discriminator: Discriminator | None = None
        if config.detection_weight:
            expect(encoder.tokenizer.mask >= 0, "method.detection_weight", "0 without a mask token",
                   config.detection_weight)  # fmt: skip
            self.discriminator = Discriminator(copy.deepcopy(encoder.backbone))
            self.register_load_state_dict_pre_hook(_without_generator)

    def read_corpus(self, texts: Sequence[str]) -> None:
        """Reads the generator that the config names, or lets a copy of the encoder learn to be one."""
        name, encoder = self.config.generator, self.encoder
        if name:
            self.generator = load_generator(name, encoder.tokenizer, encoder.max_length)
            return
        shape: Any = encoder.backbone.config
        pretrained = getattr(shape, "name_or_path", "")
        expect(not pretrained, "method.generator", f"a masked language model with the words of {pretrained}", "none")
        self.generator = learn_generator(encoder, texts, self.config.generator_steps)

    # -- the step ------------------------------------------------------------------------------------------------------

    def views(self, batch: Batch, rng: Rng) -> Batch:
        """Tokens, and under "edit" [B, V, L] each copy with words of its own masked, and what its filling draws."""
        made = super().views(batch, rng)
        if self.discriminator is None:
            return made
        tokens, index, length = made["tokens"], batch["index"], made["tokens"]["input_ids"].shape[2]
        edits: dict[str, list[Tensor]] = {"input_ids": [], "draws": []}
        for view in range(tokens["input_ids"].shape[1]):
            own, at = {name: x[:, view] for name, x in tokens.items()}, rng.at(view=view)
            changed = masked(own, self.encoder, index, at, share=self.config.share, name="edit")
            edits["input_ids"].append(changed["input_ids"])
            if self.config.decode == "sample":
                edits["draws"].append(at.uniform(index, "fill", self.encoder.max_length)[:, :length])
        return made | {"edit": {name: torch.stack(parts, 1) for name, parts in edits.items() if parts}}

    def encode(self, batch: Batch) -> dict[str, Tensor]:
        """As SimCSE; also "detection" [B, V, 6], the sums of `nearfar_sentences.replaced.COUNTS`."""
        z = super().encode(batch)
        if self.discriminator is None:
            return z
        size = batch["tokens"]["input_ids"].shape[:2]
        tokens = {name: x.flatten(0, 1) for name, x in batch["tokens"].items()}
        ids, labels = self.edited(tokens, {name: x.flatten(0, 1) for name, x in batch["edit"].items()})
        vector = z["feature"] if self.config.condition == "feature" else z["embedding"]
        vector = vector.detach() if self.config.condition == "detached" else vector
        logits = self.discriminator({**tokens, "input_ids": ids}, vector.flatten(0, 1))
        found = detection(logits, labels, tokens["attention_mask"], count_padding=self.config.count_padding)
        return z | {"detection": found.unflatten(0, size)}

    def edited(self, tokens: Mapping[str, Tensor], edit: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Ids [N, L] of sentences whose masked words the generator has filled in, and which differ [N, L]."""
        expect(self.generator is not None, "generator", "one, by read_corpus, before training", "none", RuntimeError)
        assert self.generator is not None
        tokenizer, mask = self.encoder.tokenizer, tokens["attention_mask"]
        filled = self.generator.fill(edit["input_ids"], mask, edit.get("draws"))
        special = tokenizer.special if self.config.keep_special else ()
        return replace(filled, tokens["input_ids"], mask, pad=tokenizer.pad, special=special)

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        terms = super().loss(z, batch, targets, progress)
        if self.discriminator is not None:
            sums = dict(zip(COUNTS, z["detection"].sum((0, 1)), strict=True))
            num = sums["places"].detach()
            terms.add(
                "detection", sums["loss"] / num.clamp_min(1), weight=self.config.detection_weight, count=float(num)
            )
            same = sums["tokens"] - sums["replaced"]
            terms.log(
                replaced=sums["replaced"] / sums["tokens"].clamp_min(1),
                found=sums["found"] / sums["replaced"].clamp_min(1), kept=sums["kept"] / same.clamp_min(1),
            )  # fmt: skip
        return terms


def _without_generator(module: DiffCSE, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """A method without generator, which is to embed, leaves that of a checkpoint where it is."""
    if module.generator is None:
        for name in [name for name in state if name.startswith(f"{prefix}generator.")]:
            del state[name]
