"""Masked words."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from nearfar.batch import collate
from nearfar.data import Data
from nearfar.rng import Rng
from nearfar.testing import check_method
from nearfar_sentences import pipeline, templates
from nearfar_sentences.encoder import build_encoder
from nearfar_sentences.words import masked, word_loss
from sentences.conftest import SMALL, tiny

TEXTS = templates.corpus(400, 0)[0]


@pytest.mark.oracle("mlm", 1)
@pytest.mark.parametrize("share", [0.15, 0.4])
def test_the_rule_of_eight_in_ten(share: float) -> None:
    encoder = build_encoder(SMALL, TEXTS)
    tokens = encoder.tokenise(TEXTS)
    found = masked(tokens, encoder, torch.arange(len(TEXTS)), Rng(0), share=share)
    ids, labels = tokens["input_ids"], found["labels"]
    special = torch.isin(ids, torch.tensor(encoder.tokenizer.special))
    chosen = labels >= 0
    assert not (chosen & special).any()
    assert torch.equal(found["input_ids"][~chosen], ids[~chosen])
    assert torch.equal(labels[chosen], ids[chosen])
    num = int((~special).sum())
    assert abs(int(chosen.sum()) - share * num) < 4 * math.sqrt(num * share * (1 - share))
    hidden = (found["input_ids"] == encoder.tokenizer.mask)[chosen].float().mean()
    same = (found["input_ids"] == ids)[chosen].float().mean()
    assert float(hidden) == pytest.approx(0.8, abs=0.06)
    assert float(same) == pytest.approx(0.1, abs=0.05)


@pytest.mark.oracle("mlm", 2)
def test_even_predictions_cost_the_log_of_the_vocabulary() -> None:
    encoder = build_encoder(SMALL, TEXTS).eval()
    words = nn.Linear(16, encoder.tokenizer.size)
    nn.init.zeros_(words.weight)
    nn.init.zeros_(words.bias)
    tokens = masked(encoder.tokenise(TEXTS[:6]), encoder, torch.arange(6), Rng(0), share=0.5)
    tokens["labels"][2] = -100
    found = word_loss(encoder, words, tokens)
    torch.testing.assert_close(found[:, 0], found[:, 1] * math.log(encoder.tokenizer.size))
    assert found[2].tolist() == [0, 0]


def test_a_mask_is_of_its_sentence_alone() -> None:
    encoder = build_encoder(SMALL, TEXTS)
    index = torch.arange(5)
    whole = masked(encoder.tokenise(TEXTS[:5]), encoder, index, Rng(0), share=0.3)
    alone = masked(encoder.tokenise(TEXTS[3:4]), encoder, index[3:4], Rng(0), share=0.3)
    length = alone["labels"].shape[1]
    assert torch.equal(whole["labels"][3:4, :length], alone["labels"])


def test_the_contract(corpus: Data) -> None:
    _, method = pipeline.build(tiny("mlm"), corpus)
    check_method(method, collate([corpus.train[i] for i in range(12)]))
