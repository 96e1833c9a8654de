"""The declarative frame through its recipes: the objectives it names, JSON, and bounds on a table that is known.

Legend: V views, B batch, D embedding.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from images.vectors import batch, forward, make
from nearfar import plugin
from nearfar.catalog import system
from nearfar.config import ContrastConfig, EncoderConfig, HeadConfig, TrainerConfig
from nearfar.data import ArraySource, holdout
from nearfar.method import Progress
from nearfar.methods import Contrast, describe, pair_loss
from nearfar.objectives import clip, info_nce, mutual_information, nt_xent, supcon, triplet
from nearfar.recipe import Recipe, read, save, update
from nearfar.rng import Rng
from nearfar_images import pipeline

F64 = torch.float64
RECIPES = sorted(plugin.load("images").module("crl_framework").RECIPES)


def config(name: str, **changes: Any) -> ContrastConfig:
    """A recipe's method with a head that suits vectors."""
    found = plugin.load("images").recipe(name).method
    assert isinstance(found, ContrastConfig)
    small = HeadConfig(hidden=12, dim=6, norm="layer")
    heads = {"head": small} | ({"predictor": small} if found.predictor.kind != "none" else {})
    return dataclasses.replace(found, **heads | ({"queue": 20} if found.queue else {}) | changes)


def teach(method: Contrast, steps: int = 2) -> None:
    """Fills the queue or the bank."""
    for step in range(steps):
        z, targets, _ = forward(method, batch(6, step=step))
        method.after_update({"embedding": z.detach().transpose(0, 1)}, targets, Progress(steps=10))


# -- 1: the objectives -------------------------------------------------------------------------------------------------


@pytest.mark.oracle("crl_framework", 1)
def test_simclr_supcon_and_triplet_are_their_objectives() -> None:
    raw = batch(8)
    labels = raw["label"]
    for name, expected in (
        ("crl_simclr", lambda z: nt_xent(z, temperature=0.2)),
        ("crl_supcon", lambda z: supcon(z, labels, temperature=0.1)),
        ("crl_triplet", lambda z: triplet(z, labels, margin=0.1, mining="semi_hard", distance="cosine")),
    ):
        z, _, terms = forward(make(config(name)), raw)
        torch.testing.assert_close(terms.total, expected(z), rtol=1e-6, atol=1e-6)


