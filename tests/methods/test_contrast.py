"""The declarative frame against its parts put together by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nearfar.batch import View
from nearfar.config import BarlowConfig, ContrastConfig, DataInfo, HeadConfig, VICRegConfig, WMSEConfig
from nearfar.method import Progress
from nearfar.methods import Contrast, pair_loss
from nearfar.objectives import (
    barlow,
    binary_nce,
    dcl,
    info_nce,
    mutual_information,
    n_pairs,
    nt_xent,
    pair_margin,
    regression,
    supcon,
    triplet,
    vicreg,
    wmse,
)
from nearfar.rng import Rng
from nearfar.testing import check_method

SMALL = HeadConfig(kind="mlp", layers=2, hidden=12, dim=6, norm="layer")


class Noise:
    """Views of vectors."""

    def __init__(self, num_views: int = 2) -> None:
        self.num_views = num_views

    def __call__(self, data: Tensor, index: Tensor, rng: Rng) -> list[View]:
        return [View(data + 0.2 * rng.at(view=v).normal(index, "noise", data.shape[1])) for v in range(self.num_views)]

    def plain(self, data: Tensor) -> Tensor:
        return data


class Encoder(nn.Sequential):
    feature_dim = 10

    def __init__(self) -> None:
        super().__init__(nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 10))


def make(views: int = 2, **options: Any) -> Contrast:
    torch.manual_seed(0)
    config = ContrastConfig(**({"head": SMALL} | options))
    method = config.build(DataInfo(num_samples=12, shape=(8,)), Encoder(), Noise(views))
    assert isinstance(method, Contrast)
    return method


@pytest.fixture
def batch() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {
        "index": torch.arange(12),
        "image": torch.randn(12, 8, generator=generator),
        "label": torch.arange(12) % 4,
    }


MOCO = {"loss": "info_nce", "key_encoder": "ema", "queue": 20, "symmetric": False, "momentum": 0.9}
BANK = {"loss": "info_nce", "bank": True, "momentum": 0.5}
CONFIGS = {
    "nt_xent": {},
    "dcl": {"loss": "dcl"},
    "dclw": {"loss": "dcl", "vmf_sigma": 0.5},
    "supcon": {"loss": "supcon", "pairs": "labels"},
    "supcon_in": {"loss": "supcon", "pairs": "labels", "positives": "sum"},
    "learnable": {"learnable_temperature": True},
    "moco": MOCO,
    "moco_symmetric": MOCO | {"symmetric": True},
    "moco_batch": MOCO | {"queue": 0},
    "predictor": {"predictor": SMALL},
    "frozen_keys": MOCO | {"key_encoder": "frozen", "queue": 0},
    "linear_head": {"head": HeadConfig(kind="linear", dim=5)},
    "no_head": {"head": HeadConfig(kind="none")},
    "info_nce": {"loss": "info_nce"},
    "one_way": {"loss": "info_nce", "symmetric": False, "predictor": SMALL},
    "bilinear": {"loss": "info_nce", "similarity": "bilinear", "temperature": 1.0},
    "moco_bilinear": MOCO | {"similarity": "bilinear", "temperature": 1.0},
    "distance": {"loss": "info_nce", "similarity": "distance"},
    "instdisc": BANK,
    "binary_nce_bank": BANK | {"loss": "binary_nce"},
    "triplet_bank": BANK | {"loss": "triplet"},
    "supcon_bank": BANK | {"loss": "supcon"},
    "binary_nce": {"loss": "binary_nce"},
    "binary_nce_labels": MOCO | {"loss": "binary_nce", "pairs": "labels"},
    "triplet": {"loss": "triplet", "mining": "semi_hard"},
    "triplet_labels": {"loss": "triplet", "pairs": "labels", "similarity": "distance"},
    "triplet_queue": MOCO | {"loss": "triplet", "pairs": "labels"},
    "pair_margin": {"loss": "pair_margin", "margin": 1.0},
    "pair_margin_queue": MOCO | {"loss": "pair_margin", "margin": 1.0},
    "jensen_shannon": {"loss": "jensen_shannon", "similarity": "dot"},
    "jensen_shannon_queue": MOCO | {"loss": "jensen_shannon"},
    "donsker_varadhan": {"loss": "donsker_varadhan"},
    "supcon_queue": MOCO | {"loss": "supcon", "pairs": "labels", "symmetric": True},
    "byol": {"loss": "regression", "key_encoder": "ema", "predictor": SMALL},
    "byol_one_way": {"loss": "regression", "key_encoder": "ema", "symmetric": False},
    "simsiam": {"loss": "regression", "regression": "cosine", "predictor": SMALL},
    "simsiam_one_way": {"loss": "regression", "predictor": SMALL, "symmetric": False},
    "barlow": {"loss": "barlow"},
    "vicreg": {"loss": "vicreg"},
    "wmse": {"loss": "wmse", "head": HeadConfig(hidden=12, dim=3, norm="layer")},
    "wmse_rounds": {
        "loss": "wmse",
        "head": HeadConfig(hidden=12, dim=2, norm="layer"),
        "wmse": WMSEConfig(size=4, rounds=3),
    },
}


@pytest.mark.parametrize("name", CONFIGS)
def test_conformance(batch: dict, name: str) -> None:
    method = make(**CONFIGS[name])
    assert method.cache == "exact"
    check_method(method, batch)


def test_batch_norm_is_no_exact_cache(batch: dict) -> None:
    method = make(head=HeadConfig(hidden=12, dim=6))
    assert method.cache.startswith("no: batch normalisation in head")
    check_method(method, batch)


@pytest.mark.parametrize("views", [2, 3])
@pytest.mark.parametrize("name", ["nt_xent", "supcon", "supcon_in"])
def test_the_frame_equals_the_objective_on_the_same_tensors(batch: dict, name: str, views: int) -> None:
    method = make(views, **CONFIGS[name])
    viewed = method.views(batch, Rng(0))
    z = method.encode(viewed)
    loss = method.loss(z, viewed, {}, Progress()).total
    z_VBD = torch.stack([method.head(method.encoder(view.data)) for view in viewed["views"]])
    expected = nt_xent(z_VBD, temperature=0.1)
    if name != "nt_xent":
        expected = supcon(z_VBD, batch["label"], temperature=0.1, positives=method.config.positives)
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("name", ["dcl", "dclw"])
def test_dcl_frame(batch: dict, name: str) -> None:
    method = make(**CONFIGS[name])
    viewed = method.views(batch, Rng(0))
    loss = method.loss(method.encode(viewed), viewed, {}, Progress()).total
    z0, z1 = (method.head(method.encoder(view.data)) for view in viewed["views"])
    torch.testing.assert_close(loss, dcl(z0, z1, temperature=0.1, vmf_sigma=method.config.vmf_sigma or None))


def test_moco_loss_is_cross_entropy_over_the_positive_and_the_queue(batch: dict) -> None:
    method = make(**MOCO)
    viewed = method.views(batch, Rng(0))
    for step in range(3):
        targets = method.targets(viewed, Progress())
        z = method.encode(viewed)
        assert z["embedding"].shape == (12, 1, 6)
        assert targets["key"].shape == (12, 1, 6)
        assert not targets["key"].requires_grad
        loss = method.loss(z, viewed, targets, Progress()).total
        query = nn.functional.normalize(z["embedding"][:, 0], dim=-1)
        key = nn.functional.normalize(targets["key"][:, 0], dim=-1)
        if step == 0:  # nothing queued yet: the other keys of the batch are the negatives
            logits, target = query @ key.T / 0.1, torch.arange(12)
        else:
            bank = method.queue.view("key")
            logits = torch.cat([(query * key).sum(1, keepdim=True), query @ bank.T], dim=1) / 0.1
            target = torch.zeros(12, dtype=torch.long)
        torch.testing.assert_close(loss, nn.functional.cross_entropy(logits, target))
        method.after_update({k: v.detach() for k, v in z.items()}, targets, Progress())
    assert len(method.queue) == 20
    newest = nn.functional.normalize(targets["key"][:, 0], dim=-1)
    assert (torch.cdist(newest, method.queue.view("key")).min(dim=1).values < 1e-5).all()


def test_the_teacher_follows_by_the_closed_form(batch: dict) -> None:
    method = make(**MOCO)
    start = [p.clone() for p in method.teacher.parameters()]
    with torch.no_grad():
        for p in [*method.encoder.parameters(), *method.head.parameters()]:
            p.add_(1.0)
    viewed = method.views(batch, Rng(0))
    targets = method.targets(viewed, Progress())
    for _ in range(3):
        method.after_update({}, targets, Progress())
    for p, p0 in zip(method.teacher.parameters(), start, strict=True):
        torch.testing.assert_close(p, p0 * 0.9**3 + (p0 + 1) * (1 - 0.9**3))


def test_symmetric_keys_take_both_directions(batch: dict) -> None:
    method = make(**MOCO | {"symmetric": True, "queue": 0})
    viewed = method.views(batch, Rng(0))
    targets, z = method.targets(viewed, Progress()), method.encode(viewed)
    loss = method.loss(z, viewed, targets, Progress()).total
    q = nn.functional.normalize(z["embedding"], dim=-1)
    k = nn.functional.normalize(targets["key"], dim=-1)
    rows = torch.arange(12)
    one = nn.functional.cross_entropy(q[:, 0] @ k[:, 1].T / 0.1, rows)
    two = nn.functional.cross_entropy(q[:, 1] @ k[:, 0].T / 0.1, rows)
    torch.testing.assert_close(loss, (one + two) / 2)


def test_a_query_needs_a_key(batch: dict) -> None:
    method = make(1, **MOCO)
    viewed = method.views(batch, Rng(0))
    with pytest.raises(ValueError, match="views.num_views: expected 2 or more"):
        method.targets(viewed, Progress())


def step(method: Contrast, batch: dict[str, Any], epoch: int = 0) -> tuple[Tensor, dict, dict, Tensor]:
    """Views, targets, embeddings [V, B, D] and loss of one pass."""
    viewed = method.views(batch, Rng(0, epoch))
    targets = method.targets(viewed, Progress())
    z = method.encode(viewed)
    loss = method.loss(z, viewed, targets, Progress()).total
    return z["embedding"].transpose(0, 1), targets, viewed, loss


OBJECTIVES = {
    "info_nce": lambda z, _: (info_nce(*z, temperature=0.1, in_batch=True)
                              + info_nce(z[1], z[0], temperature=0.1, in_batch=True)) / 2,
    "triplet": lambda z, _: triplet(z, torch.arange(12), margin=0.2, mining="semi_hard", distance="cosine"),
    "triplet_labels": lambda z, y: triplet(z, y, margin=0.2, distance="squared", normalize=False),
    "pair_margin": lambda z, _: pair_margin(z, torch.arange(12), margin=1.0),
    "jensen_shannon": lambda z, _: (mutual_information(*z, temperature=0.1)
                                    + mutual_information(z[1], z[0], temperature=0.1)) / 2,
    "donsker_varadhan": lambda z, _: sum(
        mutual_information(a, b, bound="donsker_varadhan", temperature=0.1, normalize=True)
        for a, b in ((z[0], z[1]), (z[1], z[0]))) / 2,
    "barlow": lambda z, _: barlow(z),
    "vicreg": lambda z, _: vicreg(z),
    "wmse": lambda z, _: wmse(z),
}  # fmt: skip


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_loss_is_its_objective_on_the_same_tensors(batch: dict, name: str) -> None:
    z, _, _, loss = step(make(**CONFIGS[name]), batch)
    torch.testing.assert_close(loss, OBJECTIVES[name](z, batch["label"]))


def test_weights_of_the_negative_free_losses_arrive(batch: dict) -> None:
    z, _, _, loss = step(make(loss="barlow", barlow=BarlowConfig(off_diagonal=0.3, scale=0.5)), batch)
    torch.testing.assert_close(loss, barlow(z, off_diagonal=0.3, scale=0.5))
    z, _, _, loss = step(make(loss="vicreg", vicreg=VICRegConfig(invariance=1, variance=2, covariance=3)), batch)
    torch.testing.assert_close(loss, vicreg(z, invariance=1, variance=2, covariance=3))


def test_parts_of_wmse_are_drawn_for_each_sample(batch: dict) -> None:
    method = make(**CONFIGS["wmse_rounds"])
    z, _, viewed, loss = step(method, batch)
    order = viewed["parts"].argsort(0).t()
    assert order.shape == (3, 12)
    assert not torch.equal(order[0], order[1])
    torch.testing.assert_close(loss, wmse(z, size=4, order=order))
    flipped = {name: value.flip(0) for name, value in batch.items()}
    torch.testing.assert_close(step(method, flipped)[3], loss)  # the same samples stand together
    assert not torch.equal(step(method, batch, epoch=1)[2]["parts"], viewed["parts"])


def test_n_pairs_is_info_nce_of_products(batch: dict) -> None:
    z, _, _, loss = step(make(loss="info_nce", similarity="dot", temperature=1.0, symmetric=False), batch)
    torch.testing.assert_close(loss, n_pairs(z[0], z[1]))


def test_one_way_asks_with_the_first_view(batch: dict) -> None:
    method = make(3, loss="info_nce", symmetric=False)
    z, _, _, loss = step(method, batch)
    expected = sum(info_nce(z[0], z[k], temperature=0.1, in_batch=True) for k in (1, 2)) / 2
    torch.testing.assert_close(loss, expected)


def test_bilinear_starts_as_the_product_and_learns(batch: dict) -> None:
    method = make(**CONFIGS["bilinear"])
    z, _, _, loss = step(method, batch)
    rows = torch.arange(12)
    expected = [nn.functional.cross_entropy(a @ b.t(), rows) for a, b in ((z[0], z[1]), (z[1], z[0]))]
    torch.testing.assert_close(loss, sum(expected) / 2)
    loss.backward()
    assert method.similarity.weight.grad.abs().sum() > 0


def test_distance_is_minus_the_square(batch: dict) -> None:
    z, _, _, loss = step(make(**CONFIGS["distance"]), batch)
    rows = torch.arange(12)
    square = torch.cdist(z[0], z[1]).square()
    expected = nn.functional.cross_entropy(-square, rows) + nn.functional.cross_entropy(-square.t(), rows)
    torch.testing.assert_close(loss, expected / 2)


QUEUED = {"triplet_queue": "triplet", "pair_margin_queue": "pair_margin", "supcon_queue": "supcon",
          "binary_nce_labels": "binary_nce", "jensen_shannon_queue": "jensen_shannon"}  # fmt: skip


@pytest.mark.parametrize("name", QUEUED)
def test_losses_against_a_queue_are_those_of_their_masks(batch: dict, name: str) -> None:
    method = make(**CONFIGS[name])
    for epoch in range(3):
        z, targets, _, loss = step(method, batch, epoch)
        key = targets["key"].transpose(0, 1)
        labels = method.config.pairs == "labels"
        ids = batch["label"] if labels else torch.arange(12)
        stored = method.queue.view("key")
        known = method.queue.view("label") if labels else torch.full((len(stored),), -1)
        expected = []
        for q, k in method.pairs(len(z), len(key)):
            positive = ids[:, None] == torch.cat([ids, known])
            every = torch.cat([key[k], stored])
            margin = 1.0 if name == "pair_margin_queue" else 0.2
            expected.append(
                pair_loss(z[q], every, positive, ~positive, loss=QUEUED[name], margin=margin, temperature=0.1)
            )
        torch.testing.assert_close(loss, torch.stack(expected).mean())
        method.after_update({}, targets, Progress())
    assert len(method.queue) == 20
    if labels:
        newest = nn.functional.normalize(key[-1], dim=1)
        where = torch.cdist(newest, method.queue.view("key")).argmin(1)
        assert torch.equal(method.queue.view("label")[where], batch["label"])


def test_binary_nce_takes_the_number_of_negatives_out(batch: dict) -> None:
    z, _, _, loss = step(make(loss="binary_nce", symmetric=False), batch)
    s = nn.functional.normalize(z[0], dim=1) @ nn.functional.normalize(z[1], dim=1).t() / 0.1
    own = torch.eye(12, dtype=torch.bool)
    zero = torch.zeros(12, 11)
    expected = binary_nce(s[own], s[~own].view(12, 11), positive_noise=zero[:, 0], negative_noise=zero)
    torch.testing.assert_close(loss, expected)


def test_the_bank_holds_an_average_of_every_sample(batch: dict) -> None:
    method = make(**BANK)
    start = method.bank.view("key").clone()
    torch.testing.assert_close(start.norm(dim=1), torch.ones(len(start)))
    seen: set[int] = set()
    for visit, chosen in enumerate(([8, 2, 4, 9], [1, 8, 6], [2, 1, 9])):
        part = {name: value[chosen] for name, value in batch.items()}
        z, targets, _, loss = step(method, part, visit)
        stored = method.bank.view("key")
        unit = nn.functional.normalize(z, dim=2)
        known = sorted(seen | set(chosen))  # samples that were never met are no negatives
        logits = (unit @ stored[known].t() / 0.1).flatten(0, 1)
        own = torch.tensor([known.index(i) for i in chosen] * 2)
        torch.testing.assert_close(loss, nn.functional.cross_entropy(logits, own))
        before = stored.clone()
        method.after_update({"embedding": z.detach().transpose(0, 1)}, targets, Progress())
        for row, new in zip(chosen, unit.mean(0).detach(), strict=True):
            expected = 0.5 * before[row] + 0.5 * new if row in seen else new
            torch.testing.assert_close(method.bank.view("key")[row], nn.functional.normalize(expected, dim=0))
        seen |= set(chosen)
        rest = [i for i in range(12) if i not in seen]
        torch.testing.assert_close(method.bank.view("key")[rest], start[rest])


def test_a_bank_needs_to_know_how_many_samples_there_are() -> None:
    with pytest.raises(ValueError, match="num_indices: expected the number of samples with method.bank, received 0"):
        Contrast(ContrastConfig(**BANK), Encoder(), Noise())
    info = DataInfo(num_samples=12, num_indices=40, shape=(8,))
    assert len(ContrastConfig(**BANK).build(info, Encoder(), Noise()).bank.view("key")) == 40


@pytest.mark.parametrize("name", ["byol", "byol_one_way", "simsiam", "simsiam_one_way"])
def test_regression_is_of_keys_that_stand_still(batch: dict, name: str) -> None:
    method = make(3, **CONFIGS[name])
    viewed = method.views(batch, Rng(0))
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.02 * torch.randn_like(p))  # the teacher is another net than the student
    targets, z = method.targets(viewed, Progress()), method.encode(viewed)
    loss = method.loss(z, viewed, targets, Progress()).total
    key = targets["key"] if "key" in targets else z["projection"]
    said, key = z["embedding"].transpose(0, 1), key.transpose(0, 1)
    form = method.config.regression
    if not method.config.symmetric:
        expected = regression(said[:1], key if len(key) == 2 else key[1:], form=form, all_pairs=True)
    else:
        expected = regression(said, key, form=form)
    torch.testing.assert_close(loss, expected)


def test_one_view_without_a_pair_of_labels_teaches_nothing_and_says_so(batch: dict) -> None:
    method = make(1, loss="supcon", pairs="labels")
    lone = {name: value[:4] for name, value in batch.items()}
    with pytest.warns(UserWarning, match="one view and no label twice"):
        *_, loss = step(method, lone)
    loss.backward()
    assert loss == 0
    assert all(p.grad is not None and not p.grad.any() for p in method.parameters())
    assert step(method, batch)[3] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queue": 8}, "method.queue: expected 0 when key_encoder is 'shared'"),
        ({"key_encoder": "ema"}, "method.loss: expected 'supcon' or 'info_nce' or .* with key_encoder 'ema', received"),
        ({"loss": "barlow", "key_encoder": "ema"}, "with key_encoder 'ema', received 'barlow'"),
        ({"loss": "nt_xent", "bank": True}, "method.loss: expected 'supcon' or .* with a bank, received 'nt_xent'"),
        (MOCO | {"loss": "regression"}, "with a queue, received 'regression'"),
        ({"candidates": "ring", "vmf_sigma": 0.5, "loss": "dcl"}, "candidates: expected .gather. with vmf_sigma"),
        ({"candidates": "ring", "loss": "triplet"}, "method.loss: expected .* with candidates 'ring'"),
        ({"pairs": "labels"}, "method.loss: expected 'supcon' or .* with pairs 'labels', received 'nt_xent'"),
        ({"temperature": 0.0}, r"method.temperature: expected a finite number > 0, received 0"),
        ({"loss": "triplet", "temperature": 0.5}, "method.temperature: expected its default with loss 'triplet'"),
        ({"loss": "info_nce", "similarity": "distance", "temperature": 0.5}, "'distance', which is not divided"),
        ({"margin": 0.5}, "method.margin: expected its default with loss 'nt_xent', which does not read it"),
        ({"vicreg": VICRegConfig(variance=1.0)}, "method.vicreg: expected its default with loss 'nt_xent'"),
        ({"similarity": "dot"}, "method.similarity: expected 'cosine' with loss 'nt_xent', received 'dot'"),
        ({"loss": "triplet", "similarity": "dot"}, "method.similarity: expected 'cosine' or 'distance' with loss"),
        ({"loss": "regression"}, "method.predictor: expected one, or a key encoder of its own"),
        ({"symmetric": False}, "method.symmetric: expected True where all views meet alike"),
        (BANK | {"momentum": 1.0}, "method.momentum: expected below 1 with a bank"),
        (BANK | {"key_encoder": "ema"}, "method.bank: expected off with a key encoder of its own"),
        (MOCO | {"loss": "supcon", "positives": "sum"}, "method.positives: expected 'mean' with keys of a teacher"),
        (
            {"loss": "regression", "predictor": HeadConfig(dim=7), "head": SMALL},
            "method.predictor.dim: expected 6, that of method.head, received 7",
        ),
    ],
)
def test_configs_that_make_no_sense_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ContrastConfig(**options)
