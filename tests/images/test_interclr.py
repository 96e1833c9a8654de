"""InterCLR: its draws, margin, memory and labels against loops, and the loss against MoCo's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from torch.nn import functional as F

from images.vectors import DIM, batch, forward, make
from nearfar.config import ContrastConfig, HeadConfig
from nearfar.method import Progress
from nearfar.objectives import info_nce
from nearfar.plugin import load_recipe
from nearfar_images.methods.interclr import choose_negatives, choose_positive, inter_image, means
from nearfar_images.systems.interclr import InterCLRConfig

HEAD = HeadConfig(layers=2, hidden=6, dim=5, norm="none")
OPTIONS: dict[str, Any] = {"head": HEAD, "queue": 9, "num_clusters": 4, "num_negatives": 7, "pool": 0.5}
NUM = 24
NOW = Progress(steps=10)


def engine(method: Any, epoch: int = 0) -> Any:
    """As much of an engine as on_epoch asks for."""
    image = torch.randn(NUM, DIM, generator=torch.Generator().manual_seed(3))

    def features(output: str) -> tuple[Tensor, Tensor]:
        return method.features({"image": image, "index": torch.arange(NUM)}, output), torch.arange(NUM)

    unused = dict.fromkeys(("minimize", "backward", "step", "call"), print)
    return SimpleNamespace(features=features, progress=Progress(0, epoch, 0.0, 10), **unused)


def filled(**options: Any) -> Any:
    """A method with a memory of 24 samples and a queue."""
    method = make(InterCLRConfig(**OPTIONS | options), num_samples=NUM)
    if method.queue is not None:
        method.queue.push(key=F.normalize(torch.randn(9, 5, generator=torch.Generator().manual_seed(1)), dim=1))
    method.on_epoch(engine(method))
    return method


def rows(num: int, dim: int = 5) -> Tensor:
    return F.normalize(torch.randn(num, dim, dtype=torch.float64), dim=1)


# -- oracles -----------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("interclr", 1)
def test_without_the_branch_it_is_moco() -> None:
    plain = ContrastConfig(loss="info_nce", temperature=0.2, head=HEAD, key_encoder="ema", queue=9, symmetric=False)
    own, moco = filled(inter_weight=0.0), make(plain)
    moco.queue.push(key=own.queue.view("key").clone())
    assert torch.equal(forward(own, batch())[2].total, forward(moco, batch())[2].total)
    assert not own.ready


@pytest.mark.oracle("interclr", 1)
def test_without_a_margin_it_is_the_function_of_the_queue() -> None:
    query, memory = rows(6), rows(20)
    positive = torch.randint(0, 8, (6,))
    found = inter_image(query, memory, positive, torch.arange(8, 20).expand(6, -1), temperature=0.3)
    torch.testing.assert_close(found, info_nce(query, memory[positive], memory[8:], temperature=0.3))


@pytest.mark.oracle("interclr", 2)
def test_the_margin_shifts_the_positive() -> None:
    query, memory = rows(6), rows(20)
    positive, negative = torch.randint(0, 20, (6,)), torch.randint(-1, 20, (6, 9))
    before = torch.tensor(np.inf)
    for margin in (0.5, 0.1, 0.0, -0.5):
        losses = []
        for i in range(6):
            s = float(query[i] @ memory[positive[i]]) - margin
            others = [float(query[i] @ memory[j]) for j in negative[i] if j >= 0]
            logits = torch.tensor([s, *others], dtype=torch.float64) / 0.2
            losses.append(logits.logsumexp(0) - logits[0])
        found = inter_image(query, memory, positive, negative, temperature=0.2, margin=margin)
        torch.testing.assert_close(found, torch.stack(losses).mean())
        assert found < before
        before = found
    angle = (query * memory[positive]).sum(1).acos() - 0.3
    found = inter_image(query, memory, positive, negative[:, :0].new_full((6, 1), -1), margin=-0.3, form="arc")
    assert float(found) == 0
    found = inter_image(query, memory, positive, negative, margin=-0.3, form="arc", temperature=1.0)
    others = (query[:, None] * memory[negative]).sum(2).masked_fill(negative < 0, -torch.inf)
    logits = torch.cat([angle.cos()[:, None], others], 1)
    torch.testing.assert_close(found, (logits.logsumexp(1) - logits[:, 0]).mean())


@pytest.mark.oracle("interclr", 3)
@pytest.mark.parametrize("kind", ["semi_hard", "semi_easy", "hard", "random"])
def test_draws_of_negatives(kind: str) -> None:
    query, memory, label = rows(6), rows(60), torch.randint(-1, 4, (60,))
    own, draw = torch.randint(0, 4, (6,)), torch.rand(6)
    total = int((label >= 0).sum())
    found = choose_negatives(query, memory, label, own, draw, kind=kind, num=12, pool=0.4)
    assert found.shape == (6, 12)
    for i in range(6):
        order = [j for j in (query[i] @ memory.T).argsort(descending=kind != "semi_easy").tolist() if label[j] >= 0]
        allowed = [j for j in order if label[j] != own[i]]
        if kind == "hard":
            assert found[i].tolist() == allowed[:12]
            continue
        pool = order if kind == "random" else order[: round(0.4 * total)]
        real = [j for j in found[i].tolist() if j >= 0]
        assert len(set(real)) == len(real) == min(12, len(set(pool) & set(allowed)))
        assert set(real) <= set(pool) & set(allowed)


@pytest.mark.oracle("interclr", 3)
def test_the_whole_memory_as_pool_draws_at_random() -> None:
    memory, label = rows(12), torch.arange(12) % 3
    query, own, draw = rows(1).expand(4000, -1), torch.zeros(4000, dtype=torch.long), torch.rand(4000)
    for kind in ("semi_hard", "random"):
        found = choose_negatives(query, memory, label, own, draw, kind=kind, num=3, pool=1.0)
        count = found.flatten().bincount(minlength=12)
        assert (count[label == 0] == 0).all()
        assert chisquare(count[label != 0].numpy()).pvalue > 1e-3


@pytest.mark.oracle("interclr", 4)
def test_repair_within_the_memory() -> None:
    method = filled(num_clusters=4, min_cluster=3)
    label = method.memory.view("label")
    label.copy_(torch.tensor([0] * 20 + [1, 1, 2, 2]))  # the last one is empty
    method.centroid.copy_(means(method.memory.view("feature"), label, method.centroid))
    method._repair()
    size = label.bincount(minlength=4)
    assert len(size) == 4
    assert int(size.sum()) == NUM
    assert int(size.min()) >= 3
    torch.testing.assert_close(method.centroid, means(method.memory.view("feature"), label, method.centroid))


@pytest.mark.oracle("interclr", 5)
def test_memory_labels_and_centroids_after_a_step() -> None:
    method = filled(centroid_every=2, min_cluster=1)
    torch.testing.assert_close(method.memory.view("feature").norm(dim=1), torch.ones(NUM))
    centroid = method.centroid.clone()
    for step in range(2):
        before = method.memory.snapshot()
        z, targets, _ = forward(method, batch(5))
        method.after_update({"embedding": z.transpose(0, 1)}, targets, NOW)
        key = F.normalize(targets["key"][:, 0], dim=1)
        feature, label = method.memory.view("feature"), method.memory.view("label")
        assert torch.equal(feature[:5], key)
        assert torch.equal(feature[5:], before["feature"][5:])
        for i in range(5 if step == 0 else 0):
            assert int(label[i]) == int(torch.stack([key[i] @ c for c in centroid]).argmax())
        assert torch.equal(label[5:], before["label"][5:])
        if step == 0:
            assert torch.equal(method.centroid, centroid)
    for c in range(4):
        if bool((label == c).any()):
            torch.testing.assert_close(method.centroid[c], feature[label == c].mean(0))
    assert not torch.equal(method.centroid, centroid)


def test_rows_follow_with_a_momentum() -> None:
    method = filled(memory_momentum=0.5)
    old = method.memory.view("feature")[:5].clone()
    z, targets, _ = forward(method, batch(5))
    method.after_update({"embedding": z.transpose(0, 1)}, targets, NOW)
    expected = F.normalize(0.5 * old + 0.5 * F.normalize(targets["key"][:, 0], dim=1), dim=1)
    torch.testing.assert_close(method.memory.view("feature")[:5], expected)


# -- the rest ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("exclude", [False, True])
def test_positives_are_members_of_the_cluster(exclude: bool) -> None:
    label = torch.tensor([0, 1, -1, 0, 2, 0, 1])
    index = torch.tensor([0, 4, 6]).repeat(2000)
    found = choose_positive(label, index, torch.rand(6000), exclude_self=exclude).view(2000, 3)
    count = found[:, 0].bincount(minlength=7)
    members = [3, 5] if exclude else [0, 3, 5]
    assert count.nonzero()[:, 0].tolist() == members
    assert chisquare(count[members].numpy()).pvalue > 1e-3
    assert set(found[:, 1].tolist()) == {4}  # alone
    assert set(found[:, 2].tolist()) == ({1} if exclude else {1, 6})


def test_the_loss_is_the_weighted_sum_and_only_the_query_learns() -> None:
    method = filled()
    z, _, terms = forward(method, batch(5))
    torch.testing.assert_close(terms.total, 0.75 * terms.values["contrast"] + 0.25 * terms.values["inter"])
    z.retain_grad()
    method.zero_grad()
    terms.values["inter"].backward()
    assert method.head.layers[0].weight.grad is not None
    assert all(not buffer.requires_grad for buffer in method.memory.buffers())


def test_labels_stay_between_clusterings_when_offline() -> None:
    method = filled(labels="offline", cluster_every=2)
    label = method.memory.view("label").clone()
    z, targets, _ = forward(method, batch(5))
    method.after_update({"embedding": z.transpose(0, 1)}, targets, NOW)
    assert torch.equal(method.memory.view("label"), label)
    centroid = method.centroid.clone()
    method.on_epoch(engine(method, 1))
    assert torch.equal(method.centroid, centroid)
    method.on_epoch(engine(method, 2))
    assert not torch.equal(method.centroid, centroid)


def test_other_losses_between_views() -> None:
    method = filled(loss="nt_xent", key_encoder="shared", queue=0, symmetric=True)
    z, targets, terms = forward(method, batch(5))
    assert set(terms.values) == {"contrast", "inter"}
    method.after_update({"embedding": z.transpose(0, 1).detach()}, targets, NOW)
    torch.testing.assert_close(method.memory.view("feature")[:5], F.normalize(z[1], dim=1).detach())


def test_the_papers_settings() -> None:
    method = load_recipe("images/interclr_imagenet").method
    assert isinstance(method, InterCLRConfig)
    assert (method.num_clusters, method.min_cluster, method.num_negatives) == (10000, 20, 16384)
    assert (method.inter_margin, method.inter_weight, method.temperature, method.queue) == (-0.5, 0.25, 0.2, 65536)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="method.num_clusters: expected at most the 24 samples, received 25"):
        make(InterCLRConfig(**OPTIONS | {"num_clusters": 25}), num_samples=NUM)
    with pytest.raises(ValueError, match="index: expected values from 0 to 23"):
        forward(filled(), batch(5, step=4 + 1))
    for name, value, expected in (
        ("inter_weight", 1.5, "a number in"), ("num_clusters", 1, "0, or 2 or more"), ("num_negatives", 0, "1 or more"),
        ("pool", 0.0, r"a number in \(0, 1\]"), ("memory_momentum", 1.0, "a number in"), ("inter_margin", 3.0, "a num"),
        ("min_cluster", 0, "1 or more"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"method\.{name}.*: expected {expected}.* received"):
            InterCLRConfig(**{name: value})
