"""SimCSE as a system: copies, pairs, hard negatives, words beside, and duplicates."""

from __future__ import annotations

import dataclasses
import warnings
from pathlib import Path

import pytest
import torch

from nearfar.batch import collate
from nearfar.data import Data, without_test
from nearfar.method import Progress
from nearfar.objectives import simcse
from nearfar.rng import Rng
from nearfar.testing import check_method
from nearfar.train import Interrupted, Run, Trainer
from nearfar_sentences import pipeline
from nearfar_sentences.data import TextSource
from sentences.conftest import SMALL, tiny


def batch_of(data: Data, num: int = 12) -> dict:
    return collate([data.train[i] for i in range(num)])


@pytest.mark.parametrize("changes", [{}, {"mask_duplicates": True}, {"mlm_weight": 0.1}])
def test_the_contract_on_triplets(triplets: Data, changes: dict) -> None:
    _, method = pipeline.build(tiny("simcse", **changes), triplets)
    check_method(method, batch_of(triplets))


def test_the_loss_is_the_objective(triplets: Data) -> None:
    _, method = pipeline.build(tiny("simcse", hard_negative_weight=0.5), triplets)
    batch = method.views(batch_of(triplets), Rng(0))
    z = method.encode(batch)
    terms = method.loss(z, batch, {}, Progress(0, 0, 0.0, 1))
    expected = simcse(*z["embedding"].unbind(1), hard_negative_weight=0.5)
    torch.testing.assert_close(terms.total, expected.float())


def test_copies_differ_by_dropout_alone(corpus: Data) -> None:
    _, method = pipeline.build(tiny("simcse"), corpus)
    batch = method.views(batch_of(corpus), Rng(0))
    method.train()
    one, other = method.encode(batch)["feature"].unbind(1)
    assert (one - other).abs().amax(1).min() > 1e-4
    method.eval()
    one, other = method.encode(batch)["feature"].unbind(1)
    torch.testing.assert_close(one, other)


@pytest.mark.oracle("simcse", 6)
def test_without_dropout_the_positive_term_has_no_gradient(corpus: Data) -> None:
    recipe = tiny("simcse")
    recipe = dataclasses.replace(recipe, encoder=dataclasses.replace(SMALL, dropout=0.0))
    _, method = pipeline.build(recipe, corpus)
    method.train()
    with pytest.warns(UserWarning, match="encoder: expected dropout"):
        batch = method.views(batch_of(corpus), Rng(0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is said once
        method.views(batch_of(corpus), Rng(0))
    z = method.encode(batch)["embedding"]
    torch.testing.assert_close(z[:, 0], z[:, 1])
    torch.cosine_similarity(z[:, 0], z[:, 1]).sum().backward()
    assert all(p.grad is None or p.grad.abs().max() < 1e-5 for p in method.parameters())


def test_the_same_sentence_twice_is_no_negative() -> None:
    data = without_test(TextSource(["the cat sat", "the cat sat", "a dog ran"] * 3, positive=["b c d e"] * 9))
    _, method = pipeline.build(tiny("simcse", mask_duplicates=True), data)
    batch = method.views(batch_of(data, 9), Rng(0))
    z = method.encode(batch)["embedding"]
    found = method.loss({"embedding": z, "feature": z}, batch, {}, Progress(0, 0, 0.0, 1)).total
    ids = torch.tensor([0, 0, 1] * 3)
    torch.testing.assert_close(found, simcse(z[:, 0], z[:, 1], ids=ids).float())


def test_words_are_predicted_beside(corpus: Data) -> None:
    _, method = pipeline.build(tiny("simcse", mlm_weight=0.1), corpus)
    batch = method.views(batch_of(corpus), Rng(0))
    terms = method.loss(method.encode(batch), batch, {}, Progress(0, 0, 0.0, 1))
    assert terms.weights == {"contrast": 1.0, "words": 0.1}
    size = method.encoder.tokenizer.size
    assert float(terms.values["words"].detach()) == pytest.approx(torch.tensor(float(size)).log().item(), abs=0.7)


def test_the_front_of_a_feature_may_serve_alone(triplets: Data) -> None:
    _, method = pipeline.build(tiny("simcse", head="none", matryoshka=(4, 8)), triplets)
    batch = method.views(batch_of(triplets), Rng(0))
    z = method.encode(batch)
    found = method.loss(z, batch, {}, Progress(0, 0, 0.0, 1)).total
    parts = [simcse(*z["feature"][..., :d].unbind(1)) for d in (4, 8, 16)]
    torch.testing.assert_close(found, torch.stack(parts).mean().float())
    with pytest.raises(ValueError, match=r"method.matryoshka: expected none, or method.head 'none'"):
        tiny("simcse", matryoshka=(4,))
    with pytest.raises(ValueError, match=r"method.matryoshka: expected numbers below the 16"):
        pipeline.build(tiny("simcse", head="none", matryoshka=(16,)), triplets)


def test_stopped_and_resumed_is_never_stopped(corpus: Data, tmp_path: Path) -> None:
    def run(output: Path, stop_at: int = 0, resume: bool = False) -> None:
        recipe = tiny("simcse", output)
        recipe = dataclasses.replace(recipe, trainer=dataclasses.replace(recipe.trainer, epochs=2))
        data, method = pipeline.build(recipe, corpus)

        def callback(trainer: Trainer, row: dict) -> None:
            if trainer.step == stop_at:
                trainer._leave(15)

        Trainer(method, data, recipe.trainer, optimiser=recipe.optimiser, recipe=recipe, callbacks=[callback]).fit(
            resume
        )

    run(tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", stop_at=3)
    run(tmp_path / "parts", resume=True)
    files = [Run(tmp_path / name).checkpoint("last") / "model.safetensors" for name in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_run_starts_where_another_ended(corpus: Data, tmp_path: Path) -> None:
    first = pipeline.train(tiny("mlm", tmp_path / "mlm"), data=corpus)
    recipe = tiny("simcse", tmp_path / "simcse")
    changed = dataclasses.replace(recipe.encoder, start=str(first.path), dim=32, pooling="cls")
    recipe = dataclasses.replace(recipe, encoder=changed, optimiser=dataclasses.replace(recipe.optimiser, lr=1e-12))
    other = pipeline.load_run(pipeline.train(recipe, data=corpus).path)
    before = pipeline.load_run(first.path).encoder
    assert other.encoder.feature_dim == 16
    assert other.encoder.pooling == "cls"
    before.pooling = "cls"
    torch.testing.assert_close(other.embed(["the doctor buys a car"]), before.embed(["the doctor buys a car"]))


def test_bad_options(triplets: Data, corpus: Data, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"method.copies: expected 2"):
        tiny("simcse", copies=3)
    with pytest.raises(ValueError, match=r"method.temperature: expected a number above 0"):
        tiny("simcse", temperature=0.0)
    _, method = pipeline.build(tiny("simcse", hard_negative_weight=1.0), corpus)
    batch = method.views(batch_of(corpus), Rng(0))
    with pytest.raises(ValueError, match=r"method.hard_negative_weight: expected 0 without data.negative"):
        method.loss(method.encode(batch), batch, {}, Progress(0, 0, 0.0, 1))
