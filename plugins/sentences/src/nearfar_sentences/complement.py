"""A frozen second encoder that says which sentences mean the same: of a run, of transformers, or learnt beforehand."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from nearfar.momentum import Teacher
from nearfar.objectives import simcse
from nearfar_sentences.config import TextEncoderConfig
from nearfar_sentences.encoder import TextEncoder, build_encoder

RATE, BATCH, TEMPERATURE = 3e-4, 64, 0.05
"""of a complement that is learnt"""


def load_complement(name: str, max_length: int) -> Teacher:
    """The frozen encoder of a run folder of this plugin, or of transformers.

    Args:
        name: run folder, or folder or name of a transformers encoder; its tokenizer may be another than that of the
            encoder in training.
        max_length: tokens that it reads, of transformers.

    Raises:
        ValueError, OSError: no such run or model; the message says which.
    """
    if Path(name, "recipe.json").is_file():
        from nearfar_sentences.pipeline import load_run

        return frozen(load_run(name).encoder)
    return frozen(build_encoder(TextEncoderConfig(name=name, max_length=max_length)))


def learn_complement(encoder: TextEncoder, texts: Sequence[str], steps: int) -> Teacher:
    """A copy of the encoder that learns by SimCSE from dropout copies, then stands still.

    The same for the same encoder and sentences; nobody else's random numbers are used.

    Args:
        encoder: copied.
        texts: of the corpus.
        steps: of 64 sentences.
    """
    own, order, device = copy.deepcopy(encoder).train(), np.random.default_rng(0), next(encoder.parameters()).device
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        head = nn.Sequential(nn.Linear(own.feature_dim, own.feature_dim), nn.Tanh()).to(device)
        parameters = [*own.parameters(), *head.parameters()]
        optimiser = torch.optim.AdamW(parameters, lr=RATE)
        for step in range(steps):
            rows = order.choice(len(texts), size=min(BATCH, len(texts)), replace=False).tolist()
            tokens = {name: x.repeat(2, 1).to(device) for name, x in own.tokenise([texts[i] for i in rows]).items()}
            optimiser.param_groups[0]["lr"] = RATE * (1 - step / steps)
            optimiser.zero_grad()
            simcse(*head(own(tokens)).chunk(2), temperature=TEMPERATURE).backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
        optimiser.zero_grad()
    return frozen(own)


def frozen(encoder: TextEncoder) -> Teacher:
    """A copy in evaluation mode that nothing moves."""
    return Teacher(encoder, momentum=1.0, mode="eval")
