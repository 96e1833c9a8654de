"""WhitenedCSE: the loss by loops over numpy's whitening, SimCSE as its limit, what its options do, training."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nearfar.batch import Batch
from nearfar.data import Data
from nearfar.method import Progress
from nearfar.objectives import simcse
from nearfar.plugin import load_recipe
from nearfar.rng import Rng
from nearfar.testing import check_method
from nearfar.train import Interrupted, Run, Trainer
from nearfar.whitening import group_whiten
from nearfar_sentences import pipeline, templates
from nearfar_sentences.encoder import build_encoder
from nearfar_sentences.methods.whitenedcse import WhitenedCSE
from nearfar_sentences.systems.whitenedcse import WhitenedCSEConfig
from sentences.conftest import SMALL, tiny

TEXTS = templates.corpus(40, 0)[0]
PROGRESS = Progress(3, 0, 0.0, 10)


def method(**changes: Any) -> WhitenedCSE:
    torch.manual_seed(0)
    return WhitenedCSE(WhitenedCSEConfig(**changes), build_encoder(SMALL, TEXTS)).train()


def batch(num: int = 12) -> Batch:
    return {"index": torch.arange(num) + 3, "text": TEXTS[:num]}


def features(num: int, copies: int = 3, dim: int = 16) -> Tensor:
    draw = torch.randn(num, copies, dim, generator=torch.Generator().manual_seed(0))
    return draw + draw[:, :1] + 2 * torch.randn(dim, generator=torch.Generator().manual_seed(1))


def by_hand(z: Tensor, candidates: Tensor, temperature: float) -> float:
    """Mean cross-entropy of each row's own candidate."""
    x, y = (a.double().numpy() / np.linalg.norm(a.double().numpy(), axis=1, keepdims=True) for a in (z, candidates))
    logits = x @ y.T / temperature
    return float(np.mean(np.log(np.exp(logits).sum(1)) - np.diag(logits)))


