"""The declarative frame against its parts put together by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nearfar.batch import View
from nearfar.config import ContrastConfig, DataInfo, HeadConfig
from nearfar.method import Progress
from nearfar.methods import Contrast
from nearfar.objectives import dcl, nt_xent, supcon
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queue": 8}, "method.queue: expected 0 when key_encoder is 'shared'"),
        ({"key_encoder": "ema"}, "method.loss: expected 'info_nce' exactly with a key encoder of its own"),
        ({"loss": "info_nce"}, "received 'info_nce' with key_encoder 'shared'"),
        ({"candidates": "ring", "vmf_sigma": 0.5, "loss": "dcl"}, "candidates: expected .gather. with vmf_sigma"),
        ({"pairs": "labels"}, "method.loss: expected 'supcon' with pairs 'labels'"),
        ({"temperature": 0.0}, r"method.temperature: expected a finite number > 0, received 0"),
    ],
)
def test_configs_that_make_no_sense_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ContrastConfig(**options)
