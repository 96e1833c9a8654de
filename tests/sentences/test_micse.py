"""miCSE: information of attention against loops, its laws, where gradients go, and the system."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nearfar.batch import Batch, collate, take
from nearfar.data import Data
from nearfar.method import Progress
from nearfar.objectives import simcse
from nearfar.rng import Rng
from nearfar.testing import check_method
from nearfar.train import Interrupted, Run, Trainer
from nearfar_sentences import pipeline
from nearfar_sentences.attention import attention_information, row_sizes, valid_entries
from nearfar_sentences.methods.micse import MiCSE
from sentences.conftest import SMALL, tiny

PROGRESS = Progress(0, 0, 0.0, 1)


def make(corpus: Data, num_layers: int = 2, **changes: Any) -> MiCSE:
    recipe = tiny("micse", **changes)
    recipe = dataclasses.replace(recipe, encoder=dataclasses.replace(SMALL, layers=num_layers))
    _, method = pipeline.build(recipe, corpus)
    assert isinstance(method, MiCSE)
    return method.train()


def batch_of(data: Data, num: int = 8) -> Batch:
    return collate([data.train[i] for i in range(num)])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def maps_of(
    num: int = 3, layers: int = 3, heads: int = 2, length: int = 6, zeros: float = 0.1
) -> tuple[Tensor, Tensor]:
    """Maps of two readings that are alike, with zeros as dropout leaves, and a mask."""
    common = torch.randn(num, 1, layers, heads, length, length, generator=torch.Generator().manual_seed(1))
    own = torch.randn(num, 2, layers, heads, length, length, generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(length) < torch.tensor([length, length - 1, length - 3])[:num, None]).long()
    scores = (common + own).masked_fill(mask[:, None, None, None, None] == 0, float("-inf"))
    maps = scores.softmax(-1)
    return maps * (draw(*maps.shape) >= zeros), mask


def by_loops(maps: Tensor, mask: Tensor, draws: Tensor, num_samples: int, chunks: int) -> tuple[float, float, int]:
    rows, total = [], 0
    num, _, layers, heads, length, _ = maps.shape
    for b in range(num):
        for h in range(heads):
            for first in range(chunks):
                entries = []
                for layer in range(first, layers, chunks):
                    for t in range(length):
                        for k in range(length):
                            x, y = (float(maps[b, view, layer, h, t, k]) for view in (0, 1))
                            if x > 0 and y > 0 and mask[b, t] and mask[b, k]:
                                entries.append((float(draws[b, layer, h, t, k]), math.log(x), math.log(y)))
                rows.append((sorted(entries, reverse=True), len(range(first, layers, chunks)) * length**2))
    counts = [len(entries) for entries, _ in rows if len(entries) >= 3]
    n = num_samples if max(counts) >= num_samples else min(counts)
    found, valid = [], 0
    for entries, size in rows:
        if len(entries) < n:
            continue
        u, v = np.array([entry[1:] for entry in entries[:n]]).T
        found.append(-0.5 * math.log(max(1 - np.corrcoef(u, v)[0, 1] ** 2, 1e-6)))
        valid, total = valid + len(entries), total + size
    return float(np.mean(found)), (valid / total) ** 2 + 1e-6, len(found)


@pytest.mark.parametrize("num_samples", [5, 12, 20, 500])
@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_information_by_loops(num_samples: int, chunks: int) -> None:
    maps, mask = maps_of()
    draws = draw(3, 3, 2, 6, 6, seed=3)
    found = attention_information(maps, mask, draws, num_samples=num_samples, chunks=chunks)
    information, scale, rows = by_loops(maps, mask, draws, num_samples, chunks)
    assert float(found.information) == pytest.approx(information, rel=1e-4)
    assert float(found.scale) == pytest.approx(scale, rel=1e-5)
    assert int(found.num_rows) == rows


@pytest.mark.oracle("micse", 3)
def test_independent_and_equal_maps() -> None:
    n, num = 100, 200
    maps = torch.randn(num, 2, 2, 4, 12, 12, generator=torch.Generator().manual_seed(0)).exp()
    mask, draws = torch.ones(num, 12), draw(num, 2, 4, 12, 12)
    found = attention_information(maps, mask, draws, num_samples=n)
    assert float(found.information) == pytest.approx(1 / (2 * n), rel=0.15)
    assert int(found.num_rows) == num * 4 * 2
    same = maps[:, :1].expand_as(maps)
    assert float(attention_information(same, mask, draws, num_samples=n).information) == pytest.approx(
        -0.5 * math.log(1e-6)
    )


@pytest.mark.oracle("micse", 4)
def test_powers_and_factors_change_nothing() -> None:
    maps, mask = maps_of()
    draws = draw(3, 3, 2, 6, 6)
    expected = attention_information(maps, mask, draws, num_samples=12)
    for power, factor in ((2.0, 1.0), (0.5, 1.0), (1.0, 7.0), (1.5, 0.1)):
        found = attention_information(factor * maps**power, mask, draws, num_samples=12)
        torch.testing.assert_close(found.information, expected.information)
        torch.testing.assert_close(found.scale, expected.scale)


@pytest.mark.oracle("micse", 5)
def test_half_of_the_entries_masked() -> None:
    maps = draw(4, 2, 2, 3, 8, 8) + 0.1
    maps[..., ::2] = 0.0
    found = attention_information(maps, torch.ones(4, 8), draw(4, 2, 3, 8, 8), num_samples=20)
    assert float(found.scale) == pytest.approx(0.25 + 1e-6, abs=1e-7)
    one_side = draw(4, 2, 2, 3, 8, 8) + 0.1
    one_side[:, 0, ..., ::2] = 0.0
    found = attention_information(one_side, torch.ones(4, 8), draw(4, 2, 3, 8, 8), num_samples=20)
    assert float(found.scale) == pytest.approx(0.25 + 1e-6, abs=1e-7)


def test_entries_are_drawn_evenly_and_never_twice() -> None:
    maps = draw(1, 2, 1, 1, 4, 4) + 0.1
    maps[..., 0] = 0.0
    valid = valid_entries(maps, torch.ones(1, 4)).flatten()
    counts = torch.zeros(16)
    for seed in range(600):
        key = Rng(seed).uniform(torch.tensor([5]), "attention", 16)[0]
        counts[torch.where(valid, key, -1.0).topk(4).indices] += 1
    assert (counts[~valid] == 0).all()
    assert (abs(counts[valid] - 200) < 5 * math.sqrt(200)).all()


def test_rows_without_entries_are_left_out_and_none_at_all_is_zero() -> None:
    maps, mask = maps_of(zeros=0.0)
    maps = maps.clone()
    maps[0, 0, :, 0] = 0.0
    draws = draw(3, 3, 2, 6, 6)
    maps.requires_grad_()
    found = attention_information(maps, mask, draws, num_samples=5, chunks=1)
    assert int(found.num_rows) == 5
    found.information.backward()
    assert torch.isfinite(maps.grad).all()
    assert (maps.grad[0, :, :, 0] == 0).all()
    empty = torch.zeros(2, 2, 1, 1, 4, 4, requires_grad=True)
    found = attention_information(empty, torch.ones(2, 4), draw(2, 1, 1, 4, 4))
    assert (found.information.item(), int(found.num_rows)) == (0.0, 0)
    found.information.backward()
    assert (empty.grad == 0).all()


def test_parts_of_a_batch_add_up_to_it() -> None:
    maps, mask = maps_of()
    draws = draw(3, 3, 2, 6, 6)
    whole = attention_information(maps, mask, draws, num_samples=12)
    short = slice(0, 3)  # the last sentence alone is padded to three tokens
    parts = [
        (maps[:2], mask[:2], draws[:2]), (maps[2:, ..., short, short], mask[2:, short], draws[2:, ..., short, short])
    ]  # fmt: skip
    gathered = torch.cat([row_sizes(valid_entries(x, m), 2) for x, m, _ in parts])
    found = [attention_information(*part, num_samples=12, gathered=gathered) for part in parts]
    rows = torch.stack([one.num_rows for one in found])
    means = torch.stack([one.information for one in found])
    assert int(rows.sum()) == int(whole.num_rows)
    torch.testing.assert_close((means * rows).sum() / rows.sum(), whole.information)
    for one in found:
        torch.testing.assert_close(one.scale, whole.scale)


@pytest.mark.oracle("micse", 1)
def test_without_weight_it_is_simcse(corpus: Data) -> None:
    method = make(corpus, attention_weight=0.0)
    _, other = pipeline.build(tiny("simcse"), corpus)
    assert method.state_dict().keys() == other.state_dict().keys()
    values = []
    for one in (method, other.train()):
        batch = one.views(batch_of(corpus), Rng(0))
        torch.manual_seed(3)
        values.append(one.loss(one.encode(batch), batch, {}, PROGRESS))
    assert torch.equal(values[0].total, values[1].total)
    assert values[0].values.keys() == {"contrast"}
    assert "draws" not in method.views(batch_of(corpus), Rng(0))


def test_the_loss_is_the_objectives(corpus: Data) -> None:
    method = make(corpus, num_layers=4, attention_weight=0.3, contrast_weight=0.5, num_samples=20)
    batch = method.views(batch_of(corpus), Rng(0))
    z = method.encode(batch)
    assert z["maps"].shape[1:4] == (2, 2, 2)
    terms = method.loss(z, batch, {}, PROGRESS)
    expected = attention_information(
        z["maps"], batch["tokens"]["attention_mask"][:, 0], batch["draws"], num_samples=20, chunks=2
    )
    contrast = simcse(z["embedding"][:, 0], z["embedding"][:, 1])
    total = 0.5 * contrast - 0.3 * expected.scale * expected.information
    torch.testing.assert_close(terms.total, total.float())
    assert float(expected.information.detach()) > 0.1, "copies of a sentence attend alike"
    assert terms.counts["attention"] == float(expected.num_rows)


@pytest.mark.oracle("micse", 6)
def test_attention_moves_queries_and_keys_below_the_last_chosen_layer(corpus: Data) -> None:
    method = make(corpus, num_layers=4, layers=(1, 3))
    batch = method.views(batch_of(corpus), Rng(0))
    terms = method.loss(method.encode(batch), batch, {}, PROGRESS)
    terms.values["attention"].backward()
    for name, parameter in method.encoder.backbone.named_parameters():
        if ".query.weight" in name or ".key.weight" in name:
            number = int(name.split("layer.")[1].split(".")[0])
            size = 0.0 if parameter.grad is None else float(parameter.grad.abs().max())
            assert (size > 0) == (number < 3), name
    assert all(p.grad is None for p in method.head.parameters())


def test_training_makes_attention_alike(corpus: Data) -> None:
    method = make(corpus, attention_weight=1.0, contrast_weight=0.0)
    optimiser = torch.optim.Adam(method.parameters(), lr=3e-3)
    torch.manual_seed(0)
    found = []
    for step in range(40):
        batch = method.views(batch_of(corpus, 16), Rng(0, step))
        terms = method.loss(method.encode(batch), batch, {}, PROGRESS)
        optimiser.zero_grad()
        terms.total.backward()
        optimiser.step()
        found.append(float(terms.logs["information"]))
    assert np.mean(found[-5:]) > np.mean(found[:5]) + 0.3


@pytest.mark.parametrize("changes", [{}, {"attention_weight": 0.0}, {"layers": (0, 2), "chunks": 3, "num_samples": 10}])
def test_the_contract(corpus: Data, changes: dict) -> None:
    check_method(make(corpus, **changes), batch_of(corpus, 12))


def test_draws_belong_to_the_sample(corpus: Data) -> None:
    method = make(corpus)
    batch = batch_of(corpus, 12)
    whole = method.views(batch, Rng(0))
    part = method.views(take(batch, torch.tensor([3, 7])), Rng(0))["draws"]
    length = part.shape[-1]
    assert torch.equal(part, whole["draws"][[3, 7], ..., :length, :length])
    assert not torch.equal(whole["draws"], method.views(batch, Rng(0, 1))["draws"])


def test_the_upper_half_is_the_default(corpus: Data) -> None:
    assert make(corpus, num_layers=4).layers == slice(2, 4)
    assert make(corpus, num_layers=3).layers == slice(1, 3)
    assert make(corpus, num_layers=1).layers == slice(0, 1)
    method = make(corpus, num_layers=1)
    assert method.encoder.backbone.config._attn_implementation == "eager"
    check_method(method, batch_of(corpus, 12))


def run(output: Path, corpus: Data, epochs: int = 2, stop_at: int = 0, resume: bool = False, cache: int = 0) -> Run:
    recipe = tiny("micse", output, attention_weight=0.5)
    recipe = dataclasses.replace(recipe, trainer=dataclasses.replace(recipe.trainer, epochs=epochs, cache=cache))
    data, method = pipeline.build(recipe, corpus)

    def callback(trainer: Trainer, row: dict) -> None:
        if trainer.step == stop_at:
            trainer._leave(15)

    return Trainer(method, data, recipe.trainer, optimiser=recipe.optimiser, recipe=recipe, callbacks=[callback]).fit(
        resume
    )


def test_stopped_and_resumed_is_never_stopped(corpus: Data, tmp_path: Path) -> None:
    run(tmp_path / "whole", corpus)
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", corpus, stop_at=3)
    run(tmp_path / "parts", corpus, resume=True)
    files = [Run(tmp_path / name).checkpoint("last") / "model.safetensors" for name in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()
    found = pipeline.load_run(tmp_path / "whole", "last")
    assert torch.isfinite(found.embed(["the doctor buys a car"])).all()


def test_encoded_in_parts_it_trains_the_same(corpus: Data, tmp_path: Path) -> None:
    recipe = tiny("micse", attention_weight=0.5)
    without = dataclasses.replace(recipe, encoder=dataclasses.replace(SMALL, dropout=0.0))
    states = []
    for cache in (0, 3):
        one = dataclasses.replace(
            without, trainer=dataclasses.replace(recipe.trainer, cache=cache, output=str(tmp_path / str(cache)))
        )
        with pytest.warns(UserWarning, match="encoder: expected dropout"):
            pipeline.train(one, data=corpus)
        states.append(pipeline.load_run(tmp_path / str(cache), "last").method.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-3, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_bad_input(corpus: Data, triplets: Data) -> None:
    with pytest.raises(ValueError, match="data.positive: expected none with micse"):
        make(corpus).views(batch_of(triplets), Rng(0))
    for changes, told in (
        ({"copies": 3}, "method.copies: expected 2"),
        ({"attention_weight": -1.0}, "method.attention_weight: expected 0 or more"),
        ({"contrast_weight": -1.0}, "method.contrast_weight: expected 0 or more"),
        ({"layers": (3,)}, "method.layers: expected two numbers"),
        ({"layers": (2, 2)}, "method.layers: expected two numbers"),
        ({"chunks": 0}, "method.chunks: expected 1 or more"),
        ({"num_samples": 2}, "method.num_samples: expected 3 or more"),
        ({"eps": 0.0}, "method.eps: expected a number in"),
    ):
        with pytest.raises(ValueError, match=told):
            tiny("micse", **changes)
    with pytest.raises(ValueError, match=r"method.layers: expected layers of the 2 that the encoder has"):
        make(corpus, layers=(1, 3))
    maps, mask = maps_of()
    draws = draw(3, 3, 2, 6, 6)
    with pytest.raises(ValueError, match="maps: expected shape"):
        attention_information(maps[:, :1], mask, draws)
    with pytest.raises(ValueError, match=r"draws: expected shape \(3, 3, 2, 6, 6\), received \(2, 3, 2, 6, 6\)"):
        attention_information(maps, mask, draws[:2])
    with pytest.raises(ValueError, match="num_samples: expected 3 or more, received 2"):
        attention_information(maps, mask, draws, num_samples=2)
    with pytest.raises(ValueError, match="chunks: expected 1 or more, received 0"):
        attention_information(maps, mask, draws, chunks=0)
