"""Tokens, pooling, and encoders that stand alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nearfar_sentences import templates
from nearfar_sentences.config import TextEncoderConfig
from nearfar_sentences.encoder import TextEncoder, build_encoder, pool

TEXTS = templates.corpus(60, 0)[0]
SMALL = TextEncoderConfig(layers=2, dim=16, heads=2, vocabulary=200, max_length=16)


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    torch.manual_seed(0)
    return build_encoder(SMALL, TEXTS).eval()


def test_tokens_are_padded_cut_and_framed(encoder: TextEncoder) -> None:
    tokens = encoder.tokenise(["the doctor", " ".join(["car"] * 50)])
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    assert ids.shape == (2, 16)
    assert (ids[:, 0] == encoder.tokenizer.cls).all()
    assert ids[1, -1] == encoder.tokenizer.sep
    assert mask[0].sum() < 16
    assert (ids[0][mask[0] == 0] == encoder.tokenizer.pad).all()


def test_a_very_long_line_is_cut(encoder: TextEncoder) -> None:
    assert encoder.tokenise(["word " * 100_000])["input_ids"].shape == (1, 16)


def test_the_tokenizer_does_not_depend_on_the_order_of_sentences() -> None:
    one, other = (build_encoder(SMALL, texts).tokenizer.to_json() for texts in (TEXTS, TEXTS[::-1]))
    assert one == other


@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "avg_first_last", "avg_top2"])
def test_pooling_is_what_loops_give(pooling: str) -> None:
    hidden = [torch.randn(2, 4, 3) for _ in range(3)]
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    found = pool(hidden, mask, pooling)
    for row, count in enumerate((3, 2)):
        layers = {"avg_first_last": (hidden[1], hidden[2]), "avg_top2": (hidden[1], hidden[2])}.get(
            pooling, hidden[-1:]
        )
        tokens = sum(layer[row, :count] for layer in layers) / len(layers)
        expected = {"cls": tokens[0], "max": tokens.amax(0)}.get(pooling, tokens.mean(0))
        torch.testing.assert_close(found[row], expected)


def test_padding_changes_nothing(encoder: TextEncoder) -> None:
    alone = encoder.embed(TEXTS[:1])
    beside = encoder.embed([TEXTS[0], " ".join(TEXTS[:3])])[:1]
    torch.testing.assert_close(alone, beside, rtol=1e-4, atol=1e-5)


def test_embedding_keeps_the_order_and_the_mode(encoder: TextEncoder) -> None:
    encoder.train()
    found = encoder.embed(TEXTS[:20], batch_size=7)
    assert encoder.training
    encoder.eval()
    torch.testing.assert_close(found, torch.cat([encoder.embed([text]) for text in TEXTS[:20]]), rtol=1e-4, atol=1e-5)


def test_a_checkpoint_stands_alone(encoder: TextEncoder) -> None:
    other = build_encoder(SMALL, description=bytes(encoder.description.numpy()))
    other.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(other.embed(TEXTS[:4]), encoder.embed(TEXTS[:4]), rtol=0, atol=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers model with a tokenizer, as users have one."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    where = tmp_path_factory.mktemp("bert")
    words = sorted({word for text in TEXTS for word in text.split()})
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
    BertTokenizerFast(vocab=vocabulary).save_pretrained(where)
    shape = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=40,
    )  # fmt: skip
    BertModel(shape).save_pretrained(where)
    return where


def test_a_folder_of_transformers(folder: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    encoder = build_encoder(TextEncoderConfig(name=str(folder), pooling="cls")).eval()
    inputs = AutoTokenizer.from_pretrained(folder)(TEXTS[:5], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = AutoModel.from_pretrained(folder).eval()(**inputs).last_hidden_state[:, 0]
    torch.testing.assert_close(encoder.embed(TEXTS[:5]), expected, rtol=1e-4, atol=1e-5)
    again = build_encoder(TextEncoderConfig(name="gone"), description=bytes(encoder.description.numpy()))
    again.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(again.embed(TEXTS[:5]), encoder.embed(TEXTS[:5]), rtol=0, atol=0)


def test_pooling_of_a_folder_for_sentence_transformers(folder: Path) -> None:
    assert build_encoder(TextEncoderConfig(name=str(folder))).pooling == "cls"
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    assert build_encoder(TextEncoderConfig(name=str(folder))).pooling == "mean"


def test_bad_models(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a folder with a tokenizer"):
        build_encoder(TextEncoderConfig(name=str(tmp_path)))
    with pytest.raises(ValueError, match=r"encoder.max_length: expected at most the 40"):
        build_encoder(TextEncoderConfig(name=str(folder), max_length=64))
    with pytest.raises(ValueError, match="texts: expected sentences to train a tokenizer on"):
        build_encoder(SMALL, [])
    with pytest.raises(ValueError, match=r"encoder.dim: expected a multiple"):
        TextEncoderConfig(dim=10, heads=4)


def test_an_empty_sentence_is_refused(encoder: TextEncoder) -> None:
    with pytest.raises(ValueError, match="text 1: expected a sentence"):
        encoder.tokenise(["a", "  "])
    with pytest.raises(ValueError, match="a token or more of every sentence"):
        pool([torch.ones(1, 2, 3)], torch.zeros(1, 2), "mean")


def test_attention_maps_are_there_when_asked_for(encoder: TextEncoder) -> None:
    tokens = encoder.tokenise(TEXTS[:3])
    before = encoder(tokens)
    states = encoder.states(tokens, attention=True)
    assert len(states.attention) == 2
    assert states.attention[0].shape == (3, 2, *[tokens["input_ids"].shape[1]] * 2)
    rows = states.attention[0].sum(-1)
    torch.testing.assert_close(rows, torch.ones_like(rows))
    torch.testing.assert_close(encoder(tokens), before, rtol=1e-4, atol=1e-5)