def zca(x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(0)
    values, vectors = np.linalg.eigh(centred.T @ centred / len(x))
    return centred @ vectors @ np.diag(np.maximum(values, 1e-5) ** -0.5) @ vectors.T


@pytest.mark.parametrize("scope", ["view", "all"])
def test_the_loss_is_the_sum_of_two_contrasts_of_whitened_copies(scope: Any) -> None:
    model = method(groups=4, shuffle=False, whiten_scope=scope)
    h = features(20)
    found = model.loss({"embedding": h}, {"order_seed": 0}, {}, PROGRESS).total.detach()
    x = h.double().numpy()
    whole = x.reshape(-1, 16)
    white = np.empty_like(x)
    for start in range(0, 16, 4):
        part = slice(start, start + 4)
        if scope == "all":
            white[:, :, part] = zca(whole[:, part]).reshape(20, 3, 4)
        else:
            for view in range(3):
                white[:, view, part] = zca(x[:, view, part])
    z = model.head(torch.from_numpy(white).float()).detach()
    expected = by_hand(z[:, 0], z[:, 1], 0.05) + by_hand(z[:, 0], z[:, 2], 0.05)
    assert float(found) == pytest.approx(expected, rel=1e-4)


@pytest.mark.oracle("whitenedcse", 6)
def test_two_copies_without_whitening_are_simcse() -> None:
    model, h = method(copies=2, whitening="none"), features(9, copies=2)
    found = model.loss({"embedding": h}, {"order_seed": 0}, {}, PROGRESS).total
    torch.testing.assert_close(found, simcse(*model.head(h).unbind(1)))
    three = method(copies=3, whitening="none")
    h = features(9)
    z = three.head(h)
    expected = simcse(z[:, 0], z[:, 1]) + simcse(z[:, 0], z[:, 2])
    torch.testing.assert_close(three.loss({"embedding": h}, {"order_seed": 0}, {}, PROGRESS).total, expected)


def test_every_copy_and_step_has_an_order_of_its_own() -> None:
    model, h = method(groups=4), features(20)
    same = h[:, :1].expand(-1, 3, -1)
    one, again, later = (model.whitened(same, 5, step) for step in (1, 1, 2))
    assert torch.equal(one, again)
    assert (one[:, 0] - one[:, 1]).abs().max() > 0.1
    assert (one - later).abs().max() > 0.1
    assert (model.whitened(same, 6, 1) - one).abs().max() > 0.1
    order = Rng(5, 1, 2).uniform(torch.arange(16), "whitening")[:, 0].argsort(stable=True)
    torch.testing.assert_close(one[:, 2], group_whiten(same[:, 2], 4, order=order))
    plain = method(groups=4, shuffle=False).whitened(same, 5, 1)
    torch.testing.assert_close(plain[:, 0], plain[:, 1])
    torch.testing.assert_close(plain[:, 0], group_whiten(same[:, 0], 4))


@pytest.mark.parametrize("whitening", ["eigh", "cholesky", "newton", "none"])
def test_the_contract(whitening: Any) -> None:
    check_method(method(whitening=whitening), batch())


def test_the_contract_on_triplets(triplets: Data) -> None:
    from nearfar.batch import collate

    _, model = pipeline.build(tiny("whitenedcse", groups=4), triplets)
    rows = collate([triplets.train[i] for i in range(12)])
    check_method(model, rows)
    columns = model.columns(rows)  # type: ignore[operator]
    assert columns == [rows["text"], rows["positive"], rows["text"], rows["negative"]]
    viewed = model.views(rows, Rng(0))
    h = model.train().encode(viewed)["embedding"]
    found = model.loss({"embedding": h}, viewed, {}, PROGRESS).total
    z = model.head(model.whitened(h, 0, 3))  # type: ignore[operator]
    expected = simcse(z[:, 0], z[:, 1], z[:, 3]) + simcse(z[:, 0], z[:, 2], z[:, 3])
    torch.testing.assert_close(found, expected)


def test_a_large_batch_is_shown_without_accuracy() -> None:
    terms = method(whitening="none").loss({"embedding": features(1100)}, {"order_seed": 0}, {}, PROGRESS)
    assert "accuracy" not in terms.logs
    assert math.isfinite(float(terms.logs["uniformity"]))


def test_users_get_features_that_are_not_whitened() -> None:
    model = method().eval()
    kept = model.features(batch())
    torch.testing.assert_close(kept, model.encoder.embed(TEXTS[:12]))
    with pytest.raises(ValueError, match="output: expected one of default"):
        pipeline.embed(model, TEXTS[:2], output="embedding")


def test_the_gradient_reaches_the_encoder_through_the_statistics() -> None:
    model = method(groups=4)
    h = features(20).requires_grad_()
    model.loss({"embedding": h}, {"order_seed": 0}, {}, PROGRESS).total.backward()
    # the loss does not change when a vector is added to all rows, or when all are scaled
    for view in range(3):
        assert h.grad[:, view].sum(0).abs().max() < 1e-5
        assert abs(float((h.grad[:, view] * (h - h.mean(0)).detach()[:, view]).sum())) < 1e-4
    assert h.grad.abs().max() > 1e-3


def test_training_lowers_the_contrast(tmp_path: Path) -> None:
    from nearfar.data import without_test
    from nearfar_sentences.data import TextSource

    recipe = tiny("whitenedcse", tmp_path / "run", groups=4)
    recipe = dataclasses.replace(
        recipe, trainer=dataclasses.replace(recipe.trainer, epochs=12, batch_size=20),
        optimiser=dataclasses.replace(recipe.optimiser, lr=5e-3),
    )  # fmt: skip
    run = pipeline.train(recipe, data=without_test(TextSource(TEXTS)))
    losses = [row["loss"] for row in run.metrics if "loss" in row]
    assert len(losses) == 24
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])


def test_stopped_and_resumed_is_never_stopped(corpus: Data, tmp_path: Path) -> None:
    def run(output: Path, stop_at: int = 0, resume: bool = False) -> None:
        recipe = tiny("whitenedcse", output)
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
    assert math.isfinite(float(pipeline.load_run(tmp_path / "whole").embed(["the doctor buys a car"]).sum()))


