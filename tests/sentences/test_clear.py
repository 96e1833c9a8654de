"""CLEAR: the loss against a double loop, what its weights switch off, and training on changed words."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from distributed.launch import launch
from nearfar.batch import Batch, take
from nearfar.config import TrainerConfig
from nearfar.data import without_test
from nearfar.method import Progress
from nearfar.objectives import nt_xent
from nearfar.plugin import load_recipe
from nearfar.rng import Rng
from nearfar.testing import check_method
from nearfar_sentences import pipeline, templates
from nearfar_sentences.config import AugmentConfig, TextEncoderConfig
from nearfar_sentences.data import TextSource
from nearfar_sentences.encoder import TextEncoder, add_delete_token, build_encoder
from nearfar_sentences.methods.clear import CLEAR
from nearfar_sentences.systems.clear import CLEARConfig
from nearfar_sentences.tokens import Tokenizer

SMALL = TextEncoderConfig(layers=1, dim=16, heads=2, vocabulary=200, max_length=16)
TEXTS = templates.corpus(60, 0)[0]
PROGRESS = Progress(0, 0, 0.0, 10)


def method(**changes: Any) -> CLEAR:
    torch.manual_seed(0)
    built = CLEAR(CLEARConfig(**changes), build_encoder(SMALL, TEXTS))
    if built.config.reads_corpus:
        built.read_corpus(TEXTS)
    return built


def batch(num: int = 8) -> Batch:
    return {"index": torch.arange(num) + 3, "text": TEXTS[:num]}


def double_loop(z0: Tensor, z1: Tensor, temperature: float) -> float:
    z = [row / row.norm() for row in torch.cat([z0, z1])]
    num, total = len(z0), 0.0
    for i in range(2 * num):
        exps = {k: math.exp(float(z[i] @ z[k]) / temperature) for k in range(2 * num) if k != i}
        total -= math.log(exps[(i + num) % (2 * num)] / sum(exps.values()))
    return total / (2 * num)


@pytest.mark.oracle("clear", 2)
def test_the_contrast_is_a_double_loop():
    z = torch.randn(2, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(float(nt_xent(z, temperature=0.1)), double_loop(z[0], z[1], 0.1), rtol=1e-6, atol=1e-6)
    model = method(mlm_weight=0.0)
    value = model.loss({"embedding": z.transpose(0, 1).float(), "feature": z.transpose(0, 1)}, {}, {}, PROGRESS)
    torch.testing.assert_close(float(value.values["contrast"]), double_loop(z[0], z[1], 0.1), rtol=1e-4, atol=1e-5)
    same = {"embedding": torch.ones(4, 2, 5), "feature": torch.ones(4, 2, 5)}
    assert float(model.loss(same, {}, {}, PROGRESS).values["contrast"]) == pytest.approx(math.log(7), abs=1e-5)


@pytest.mark.oracle("clear", 3)
def test_views_and_samples_may_change_places():
    model = method(mlm_weight=0.0)
    z = torch.randn(6, 2, 5)

    def value(z: Tensor) -> Tensor:
        return model.loss({"embedding": z, "feature": z}, {}, {}, PROGRESS).values["contrast"]

    torch.testing.assert_close(value(z.flip(1)), value(z))
    torch.testing.assert_close(value(z[torch.randperm(6)]), value(z))


@pytest.mark.oracle("clear", 4)
def test_without_weight_on_the_contrast_words_alone_are_learnt():
    model = method(contrast_weight=0.0)
    viewed = model.views(batch(), Rng(1))
    torch.manual_seed(1)
    z = model.encode(viewed)
    terms = model.loss(z, viewed, {}, PROGRESS)
    total, num = z["word_loss"].sum(0)
    torch.testing.assert_close(terms.total, total / num)
    terms.total.backward()
    assert all(float(p.grad.abs().max()) == 0.0 for p in model.head.parameters())
    assert all(float(p.grad.abs().max()) > 0.0 for p in model.words.parameters())


def test_pairs_are_made_of_the_text_alone():
    model = method()
    one = model.views(batch(2), Rng(0))
    other = model.views({**batch(2), "positive": ["a word", "another"]}, Rng(0))
    assert one.keys() == other.keys()
    assert torch.equal(one["tokens"]["input_ids"], other["tokens"]["input_ids"])


def test_masked_words_are_those_of_the_unchanged_sentence():
    model = method()
    viewed = model.views(batch(), Rng(1))
    plain = model.encoder.tokenise(TEXTS[:8])["input_ids"]
    labels = viewed["masked"]["labels"]
    assert (labels >= 0).any()
    assert torch.equal(labels[labels >= 0], plain[labels >= 0])


@pytest.mark.parametrize("names", [("delete_words",), ("delete_spans", "reorder"), ("substitute", "delete_spans")])
def test_the_contract(names: Any):
    check_method(method(augment=AugmentConfig(first=names, second=names)), batch())


def test_the_contract_on_tokens():
    check_method(method(augment=AugmentConfig(level="token", first=("delete_words",), second=("reorder",))), batch())


@pytest.mark.parametrize("level", ["word", "token"])
def test_views_are_a_function_of_seed_epoch_and_sample(level: Any):
    model = method(augment=AugmentConfig(level=level, first=("delete_words",), second=("delete_words",)))
    one, again, other = (model.views(batch(), Rng(1, e))["tokens"]["input_ids"] for e in (0, 0, 1))
    assert torch.equal(one, again)
    assert one.shape != other.shape or not torch.equal(one, other)
    assert not torch.equal(one[:, 0], one[:, 1]), "the two views draw for themselves"
    part = model.views(take(batch(), torch.tensor([2, 5])), Rng(1, 0))["tokens"]["input_ids"]
    length = part.shape[-1]
    assert torch.equal(part, one[[2, 5], :, :length])


def test_words_are_deleted_before_they_are_cut_into_pieces():
    model = method(augment=AugmentConfig(first=("delete_words",), second=()))
    tokenizer = model.encoder.tokenizer
    ids = model.views(batch(), Rng(1))["tokens"]["input_ids"]
    assert (ids[:, 0] == tokenizer.delete).any(1).all()
    assert not (ids[:, 1] == tokenizer.delete).any()
    changed = (ids[:, 0] > tokenizer.delete).sum(1)
    assert (changed >= 1).all(), "a word is left"
    assert (changed < (ids[:, 1] > tokenizer.delete).sum(1)).all()


def test_tokens_around_a_sentence_stay_around_it():
    model = method(augment=AugmentConfig(level="token", first=("delete_words",), second=("reorder",)))
    tokens = model.views(batch(), Rng(1))["tokens"]
    tokenizer = model.encoder.tokenizer
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    assert (ids[:, :, 0] == tokenizer.cls).all()
    last = ids.gather(2, mask.sum(2, keepdim=True) - 1).squeeze(2)
    assert (last == tokenizer.sep).all()
    assert ((ids == tokenizer.sep).sum(2) == 1).all()
    plain = model.encoder.tokenise(TEXTS[:8])["input_ids"]
    assert torch.equal(ids[:, 1].sort(1).values[:, -plain.shape[1] :], plain.sort(1).values)


def test_a_tokenizer_without_a_token_for_deleted_words_gets_one():
    encoder = build_encoder(SMALL, TEXTS)
    tokenizer = encoder.tokenizer
    names = {kind: name for kind, name in tokenizer.names.items() if kind != "delete"}
    vocabulary = {word: i for word, i in tokenizer.fast.get_vocab().items() if word != "[DEL]"}
    from tokenizers import Tokenizer as Fast
    from tokenizers import models, pre_tokenizers

    kept = sorted(vocabulary, key=vocabulary.__getitem__)
    fast = Fast(models.WordPiece({word: i for i, word in enumerate(kept)}, unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.add_special_tokens(list(names.values()))
    shape = encoder.backbone.config
    shape.vocab_size = len(kept)
    bare = TextEncoder(type(encoder.backbone)(shape, add_pooling_layer=False), Tokenizer(fast, special=names))
    before = bare.backbone.get_input_embeddings().weight[:5].clone()
    model = CLEAR(CLEARConfig(), bare)
    assert bare.tokenizer.delete == len(kept)
    assert bare.backbone.get_input_embeddings().num_embeddings == len(kept) + 1
    assert torch.equal(bare.backbone.get_input_embeddings().weight[:5], before)
    assert model.words.out_features == len(kept) + 1
    assert (model.views(batch(), Rng(0))["tokens"]["input_ids"] == len(kept)).any()
    again = build_encoder(dataclasses.replace(SMALL, name="other"), description=bytes(bare.description.numpy()))
    assert again.tokenizer.delete == len(kept)
    again.load_state_dict(bare.state_dict())
    with pytest.raises(ValueError, match="one without a token for deleted words"):
        add_delete_token(bare)


def run(output: Path, recipe: str = "clear", epochs: int = 2, **trainer: Any):
    found = load_recipe(f"sentences/{recipe}")
    return dataclasses.replace(
        found, encoder=dataclasses.replace(SMALL, pooling="cls"),
        trainer=TrainerConfig(epochs=epochs, batch_size=20, progress=False, report=False, evaluate_before=False,
                              evaluate_every=0, device="cpu", log_every=1, output=str(output), **trainer),
    )  # fmt: skip


@pytest.mark.parametrize("recipe", ["clear", "clear_substitute"])
def test_a_run_goes_on_to_the_bit(tmp_path: Path, recipe: str):
    from nearfar.train import Interrupted, Trainer

    def fit(folder: Path, stop: int = 0, resume: bool = False) -> None:
        chosen = run(folder, recipe)
        data, built = pipeline.build(chosen, without_test(TextSource(TEXTS)))

        def callback(trainer: Trainer, row: dict[str, Any]) -> None:
            if trainer.step == stop:
                trainer._leave(15)

        Trainer(built, data, chosen.trainer, optimiser=chosen.optimiser, recipe=chosen, callbacks=[callback]).fit(
            resume
        )

    fit(tmp_path / "whole")
    with pytest.raises(Interrupted):
        fit(tmp_path / "parts", stop=2)
    fit(tmp_path / "parts", resume=True)
    whole, parts = (pipeline.load_run(tmp_path / name, "last") for name in ("whole", "parts"))
    for name, value in whole.method.state_dict().items():
        assert torch.equal(value, parts.method.state_dict()[name]), name
    assert torch.isfinite(whole.embed(["the doctor buys a car"])).all()


def test_two_steps_through_the_pipeline(tmp_path: Path):
    recipe = dataclasses.replace(run(tmp_path / "run", epochs=1, max_steps=2), data=load_recipe("sentences/clear").data)
    done = pipeline.train(recipe, data=without_test(TextSource(TEXTS)))
    rows = [row for row in done.metrics if "loss" in row]
    assert len(rows) == 2
    assert all(math.isfinite(row["contrast"]) and math.isfinite(row["words"]) for row in rows)


def steps(output: str) -> dict[str, Any]:
    """Losses without dropout."""
    recipe = run(Path(output), epochs=1, drop_last=False)
    recipe = dataclasses.replace(recipe, encoder=dataclasses.replace(SMALL, dropout=0.0))
    done = pipeline.train(recipe, data=without_test(TextSource(TEXTS[:50])))
    return {"losses": [row["loss"] for row in done.metrics if "loss" in row]}


def test_two_processes_equal_one(tmp_path: Path):
    one = steps(str(tmp_path / "one"))
    for found in launch(steps, 2, str(tmp_path / "two")):
        assert found["losses"] == pytest.approx(one["losses"], rel=1e-4)


def test_training_lowers_the_contrast(tmp_path: Path):
    recipe = run(tmp_path / "run", "clear_reorder", epochs=12)
    recipe = dataclasses.replace(
        recipe, encoder=dataclasses.replace(SMALL, pooling="mean", dropout=0.0),
        optimiser=dataclasses.replace(recipe.optimiser, lr=5e-3),
    )  # fmt: skip
    done = pipeline.train(recipe, data=without_test(TextSource(TEXTS)))
    losses = [row["contrast"] for row in done.metrics if "contrast" in row]
    assert sum(losses[-3:]) < 0.6 * sum(losses[:3])


def test_bad_input():
    with pytest.raises(ValueError, match="expected a sentence"):
        method().views({"index": torch.arange(2), "text": ["a word", " "]}, Rng(0))
    with pytest.raises(ValueError, match="table: expected substitutes"):
        CLEAR(CLEARConfig(augment=AugmentConfig(first=("substitute",))), build_encoder(SMALL, TEXTS)).views(
            batch(), Rng(0)
        )
    for changes, told in (
        ({"copies": 3}, "copies: expected 2"),
        ({"mlm_weight": -1.0}, "mlm_weight: expected 0 or more"),
        ({"contrast_weight": -1.0}, "contrast_weight: expected 0 or more"),
        ({"mlm_share": 0.0}, "mlm_share: expected a share"),
    ):
        with pytest.raises(ValueError, match=told):
            CLEARConfig(**changes)
