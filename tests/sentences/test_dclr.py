"""DCLR: the loss by brute force, SimCSE as its limit, who gets a gradient, the complement, training."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nearfar.batch import Batch, collate
from nearfar.data import Data, without_test
from nearfar.method import Progress
from nearfar.objectives import simcse
from nearfar.plugin import load_recipe
from nearfar.rng import Rng
from nearfar.testing import check_method
from nearfar.train import Interrupted, Run, Trainer
from nearfar_sentences import pipeline, templates
from nearfar_sentences.complement import frozen, learn_complement, load_complement
from nearfar_sentences.config import TextEncoderConfig
from nearfar_sentences.data import TextSource
from nearfar_sentences.debias import debiased_contrast, hard_noise, keep_negatives
from nearfar_sentences.encoder import build_encoder
from nearfar_sentences.methods.dclr import DCLR
from nearfar_sentences.systems.dclr import DCLRConfig
from sentences.conftest import SMALL, tiny

TEXTS = templates.corpus(40, 0)[0]
PROGRESS = Progress(3, 0, 0.0, 10)
F64 = torch.float64


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def method(**changes: Any) -> DCLR:
    torch.manual_seed(0)
    built = DCLR(DCLRConfig(**{"complement_steps": 2, **changes}), build_encoder(SMALL, TEXTS)).train()
    if built.config.reads_corpus:
        built.read_corpus(TEXTS)
    return built


def batch(num: int = 12) -> Batch:
    return {"index": torch.arange(num) + 3, "text": TEXTS[:num]}


def by_hand(a: Tensor, c: Tensor, keep: Tensor, noise: Tensor, t: float = 0.05) -> list[float]:
    """Each row's loss, in plain loops."""
    losses = []
    for i, row in enumerate(a):
        own = math.exp(float(torch.cosine_similarity(row, c[i], dim=0)) / t)
        total = own
        for j, other in enumerate(c):
            if j != i and keep[i, j]:
                total += math.exp(float(torch.cosine_similarity(row, other, dim=0)) / t)
        for other in noise:
            total += math.exp(float(torch.cosine_similarity(row, other, dim=0)) / t)
        losses.append(-math.log(own / total))
    return losses


# -- the mathematics ---------------------------------------------------------------------------------------------------


@pytest.mark.oracle("dclr", 1)
def test_a_threshold_of_1_and_no_noise_are_simcse() -> None:
    z = torch.randn(8, 2, 6)
    keep = keep_negatives(z[:, 0], torch.cat([z[:4, 0], z[4:, 1]]), torch.arange(8), 1.0)  # with equal vectors among
    assert keep.all()
    found = debiased_contrast(z[:, 0], z[:, 1], torch.arange(8), keep_BN=keep)
    assert torch.equal(found.loss, simcse(z[:, 0], z[:, 1]))
    model = method(threshold=1.0, noise_ratio=0.0)
    viewed = model.views(batch(), Rng(0))
    assert "complement" not in viewed
    made = model.encode(viewed)
    total = model.loss(made, viewed, model.targets(viewed, PROGRESS), PROGRESS).total
    assert torch.equal(total, simcse(*made["embedding"].unbind(1)))


@pytest.mark.oracle("dclr", 2)
def test_a_false_negative_leaves_its_own_row_alone() -> None:
    z1, z2, noise = draw(3, 4), draw(3, 4, seed=1), draw(2, 4, seed=2)
    # vectors of the complement whose cosines are known: 0.95 from 1 to candidate 2, 0.6 from 2 to candidate 1
    c1 = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
    c2 = torch.tensor([[1.0, 0.0, 0.0], [0.95, (1 - 0.95**2) ** 0.5, 0.0], [0.0, 0.0, 1.0]])
    rows = torch.arange(3)
    keep = keep_negatives(c1, c2, rows, 0.9)
    assert keep.tolist() == [[True, False, True], [True, True, True], [True, True, True]]
    one_sided = debiased_contrast(z1, z2, rows, keep_BN=keep).loss
    assert float(one_sided) == pytest.approx(np.mean(by_hand(z1, z2, keep, noise[:0])), rel=1e-9)
    noisy = debiased_contrast(z1, z2, rows, keep_BN=keep, noise_ME=noise).loss
    assert float(noisy) == pytest.approx(np.mean(by_hand(z1, z2, keep, noise)), rel=1e-9)
    both = keep_negatives(c2, c2, rows, 0.9)
    assert both.tolist() == [[True, False, True], [False, True, True], [True, True, True]]
    symmetric = debiased_contrast(z1, z2, rows, keep_BN=both).loss
    assert float(symmetric) == pytest.approx(np.mean(by_hand(z1, z2, both, noise[:0])), rel=1e-9)
    assert float(symmetric) < float(one_sided)