def test_a_cached_batch_is_the_whole_batch(corpus: Data, tmp_path: Path) -> None:
    def run(cache: int) -> dict[str, Tensor]:
        recipe = tiny("whitenedcse", tmp_path / str(cache), groups=4)
        recipe = dataclasses.replace(
            recipe, encoder=dataclasses.replace(SMALL, dropout=0.0),
            trainer=dataclasses.replace(recipe.trainer, cache=cache, max_steps=1, batch_size=16),
            optimiser=dataclasses.replace(recipe.optimiser, name="sgd", lr=0.1),
        )  # fmt: skip
        data, model = pipeline.build(recipe, corpus)
        with pytest.warns(UserWarning, match="encoder: expected dropout"):
            Trainer(model, data, recipe.trainer, optimiser=recipe.optimiser, recipe=recipe).fit()
        return model.state_dict()

    whole, parts = run(0), run(4)
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def trained(output: str, **changes: Any) -> dict[str, Any]:
    """Three steps of gradient descent, the last of an uneven batch; Adam would blow up the rounding of the encoder's
    last bias, whose true gradient is 0."""
    import warnings

    from sentences.conftest import corpus_data

    warnings.filterwarnings("ignore", message="encoder: expected dropout")
    torch.set_num_threads(1)
    recipe = tiny("whitenedcse", output, groups=4, **changes)
    recipe = dataclasses.replace(
        recipe, encoder=dataclasses.replace(SMALL, dropout=0.0),
        trainer=dataclasses.replace(recipe.trainer, batch_size=6, drop_last=False),
        optimiser=dataclasses.replace(recipe.optimiser, name="sgd", lr=0.1),
    )  # fmt: skip
    data, model = pipeline.build(recipe, corpus_data())
    run = Trainer(model, data, recipe.trainer, optimiser=recipe.optimiser).fit()
    losses = [row["loss"] for row in run.metrics if "loss" in row]
    return {"losses": losses, "state": {name: value.clone() for name, value in model.state_dict().items()}}


@pytest.mark.parametrize("scope", ["view", "all"])
def test_two_processes_equal_one(scope: str, tmp_path: Path) -> None:
    from distributed.launch import launch

    one = trained(str(tmp_path / "one"), whiten_scope=scope)
    two = launch(_trained, 2, str(tmp_path / "two"), scope)
    assert len(one["losses"]) == 3
    for found in two:
        torch.testing.assert_close(torch.tensor(found["losses"]), torch.tensor(one["losses"]), rtol=1e-4, atol=1e-5)
        for name, value in one["state"].items():
            torch.testing.assert_close(
                found["state"][name], value, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )


def _trained(output: str, scope: str) -> dict[str, Any]:
    return trained(output, whiten_scope=scope)


def test_recipes() -> None:
    found = load_recipe("sentences/whitenedcse_bert")
    assert (found.method.groups, found.method.copies, found.trainer.batch_size) == (128, 3, 256)
    assert load_recipe("sentences/whitenedcse_manual").data.source == "manual"


def test_bad_options() -> None:
    for changes, told in (
        ({"copies": 1}, "method.copies: expected 2 or more"),
        ({"groups": -1}, "method.groups: expected 0 or more"),
        ({"eps": 0.0}, "method.eps: expected a finite number > 0"),
        ({"newton_steps": 0}, "method.newton_steps: expected 1 or more"),
        ({"head_at_test": True}, "method.head_at_test: expected False"),
    ):
        with pytest.raises(ValueError, match=told):
            WhitenedCSEConfig(**changes)
    with pytest.raises(ValueError, match="method.groups: expected a divisor of the 16 channels"):
        method(groups=3)
    model = method()
    with pytest.raises(ValueError, match="x: expected 2 or more rows"):
        model.loss({"embedding": features(1)}, {"order_seed": 0}, {}, PROGRESS)
