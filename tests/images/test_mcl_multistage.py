"""MCL: pseudo-labels, the loss within them, stages in one run and as runs of their own, and features joined."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from images.vectors import batch, forward, make
from nearfar.config import DataConfig, EncoderConfig, HeadConfig, TrainerConfig
from nearfar.data import ArraySource, without_test
from nearfar.method import Progress
from nearfar.objectives import nt_xent
from nearfar.plugin import load_recipe
from nearfar.samplers import SingleGroup
from nearfar_images import pipeline
from nearfar_images.methods.mcl_multistage import fuse, pack, shuffled, unpack
from nearfar_images.multistage import Joined, groups, multistage
from nearfar_images.systems.mcl_multistage import MCLConfig

HEAD = HeadConfig(layers=2, hidden=6, dim=5, norm="none")
NOW = Progress(steps=10)


def staged(**options: Any) -> Any:
    return make(MCLConfig(**{"head": HEAD, "num_clusters": 3, "num_stages": 2} | options), num_samples=24)


def advance(method: Any) -> Tensor:
    """Ends a stage on 24 samples, whose features are given back."""
    raw = {"index": torch.arange(24), "image": torch.randn(24, 8, generator=torch.Generator().manual_seed(2))}
    with torch.no_grad():
        feature = method.features(raw, "stage")
    method.begin(feature, raw["index"])
    return feature


# -- oracles -----------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("mcl_multistage", 1)
@pytest.mark.parametrize("case", ["one cluster", "no history"])
def test_without_history_everything_meets(case: str) -> None:
    method = staged(num_clusters=1) if case == "one cluster" else staged()
    if case == "one cluster":
        advance(method)
    group = method.group(torch.arange(24))
    assert group.tolist() == [0] * 24
    batches = list(SingleGroup(group.numpy(), 5).batches(0))
    assert [len(one) for one in batches] == [5] * 4
    assert len(set(np.concatenate(batches).tolist())) == 20
    z, _, terms = forward(method, batch(6))
    torch.testing.assert_close(terms.total, nt_xent(z, temperature=0.1))


@pytest.mark.oracle("mcl_multistage", 2)
def test_batches_of_packed_labels() -> None:
    cluster = torch.randint(0, 3, (90, 2))
    group = groups([cluster[:, 0], cluster[:, 1]], 3, "all")
    sampler = SingleGroup(group.numpy(), 4, order="interleave")
    found = list(sampler.batches(0))
    assert len(found) == sum(int(n) // 4 for n in group.bincount())
    assert all(len(one) == 4 and len(cluster[one].unique(dim=0)) == 1 for one in found)


@pytest.mark.oracle("mcl_multistage", 3)
def test_packed_labels_are_the_tuples() -> None:
    cluster = torch.randint(0, 7, (60, 3))
    packed = pack(cluster, 7)
    assert torch.equal(unpack(packed, 7, 3), cluster)
    same = (cluster[:, None] == cluster).all(2)
    assert torch.equal(packed[:, None] == packed, same)
    assert int(packed.max()) < 7**3
    assert pack(cluster[:, :0], 7).tolist() == [0] * 60
    assert torch.equal(groups(list(cluster.T), 7, "last"), cluster[:, 2])


@pytest.mark.oracle("mcl_multistage", 4)
def test_cosines_of_joined_features() -> None:
    first, second = torch.randn(6, 4, dtype=torch.float64), torch.randn(6, 9, dtype=torch.float64)
    unit = F.normalize(first, dim=1)
    twice = fuse([first, first])
    torch.testing.assert_close(twice @ twice.T, unit @ unit.T)
    both, other = fuse([first, second], per_stage=True), F.normalize(second, dim=1)
    torch.testing.assert_close(both @ both.T, (unit @ unit.T + other @ other.T) / 2)
    plain = torch.cat([first, second], 1)
    torch.testing.assert_close(fuse([first, second]), plain / plain.norm(dim=1, keepdim=True))


@pytest.mark.oracle("mcl_multistage", 5)
def test_the_loss_of_one_group_is_the_base_learners() -> None:
    method = staged()
    advance(method)
    index = torch.arange(24)
    largest = index[method.group(index) == method.group(index).mode().values]
    raw = batch(len(largest)) | {"index": largest}
    z, _, terms = forward(method, raw)
    torch.testing.assert_close(terms.total, nt_xent(z, temperature=0.1))


# -- the rest ----------------------------------------------------------------------------------------------------------


def test_only_samples_of_one_group_meet() -> None:
    method = staged()
    advance(method)
    z, targets, terms = forward(method, batch(12))
    losses = []
    for g in targets["own"].unique():
        rows = (targets["own"] == g).nonzero()[:, 0]
        for i in rows:
            for v in range(2):
                s = F.cosine_similarity(z[v, i], z[:, rows], dim=2) / 0.1
                others = [s[w, j] for w in range(2) for j, row in enumerate(rows) if not (w == v and row == i)]
                losses.append(torch.stack(others).logsumexp(0) - s[1 - v, int((rows == i).nonzero())])
    torch.testing.assert_close(terms.total, torch.stack(losses).mean())
    alone = [float((targets["own"] == g).sum() == 1) for g in targets["own"]]
    assert float(terms.logs["alone"]) == pytest.approx(sum(alone) / 12)


@pytest.mark.parametrize("start", ["scratch", "stage0", "previous"])
def test_stages_follow_each_other(start: str) -> None:
    method = staged(start=start)
    raw = batch(4)
    starts = {name: value.clone() for name, value in method.encoder.state_dict().items()}
    fresh = [{name: value.clone() for name, value in past[0].state_dict().items()} for past in method.past]
    ended, kept = [], []
    for t in range(2):
        with torch.no_grad():
            for parameter in method.encoder.parameters():
                parameter.add_(0.1 * (t + 1))
            ended.append(method.features(raw, "stage"))
        kept.append({name: value.clone() for name, value in method.encoder.state_dict().items()})
        advance(method)
        assert int(method.stage) == t + 1
        expected = {"scratch": fresh[t], "stage0": kept[0], "previous": kept[t]}[start]
        for name, value in method.encoder.state_dict().items():
            torch.testing.assert_close(value, expected[name])
    assert (method.cluster >= 0).all()
    with torch.no_grad():
        joined = method.features(raw)
        torch.testing.assert_close(joined, fuse([*ended, method.features(raw, "stage")]))
    assert joined.shape == (4, 30)
    assert sorted(starts) == sorted(fresh[0])
    assert all(torch.equal(starts[n].flatten().sort().values, fresh[0][n].flatten().sort().values) for n in starts)


def test_history() -> None:
    every, last = staged(), staged(history="last")
    for method in (every, last):
        for _ in range(2):
            advance(method)
    index = torch.arange(24)
    assert torch.equal(every.group(index), every.cluster[:, 0] * 3 + every.cluster[:, 1])
    assert torch.equal(last.group(index), last.cluster[:, 1])


def test_clusters_are_those_of_unit_features() -> None:
    method = staged()
    unit = F.normalize(advance(method), dim=1)
    label = method.cluster[:, 0]
    centre = torch.stack([unit[label == c].mean(0) for c in range(3)])
    assert torch.equal(torch.cdist(unit, centre).argmin(1), label)


def test_shuffled_weights_are_the_same_values() -> None:
    layer = torch.nn.Linear(5, 4)
    twin = shuffled(layer, 1)
    assert not torch.equal(twin.weight, layer.weight)
    assert torch.equal(twin.weight.flatten().sort().values, layer.weight.flatten().sort().values)
    assert torch.equal(shuffled(layer, 1).weight, twin.weight)


def test_stages_as_runs_of_their_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    label = np.arange(40) % 2
    pixels = rng.integers(0, 60, (40, 16, 16, 3)).astype(np.uint8)
    pixels[label == 1] += 150
    data = without_test(ArraySource(pixels, label, name="toy"))
    recipe = load_recipe("images/simclr")
    recipe = dataclasses.replace(
        recipe,
        data=DataConfig(image_size=16, channels=3),
        encoder=EncoderConfig(name="convnet", width=4, dim=8),
        trainer=TrainerConfig(
            epochs=1, batch_size=8, evaluate_every=0, evaluate_before=False, progress=False, device="cpu", seed=3
        ),
    )  # fmt: skip
    runs = multistage(recipe, tmp_path / "work", num_clusters=2, data=data)
    again = multistage(recipe, tmp_path / "work", num_clusters=2, data=data, resume=True)
    assert [str(run) for run in runs] == [str(run) for run in again]
    parts = [pipeline.features(pipeline.load_run(run, "last").method, data.train)[0] for run in runs]
    joined, _ = pipeline.features(Joined(runs), data.train)
    torch.testing.assert_close(joined, fuse(parts))
    assert joined.shape == (40, 16)
    large = dataclasses.replace(recipe, trainer=dataclasses.replace(recipe.trainer, batch_size=40))
    with pytest.raises(ValueError, match="batch_size: expected at most the .* samples of the largest group"):
        multistage(large, tmp_path / "other", num_clusters=2, data=data)
    with pytest.raises(ValueError, match="start: expected one of"):
        multistage(recipe, tmp_path, start="anew", data=data)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="method.num_clusters: expected at most the 24 samples, received 25"):
        staged(num_clusters=25)
    for name, value, expected in (
        ("num_stages", -1, "0 or more"), ("num_clusters", 0, "1 or more"), ("temperature", 0.0, "a finite number > 0"),
        ("key_encoder", "ema", "'shared'"), ("num_stages", 30, "one with which"), ("symmetric", False, "True"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"method\.{name}.*: expected {expected}.* received"):
            MCLConfig(**{name: value})
    with pytest.raises(ValueError, match="features: expected one stage or more"):
        fuse([])