def test_the_own_candidate_is_kept_however_near() -> None:
    same = torch.ones(4, 3)
    keep = keep_negatives(same, same, torch.arange(4), 0.5)
    assert torch.equal(keep, torch.eye(4, dtype=torch.bool))
    found = debiased_contrast(draw(4, 3), draw(4, 3, seed=1), torch.arange(4), keep_BN=keep)
    assert float(found.loss) == 0.0, "with nothing but the positive there is nothing to lose"


@pytest.mark.parametrize("num_noise", [0, 3])
def test_the_cross_entropy_of_the_code_by_numpy(num_noise: int) -> None:
    z1, z2, noise = draw(4, 5), draw(4, 5, seed=1), draw(num_noise, 5, seed=2)
    keep = torch.rand(4, 4, generator=torch.Generator().manual_seed(3)) > 0.4
    keep.fill_diagonal_(True)

    def unit(x: Tensor) -> np.ndarray:
        return x.numpy() / np.linalg.norm(x.numpy(), axis=1, keepdims=True)

    logits = np.concatenate([unit(z1) @ unit(z2).T / 0.05 * keep.numpy(), unit(z1) @ unit(noise).T / 0.05], 1)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    p, y = np.clip(p, 1e-7, 1 - 1e-7), np.eye(4, 4 + num_noise)
    expected = -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p))
    found = debiased_contrast(z1, z2, torch.arange(4), keep_BN=keep, noise_ME=noise, loss="code_bce")
    assert float(found.loss) == pytest.approx(expected, rel=1e-9)
    assert float(found.accuracy) == pytest.approx(np.mean(logits.argmax(1) == np.arange(4)))
    extreme = torch.eye(4, dtype=F64, requires_grad=True)
    loss = debiased_contrast(extreme, torch.eye(4, dtype=F64), torch.arange(4), temperature=0.001, loss="code_bce").loss
    assert float(loss.detach()) == pytest.approx(1e-7, rel=1e-3)  # probabilities stay away from 0 and 1
    loss.backward()
    assert torch.isfinite(extreme.grad).all()


@pytest.mark.oracle("dclr", 3)
@pytest.mark.oracle("dclr", 4)
def test_noise_becomes_harder() -> None:
    z1, z2, start = draw(6, 8), draw(6, 8, seed=1), draw(9, 8, seed=2)

    def value(noise: Tensor) -> float:
        return float(debiased_contrast(z1, z2, torch.arange(6), noise_ME=noise).loss)

    noise = [
        hard_noise(z1, z2, start, temperature=0.05, num_steps=n, step_size=1e-3) for n in range(5)
    ]  # fmt: skip
    assert torch.equal(noise[0], start)
    values = [value(n) for n in noise]
    assert values == sorted(values)
    assert values[4] > values[0]
    assert (noise[4] - start).norm(dim=1).max() <= 4e-3 + 1e-12
    assert ((noise[1] - start) * start).sum(1).abs().max() < 1e-12
    assert (noise[4].norm(dim=1) >= start.norm(dim=1)).all()


@pytest.mark.oracle("dclr", 5)
@pytest.mark.parametrize("loss", ["infonce", "code_bce"])
def test_neither_complement_nor_noise_gets_a_gradient(loss: Any) -> None:
    model = method(loss=loss, threshold=0.5)
    viewed = model.views(batch(), Rng(0))
    z = model.encode(viewed)
    targets = model.targets(viewed, PROGRESS)
    noise = model.noise(z["embedding"].detach(), 0, 3)
    assert not noise.requires_grad
    assert noise.shape == (12, 16)
    before = {name: value.clone() for name, value in model.complement.state_dict().items()}
    model.loss(z, viewed, targets, PROGRESS).total.backward()
    assert all(p.grad is None for p in model.complement.parameters())
    assert all(not p.requires_grad for p in model.complement.parameters())
    assert all(p.grad is not None for p in model.encoder.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.complement.state_dict().items())
    trained = {id(p) for p in model.optimisers()["main"]}
    assert not trained & {id(p) for p in model.complement.parameters()}


# -- the method --------------------------------------------------------------------------------------------------------


def test_the_loss_of_the_method_is_the_formula() -> None:
    model = method(threshold=0.7, noise_ratio=0.5, temperature=0.5)
    viewed = model.views(batch(), Rng(0))
    z, targets = model.encode(viewed), model.targets(viewed, PROGRESS)
    terms = model.loss(z, viewed, targets, PROGRESS)
    c = model.complement.module.embed(TEXTS[:12])
    cosine = torch.nn.functional.normalize(c, dim=1) @ torch.nn.functional.normalize(c, dim=1).T
    keep = (cosine <= 0.7) | torch.eye(12, dtype=torch.bool)
    assert int((~keep).sum()) > 0
    assert float(terms.logs["left_out"]) == pytest.approx(float((~keep).float().mean()))
    zd = z["embedding"].detach().double()
    noise = model.noise(z["embedding"].detach(), 0, 3)
    assert len(noise) == 6
    expected = np.mean(by_hand(zd[:, 0], zd[:, 1], keep, noise.double(), 0.5))
    assert float(terms.total.detach()) == pytest.approx(expected, rel=1e-4)


