"""miCSE's arms: with and without information of attention, on 100 sentences and on all.

All start from the same encoder of four layers and take about as many steps.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch

from nearfar.plugin import load_recipe
from nearfar.rng import Rng
from nearfar_sentences import demonstrations as shared
from nearfar_sentences import templates
from nearfar_sentences.attention import attention_information
from nearfar_sentences.config import TextRecipe
from nearfar_sentences.data import TextSource
from nearfar_sentences.encoder import TextEncoder

FEW, BATCH, EPOCHS = 100, 50, 60
WEIGHT = 0.1
"""of attention: the authors' 1e-3 has twenty times as many steps to act in"""


def arm(name: str, seed: int, quick: bool) -> dict[str, float]:
    """An arm and a seed to metrics, with the information of attention on fresh sentences."""
    num, epochs = (500, 1) if quick else (shared.NUM, 6)
    sentences = shared.unlabelled(num, seed)
    method: Any = shared.fitted(_deep(shared.short(load_recipe("sentences/mlm"), seed, epochs=epochs)), sentences)
    if name != "mlm":
        few = not name.endswith("_all")
        source = TextSource(sentences.columns["text"][:FEW], name=f"{FEW} sentences of a grammar") if few else sentences
        rounds = (2 if quick else EPOCHS) if few else (1 if quick else 2)
        recipe = _deep(shared.short(load_recipe("sentences/micse"), seed, epochs=rounds, rate=shared.RATE))
        weight = WEIGHT if name.startswith("micse") else 0.0
        recipe = dataclasses.replace(
            recipe, method=dataclasses.replace(recipe.method, attention_weight=weight),  # type: ignore[call-arg]
            trainer=dataclasses.replace(recipe.trainer, batch_size=BATCH if few else recipe.trainer.batch_size),
        )  # fmt: skip
        method = shared.fitted(recipe, source, method.encoder)
    found = shared.scores(method, seed, quick=quick)
    return found | {"information": information(method.encoder, seed, 60 if quick else 300)}


def information(encoder: TextEncoder, seed: int, num: int) -> float:
    """Mean information of attention between two dropout copies of fresh sentences, upper half of the layers."""
    encoder = copy.deepcopy(encoder).train()
    tokens = encoder.tokenise(templates.corpus(num, 30_000 + seed)[0])
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        first, second = (encoder.states(tokens, attention=True).attention for _ in range(2))
    upper = slice(len(first) // 2, None)
    maps = torch.stack([torch.stack(one[upper], 1) for one in (first, second)], 1)
    draws = Rng(seed).uniform(torch.arange(num), "attention", maps[0, 0].numel()).view_as(maps[:, 0])
    return float(attention_information(maps, tokens["attention_mask"], draws).information)


def _deep(recipe: TextRecipe) -> TextRecipe:
    return dataclasses.replace(recipe, encoder=dataclasses.replace(recipe.encoder, layers=4, dim=64))