@pytest.mark.oracle("crl_framework", 1)
@pytest.mark.parametrize(("name", "temperature"), [("crl_moco", 0.07), ("crl_framework", 0.2)])
def test_moco_is_info_nce_with_a_queue(name: str, temperature: float) -> None:
    method = make(config(name))
    teach(method)
    z, targets, terms = forward(method, batch(6, step=5))
    expected = info_nce(z[0], targets["key"][:, 0], method.queue.view("key"), temperature=temperature)
    torch.testing.assert_close(terms.total, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.oracle("crl_framework", 1)
def test_both_directions_of_info_nce_are_clip() -> None:
    """CLIP's two encoders are another plugin's; its loss is that of two views that are queries and keys in turn."""
    z, _, terms = forward(make(config("crl_simclr", loss="info_nce", temperature=0.07)), batch(8))
    torch.testing.assert_close(terms.total, clip(z[0], z[1], temperature=0.07), rtol=1e-6, atol=1e-6)


# -- 4: as JSON --------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("crl_framework", 4)
@pytest.mark.parametrize("name", RECIPES)
def test_a_config_that_was_written_and_read_gives_the_same_loss(name: str, tmp_path: Any) -> None:
    first = Recipe(name=f"images/{name}", method=config(name))
    save(first, tmp_path / "recipe.json")
    _, values = read(tmp_path / "recipe.json")
    second = update(plugin.load("images").recipe(name), values).method
    assert second == first.method
    losses = []
    for found in (first.method, second):
        method = make(found)
        teach(method)
        losses.append(forward(method, batch(6, step=3))[2].total)
    assert torch.isfinite(losses[0])
    assert torch.equal(*losses)


@pytest.mark.oracle("crl_framework", 4)
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loss": "nt_xnet"}, "method.loss: expected one of 'nt_xent'.*, received 'nt_xnet'"),
        ({"similarity": "euclid"}, "method.similarity: expected one of 'cosine'"),
        ({"key_store": "queue"}, r"method.key_store: expected one of .*unknown key; did you mean 'key_encoder'\?"),
        ({"queue": 64}, "method.queue: expected 0 when key_encoder is 'shared', since a queue needs keys without grad"),
        ({"bank": True}, "method.loss: expected .* with a bank, received 'nt_xent'"),
    ],
)
def test_parts_that_are_unknown_or_do_not_fit_are_refused(values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        update(plugin.load("images").recipe("crl_simclr"), {"method": values})


# -- 5: bounds ---------------------------------------------------------------------------------------------------------

TABLE = torch.tensor([[6, 1, 0], [1, 3, 2], [0, 1, 6]], dtype=F64)
JOINT = TABLE / TABLE.sum()
RATIO = JOINT / (JOINT.sum(1, keepdim=True) * JOINT.sum(0))
INFORMATION = float(torch.special.xlogy(JOINT, RATIO).sum())
CRITIC = RATIO.clamp_min(1e-9).log()


def rows(pairs: list[tuple[int, int]], critic: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors of pairs whose products are the critic's scores."""
    x, y = torch.tensor(pairs).t()
    return critic[x], torch.eye(3, dtype=F64)[y]


@pytest.mark.oracle("crl_framework", 5)
@pytest.mark.parametrize("num", [2, 3])
def test_info_nce_is_below_the_information_and_the_number_of_candidates(num: int) -> None:
    """The expectation over every batch of `num` pairs that the table can give."""
    cells = [(x, y) for x in range(3) for y in range(3) if JOINT[x, y] > 0]
    total = 0.0
    for batch_ in itertools.product(cells, repeat=num):
        weight = math.prod(float(JOINT[cell]) for cell in batch_)
        total -= weight * float(mutual_information(*rows(list(batch_), CRITIC), bound="info_nce"))
    assert 0.3 * INFORMATION < total <= min(INFORMATION, math.log(num))


@pytest.mark.oracle("crl_framework", 5)
def test_donsker_varadhan_is_the_information_with_the_best_critic_and_below_with_others() -> None:
    """Every pair of the table in its share as a positive, and every combination in the product's share as a negative.

    Shares are made of copies: cell (x, y) stands TABLE times among the positives, n_x n_y times among the negatives.
    """
    size = int(TABLE.sum())
    cells = [(x, y) for x in range(3) for y in range(3) for _ in range(int(TABLE[x, y]))]
    own = torch.eye(size, dtype=torch.bool)

    def bound(critic: Tensor) -> float:
        query, key = rows(cells, critic)
        # keys twice: once to be positives alone, once to be negatives of every query
        positive = torch.cat([own, torch.zeros_like(own)], 1)
        negative = torch.cat([torch.zeros_like(own), torch.ones_like(own)], 1)
        both = torch.cat([key, key])
        return -float(pair_loss(query, both, positive, negative, loss="donsker_varadhan", similarity="dot",
                                temperature=1.0))  # fmt: skip

    assert bound(CRITIC) == pytest.approx(INFORMATION, abs=1e-8)
    generator = torch.Generator().manual_seed(0)
    for scale in (0.1, 1.0, 3.0):
        other = CRITIC.clamp_min(-5) + scale * torch.randn(3, 3, generator=generator, dtype=F64)
        assert bound(other) < INFORMATION


# -- the taxonomy ------------------------------------------------------------------------------------------------------


SYSTEMS = ["simclr", "supcon", "moco", "dcl", "gradcache", "crl_framework", "byol", "simsiam", "barlow", "vicreg",
           "wmse"]  # fmt: skip


@pytest.mark.parametrize("slug", SYSTEMS)
def test_cards_stand_where_their_configs_say(slug: str) -> None:
    card = system(slug)
    assert card.taxonomy == describe(plugin.load_recipe(card.recipe).method)


def test_stores_and_mining_are_negatives_of_their_own() -> None:
    assert describe(config("crl_instdisc")).negative == "memory"
    assert describe(config("crl_instdisc")).key == "momentum"
    assert describe(config("crl_triplet")).negative == "mined"
    assert describe(config("crl_jsd")).loss == "mutual_information"
    frozen = ContrastConfig(loss="info_nce", key_encoder="frozen", pairs="views")
    assert describe(frozen).key == "frozen"


def test_a_queue_of_labels_finds_positives_of_former_batches() -> None:
    method = make(config("crl_supcon_queue_digits"))
    teach(method)
    raw = batch(6, step=4)
    raw["label"] = torch.full((6,), 7)  # of no class in the queue
    viewed = method.views(raw, Rng(0))
    targets, z = method.targets(viewed, Progress()), method.encode(viewed)
    apart = method.loss(z, viewed, targets, Progress()).total
    method.queue.get_buffer("label").fill_(7)  # all of the queue are now positives too
    alike = method.loss(z, viewed, targets, Progress()).total
    assert not torch.isclose(apart, alike)


def test_the_demonstration_crosses_losses_and_stores() -> None:
    arms = plugin.load("images").module("crl_framework").DEMONSTRATION.arms
    for arm in arms[:-1]:
        found = plugin.load("images").recipe(f"{arm}_digits")
        assert bool(found.method.queue) == arm.endswith("_queue")
        assert found.trainer.batch_size == 64
    assert len({plugin.load("images").recipe(f"{arm}_digits").encoder for arm in arms[:-1]}) == 1


def test_a_run_with_a_bank_is_read_back_where_samples_are_held_out(tmp_path: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 1), dtype=np.uint8)
    data = holdout(ArraySource(pixels, np.arange(24) % 3, name="toy"), 0.25)
    recipe = plugin.load("images").recipe("crl_instdisc")
    recipe = dataclasses.replace(
        recipe,
        encoder=EncoderConfig(name="convnet", width=4, dim=8),
        trainer=TrainerConfig(epochs=1, batch_size=9, output=str(tmp_path / "run"), progress=False, device="cpu"),
    )
    run = pipeline.train(recipe, data=data)
    bank = pipeline.load_run(run.path).method.bank
    assert bank.num_samples == 24
    assert sorted(bank.seen.nonzero().flatten().tolist()) == sorted(data.train.positions.tolist())
