"""MoCHi as a system: when it mixes what, that draws belong to samples, what it logs, and bad input."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from images.vectors import batch, make
from nearfar.batch import take
from nearfar.config import HeadConfig
from nearfar.method import Progress
from nearfar.plugin import load_recipe
from nearfar.rng import Rng
from nearfar_images.systems.mochi import MoCHiConfig

SMALL: dict[str, Any] = {
    "head": HeadConfig(kind="linear", dim=5), "queue": 16, "num_hardest": 4, "num_pairs": 6, "num_with_query": 3,
    "pairs_from": 0, "with_query_from": 0,
}  # fmt: skip


def filled(config: MoCHiConfig, steps: int = 3, **info: int) -> Any:
    """A method whose queue saw some batches of six."""
    method = make(config, **info)
    for step in range(1, steps + 1):
        targets = method.targets(method.views(batch(step=step), Rng(0)), Progress())
        method.after_update({}, targets, Progress())
    return method


def step(method: Any, raw: dict[str, Any], epoch: int = 0) -> tuple[Any, Any, Any, Any]:
    """Views, embeddings [V, B, D], keys [V, B, D] and terms of one pass."""
    progress = Progress(epoch=epoch)
    viewed = method.views(raw, Rng(0, epoch))
    targets, z = method.targets(viewed, progress), method.encode(viewed)
    terms = method.loss(z, viewed, targets, progress)
    return viewed, z["embedding"].transpose(0, 1), targets["key"].transpose(0, 1), terms


def by_hand(query: Any, key: Any, bank: Any, mixed: Any, allowed: Any = None) -> Any:
    """Cross-entropy over the positive, the queue and the mixtures."""
    q, k = normalize(query, dim=1), normalize(key, dim=1)
    negative = q @ bank.T
    if allowed is not None:
        negative = negative.masked_fill(~allowed, -torch.inf)
    logits = torch.cat([(q * k).sum(1, keepdim=True), negative, torch.einsum("bd,bsd->bs", q, mixed)], 1) / 0.2
    return cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))


@pytest.mark.oracle("mochi", 1)
def test_without_mixtures_it_is_moco() -> None:
    config = MoCHiConfig(**SMALL | {"num_pairs": 0, "num_with_query": 0})
    moco = dataclasses.replace(load_recipe("images/moco").method, head=SMALL["head"], queue=16)  # type: ignore[call-arg]
    for steps in (0, 1, 3):  # with an empty, a filling and a full queue
        methods = filled(config, steps), filled(moco, steps)  # type: ignore[arg-type]
        ours, theirs = (step(method, batch())[3] for method in methods)
        assert torch.equal(ours.total, theirs.total)
        assert ours.logs["mixtures"] == 0
        assert torch.equal(methods[0].queue.view("key"), methods[1].queue.view("key"))


@pytest.mark.oracle("mochi", 3)
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_loss_by_hand_and_what_gets_a_gradient(symmetric: bool) -> None:
    method = filled(MoCHiConfig(**SMALL, symmetric=symmetric))
    viewed, z, key, terms = step(method, batch())
    bank = method.queue.view("key").clone()
    losses = []
    for q, k in [(0, 1), (1, 0)] if symmetric else [(0, 0)]:
        mixed = method._mix(z[q], q, viewed)[0]
        assert mixed.shape == (6, 9, 5)
        assert not mixed.requires_grad
        losses.append(by_hand(z[q], key[k], bank, mixed))
    torch.testing.assert_close(terms.total, torch.stack(losses).mean())
    assert terms.logs["mixtures"] == 9
    learnt = [*method.encoder.parameters(), *method.head.parameters()]
    expected = torch.autograd.grad(torch.stack(losses).mean(), learnt, retain_graph=True)
    terms.total.backward()
    torch.testing.assert_close([p.grad for p in learnt], list(expected))
    assert all(p.grad is None for p in method.teacher.parameters())
    assert torch.equal(bank, method.queue.view("key"))


@pytest.mark.oracle("mochi", 4)
def test_mixtures_raise_the_loss() -> None:
    values = {}
    for num in ((0, 0), (3, 0), (6, 0), (6, 1), (6, 3)):
        config = MoCHiConfig(**SMALL | {"num_pairs": num[0], "num_with_query": num[1]})
        values[num] = float(step(filled(config), batch())[3].total.detach())
    assert list(values.values()) == sorted(values.values())
    assert len(set(values.values())) == len(values)


def test_mixing_waits_for_its_epoch_and_for_a_full_queue() -> None:
    config = MoCHiConfig(**SMALL | {"pairs_from": 1, "with_query_from": 2})
    for epoch, num in ((0, 0), (1, 6), (2, 9)):
        assert step(filled(config), batch(), epoch)[3].logs["mixtures"] == num
    assert step(filled(config, steps=2), batch(), 2)[3].logs["mixtures"] == 0


def test_mixtures_belong_to_samples_not_to_batches() -> None:
    method, raw = filled(MoCHiConfig(**SMALL)), batch(6)
    whole, z, _, _ = step(method, raw)
    part, z_part, _, _ = step(method, take(raw, torch.tensor([4, 1])))
    mixed, some = method._mix(z[0], 0, whole)[0], method._mix(z_part[0], 0, part)[0]
    torch.testing.assert_close(some, mixed[[4, 1]])
    other = step(method, raw, epoch=1)[0]
    assert not torch.equal(other["mix_pairs"], whole["mix_pairs"])


def test_keys_of_the_same_image_may_be_left_out() -> None:
    raw = batch(6, step=3)  # its own keys are the newest of the queue
    method = filled(MoCHiConfig(**SMALL, skip_own=True))
    viewed, z, key, terms = step(method, raw)
    ids = method.queue.view("index")
    allowed = raw["index"][:, None] != ids
    assert (~allowed).sum() == 6
    mixed = method._mix(z[0], 0, viewed)[0]
    torch.testing.assert_close(terms.total, by_hand(z[0], key[0], method.queue.view("key"), mixed, allowed))
    kept = step(filled(MoCHiConfig(**SMALL)), raw)[3]
    assert not torch.allclose(kept.total, terms.total)


def test_labels_only_tell_the_share_of_false_negatives() -> None:
    method = filled(MoCHiConfig(**SMALL), num_classes=3)
    terms = step(method, batch())[3]
    plain = step(filled(MoCHiConfig(**SMALL)), batch())[3]
    assert torch.equal(terms.total, plain.total)
    assert 0 <= terms.logs["false_negatives"] <= 1
    assert "false_negatives" not in plain.logs
    ids, label = method.queue.view("index"), method.queue.view("label")
    assert torch.equal(label, (ids % 6) % 3)


def test_a_queue_with_too_few_others_is_named() -> None:
    method = filled(MoCHiConfig(**SMALL | {"num_hardest": 16}, skip_own=True))
    with pytest.raises(ValueError, match="at most the 15 candidates that every anchor may take"):
        step(method, batch(6, step=3))


def test_the_imagenet_recipe_is_the_papers() -> None:
    recipe = load_recipe("images/mochi_imagenet")
    config: Any = recipe.method
    assert (config.num_hardest, config.num_pairs, config.num_with_query) == (1024, 1024, 128)
    assert (config.queue, config.momentum, config.temperature, config.head.dim) == (65536, 0.999, 0.2, 128)
    assert (recipe.optimiser.lr, recipe.trainer.batch_size, recipe.trainer.epochs) == (0.03, 256, 200)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key_encoder": "shared", "queue": 0}, "method.key_encoder: expected 'ema', received 'shared'"),
        ({"queue": 0}, "method.queue: expected 1 or more, received 0"),
        ({"queue": 100}, "method.num_hardest: expected a number from 1 to method.queue, 100, received 256"),
        ({"num_pairs": -1}, "method.num_pairs: expected 0 or more, received -1"),
        ({"with_query_from": -1}, "method.with_query_from: expected 0 or more, received -1"),
        ({"temperature": 0.0}, "method.temperature: expected a finite number > 0, received 0.0"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MoCHiConfig(**options)