def test_noise_is_new_at_every_step_and_the_same_at_the_same() -> None:
    model, z = method(), torch.randn(5, 2, 16)
    one, again, later = (model.noise(z, 4, step) for step in (1, 1, 2))
    assert torch.equal(one, again)
    assert (one - later).abs().max() > 0.1
    assert method(noise_ratio=2.5).noise(z, 4, 1).shape == (12, 16)
    assert method(noise_ratio=0.1).noise(z, 4, 1) is None


def test_the_complement_speaks_without_dropout() -> None:
    model = method()
    viewed = model.views(batch(), Rng(0))
    assert viewed["complement"]["input_ids"].shape[:2] == (12, 1)
    one, again = (model.targets(viewed, PROGRESS)["complement"] for _ in range(2))
    assert torch.equal(one, again)
    torch.testing.assert_close(one[:, 0], model.complement.module.embed(TEXTS[:12]))
    assert model.encoder.training
    assert not model.complement.module.training


@pytest.mark.parametrize(
    "changes", [{}, {"loss": "code_bce"}, {"threshold": 1.0}, {"noise_ratio": 0.0}, {"threshold": 0.2}]
)
def test_the_contract(changes: dict[str, Any]) -> None:
    check_method(method(**changes), batch())


def test_pairs_and_hard_negatives_are_weighed_too(triplets: Data) -> None:
    recipe = tiny("dclr", threshold=0.6, noise_ratio=0.0, complement_steps=2)
    _, model = pipeline.build(recipe, triplets)
    rows = collate([triplets.train[i] for i in range(8)])
    check_method(model, rows)
    model.train()
    viewed = model.views(rows, Rng(0))
    assert viewed["complement"]["input_ids"].shape[:2] == (8, 3)
    z, targets = model.encode(viewed), model.targets(viewed, PROGRESS)
    found = model.loss(z, viewed, targets, PROGRESS).total.detach()
    a, p, n = (model.complement.module.embed(rows[name]) for name in ("text", "positive", "negative"))
    cosine = torch.nn.functional.normalize(a, dim=1) @ torch.nn.functional.normalize(torch.cat([p, n]), dim=1).T
    keep = (cosine <= 0.6) | torch.eye(8, 16, dtype=torch.bool)
    assert not keep.all()
    zd = z["embedding"].detach().double()
    expected = np.mean(by_hand(zd[:, 0], torch.cat([zd[:, 1], zd[:, 2]]), keep, zd[:0, 0]))
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_a_complement_of_a_run_and_of_transformers(corpus: Data, tmp_path: Path) -> None:
    from nearfar_sentences.export import export

    run = pipeline.train(tiny("simcse", tmp_path / "simcse"), data=corpus)
    loaded = pipeline.load_run(run.path)
    of_run = load_complement(str(run.path), 16)
    torch.testing.assert_close(of_run.module.embed(TEXTS[:3]), loaded.embed(TEXTS[:3]))
    export(loaded, tmp_path / "folder")
    of_folder = load_complement(str(tmp_path / "folder"), 16)
    torch.testing.assert_close(of_folder.module.embed(TEXTS[:3]), loaded.embed(TEXTS[:3]), rtol=1e-4, atol=1e-5)
    # the encoder in training may have other words than its complement
    recipe = tiny("dclr", tmp_path / "dclr", complement=str(run.path), noise_ratio=0.5)
    recipe = dataclasses.replace(recipe, encoder=dataclasses.replace(SMALL, vocabulary=120))
    done = pipeline.train(recipe, data=corpus)
    assert math.isfinite(done.metrics[0]["loss"])
    # a run is loaded without its complement, which may be gone
    (tmp_path / "simcse").rename(tmp_path / "gone")
    again = pipeline.load_run(done.path)
    assert again.method.complement is None
    assert torch.isfinite(again.embed(TEXTS[:3])).all()
    with pytest.raises(OSError, match="nowhere"):
        load_complement(str(tmp_path / "nowhere"), 16)


def test_a_complement_is_learnt_alike_and_leaves_random_numbers_alone() -> None:
    encoder = build_encoder(SMALL, TEXTS)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, other = (learn_complement(encoder, TEXTS, 3) for _ in range(2))
    assert torch.equal(torch.rand(3), expected)
    plain = frozen(encoder).module.embed(TEXTS[:4])
    torch.testing.assert_close(one.module.embed(TEXTS[:4]), other.module.embed(TEXTS[:4]))
    assert (one.module.embed(TEXTS[:4]) - plain).abs().max() > 1e-4
    torch.testing.assert_close(encoder.embed(TEXTS[:4]), plain)


