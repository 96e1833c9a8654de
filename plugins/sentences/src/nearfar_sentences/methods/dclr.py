"""DCLR: the contrast of SimCSE without false negatives, and with noise.

Legend: B batch, N gathered batch, V copies or columns, M noise vectors, D width of the complement, E embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nearfar import distributed
from nearfar.batch import Batch
from nearfar.checks import expect
from nearfar.method import Progress, Terms
from nearfar.momentum import Teacher
from nearfar.rng import Rng
from nearfar_sentences.complement import learn_complement, load_complement
from nearfar_sentences.debias import debiased_contrast, hard_noise, keep_negatives
from nearfar_sentences.encoder import TextEncoder
from nearfar_sentences.methods.sentences import Sentences

if TYPE_CHECKING:
    from nearfar_sentences.systems.dclr import DCLRConfig


class DCLR(Sentences):
    """SimCSE whose denominator lacks what a frozen encoder finds alike, and has noise that was made hard.

    The complement comes with `read_corpus`; until then, as in a run that is loaded to embed, there is none.

    Args:
        config: see `DCLRConfig`.
        encoder: of sentences.

    Source: Zhou, Zhang, Zhao, Wen, "Debiased Contrastive Learning of Unsupervised Sentence Representations", ACL 2022.
    """

    config: DCLRConfig

    def __init__(self, config: DCLRConfig, encoder: TextEncoder) -> None:
        super().__init__(config, encoder)
        self.complement: Teacher | None = None
        self.register_load_state_dict_pre_hook(_without_complement)

    def read_corpus(self, texts: Sequence[str]) -> None:
        """Loads the complement that the config names, or lets a copy of the encoder learn to be one."""
        if self.config.complement:
            self.complement = load_complement(self.config.complement, self.encoder.max_length)
        else:
            self.complement = learn_complement(self.encoder, texts, self.config.complement_steps)

    # -- the step ------------------------------------------------------------------------------------------------------

    def views(self, batch: Batch, rng: Rng) -> Batch:
        """Tokens; those of the complement's tokenizer [B, C, L], C = 1 for copies; and the seed of the noise."""
        made = super().views(batch, rng) | {"noise_seed": rng.seed}
        if self.config.reads_corpus:
            columns = self.columns(batch) if "positive" in batch else [batch["text"]]
            made["complement"] = self.tokens(columns, batch["index"].device, self._complement().module)  # type: ignore[arg-type]
        return made

    def targets(self, batch: Batch, progress: Progress) -> dict[str, Any]:
        """What the complement says of the sentences [B, C, D]."""
        if not self.config.reads_corpus:
            return {}
        tokens = batch["complement"]
        size = tokens["input_ids"].shape[:2]
        flat = {name: x.flatten(0, 1) for name, x in tokens.items()}
        return {"complement": self._complement()(flat).float().unflatten(0, size)}

    def loss(self, z: Mapping[str, Tensor], batch: Batch, targets: Mapping[str, Any], progress: Progress) -> Terms:
        z_BVE, t = z["embedding"], self.config.temperature
        everyone_NVE, offset = self.everyone(z_BVE)
        rows_B = torch.arange(len(z_BVE), device=z_BVE.device) + offset
        keep_BN = self.keep(targets["complement"], rows_B, z_BVE.shape[1]) if self.config.reads_corpus else None
        noise_ME = self.noise(everyone_NVE.detach(), batch["noise_seed"], progress.step)
        candidate_NE = everyone_NVE[:, 1:].transpose(0, 1).flatten(0, 1)  # positives, then hard negatives
        loss, accuracy = debiased_contrast(
            z_BVE[:, 0], candidate_NE, rows_B, keep_BN=keep_BN, noise_ME=noise_ME, temperature=t, loss=self.config.loss
        )
        terms = Terms().add("contrast", loss, count=len(z_BVE))
        if keep_BN is not None:
            terms.log(left_out=(~keep_BN).float().mean())
        self.log_pairs(terms, z["feature"], accuracy)
        return terms

    def keep(self, own_BCD: Tensor, rows_B: Tensor, num_columns: int) -> Tensor:
        """Which candidates stay, as the complement sees them: bool [B, N], or [B, 2 N] with hard negatives."""
        every_NCD = distributed.gather(own_BCD, grad=False)
        columns = [0] if every_NCD.shape[1] == 1 else range(1, num_columns)
        candidate_ND = torch.cat([every_NCD[:, column] for column in columns])
        return keep_negatives(own_BCD[:, 0], candidate_ND, rows_B, self.config.threshold)

    def noise(self, z_NVE: Tensor, seed: int, step: int) -> Tensor | None:
        """Hard noise [M, E] for the embeddings of all processes; None where there is to be none.

        Args:
            z_NVE: without gradient.
            seed: of the run.
            step: of the run; with the seed it decides where the noise begins.
        """
        num = int(self.config.noise_ratio * len(z_NVE))
        if num == 0:
            return None
        start = Rng(seed, step).normal(torch.arange(num, device=z_NVE.device), "noise", z_NVE.shape[2])
        return hard_noise(
            z_NVE[:, 0], z_NVE[:, 1], start, temperature=self.config.temperature,
            num_steps=self.config.noise_steps, step_size=self.config.noise_step_size,
        )  # fmt: skip

    def _complement(self) -> Teacher:
        expect(self.complement is not None, "complement", "one, by read_corpus, before training", "none", RuntimeError)
        assert self.complement is not None
        return self.complement


def _without_complement(module: DCLR, state: dict[str, Any], prefix: str, *rest: Any) -> None:
    """A method without complement, which is to embed, leaves that of a checkpoint where it is."""
    if module.complement is None:
        for name in [name for name in state if name.startswith(f"{prefix}complement.")]:
            del state[name]