def test_a_learnt_complement_finds_other_wordings() -> None:
    rng = np.random.default_rng(0)
    meanings = [templates.meaning(rng) for _ in range(12)]
    texts = [templates.say(m, rng) for m in meanings for _ in range(10)]
    torch.manual_seed(0)
    encoder = build_encoder(TextEncoderConfig(layers=1, dim=32, heads=2, vocabulary=300, max_length=24), texts)

    def apart(teacher: Any) -> float:
        unit = torch.nn.functional.normalize(teacher.module.embed(texts), dim=1)
        cosine = unit @ unit.T
        same = torch.block_diag(*[torch.ones(10, 10, dtype=torch.bool)] * 12)
        off = ~torch.eye(120, dtype=torch.bool)
        return float(cosine[same & off].mean() - cosine[~same].mean())

    assert apart(learn_complement(encoder, texts, 40)) > apart(frozen(encoder)) + 0.02


def test_stopped_and_resumed_is_never_stopped(corpus: Data, tmp_path: Path) -> None:
    def run(output: Path, stop_at: int = 0, resume: bool = False) -> None:
        recipe = tiny("dclr", output, complement_steps=2, threshold=0.5)
        recipe = dataclasses.replace(recipe, trainer=dataclasses.replace(recipe.trainer, epochs=2))
        data, model = pipeline.build(recipe, corpus)

        def callback(trainer: Trainer, row: dict) -> None:
            if trainer.step == stop_at:
                trainer._leave(15)

        Trainer(model, data, recipe.trainer, optimiser=recipe.optimiser, recipe=recipe, callbacks=[callback]).fit(
            resume
        )

    run(tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", stop_at=3)
    run(tmp_path / "parts", resume=True)
    files = [Run(tmp_path / name).checkpoint("last") / "model.safetensors" for name in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    recipe = tiny("dclr", tmp_path / "run", complement_steps=5)
    recipe = dataclasses.replace(
        recipe, trainer=dataclasses.replace(recipe.trainer, epochs=12, batch_size=20),
        optimiser=dataclasses.replace(recipe.optimiser, lr=5e-3),
    )  # fmt: skip
    run = pipeline.train(recipe, data=without_test(TextSource(TEXTS)))
    losses = [row["loss"] for row in run.metrics if "loss" in row]
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])


def test_recipes() -> None:
    found = load_recipe("sentences/dclr_roberta_large")
    options = (found.method.threshold, found.method.noise_ratio, found.optimiser.lr, found.trainer.epochs)
    assert options == (0.85, 5.0, 1e-5, 1)
    assert load_recipe("sentences/dclr_bert").method.complement.startswith("princeton-nlp/")
    assert load_recipe("sentences/dclr_manual").data.source == "manual"


def test_bad_input() -> None:
    for changes, told in (
        ({"copies": 3}, "method.copies: expected 2"),
        ({"threshold": -1.0}, r"method.threshold: expected a cosine in \(-1, 1\]"),
        ({"threshold": 1.5}, "method.threshold: expected a cosine"),
        ({"noise_ratio": -0.5}, "method.noise_ratio: expected 0 or more"),
        ({"noise_steps": -1}, "method.noise_steps: expected 0 or more"),
        ({"noise_step_size": 0.0}, "method.noise_step_size: expected a number above 0"),
        ({"complement_steps": 0}, "method.complement_steps: expected 1 or more"),
        ({"threshold": 1.0, "complement": "x"}, "method.complement: expected nothing with method.threshold 1"),
    ):
        with pytest.raises(ValueError, match=told):
            DCLRConfig(**changes)
    with pytest.raises(ValueError, match="threshold: expected a cosine"):
        keep_negatives(draw(2, 3), draw(2, 3), torch.arange(2), -1.0)
    with pytest.raises(ValueError, match="loss: expected one of 'infonce', 'code_bce'"):
        debiased_contrast(draw(2, 3), draw(2, 3), torch.arange(2), loss="bce")
    with pytest.raises(ValueError, match="candidate_NE: expected two candidates or more"):
        debiased_contrast(draw(1, 3), draw(1, 3), torch.arange(1))
    assert (
        float(
            debiased_contrast(
                draw(1, 3), draw(1, 3), torch.arange(1), noise_ME=draw(1, 3, seed=5), temperature=1.0
            ).loss
        )
        > 0
    )
    bare = DCLR(DCLRConfig(), build_encoder(SMALL, TEXTS))
    with pytest.raises(RuntimeError, match="complement: expected one, by read_corpus"):
        bare.views(batch(), Rng(0))
