"""GML as a system: its terms, its keys, what is classified by, a teacher, bad input."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from images.vectors import Encoder, Noise, batch, forward
from nearfar.config import DataConfig, DataInfo, EncoderConfig, HeadConfig, TrainerConfig
from nearfar.contrast import contrast
from nearfar.data import ArraySource, Data, class_counts, column, long_tail
from nearfar.memory import class_slots
from nearfar.method import Progress
from nearfar.objectives import gml, log_likelihood
from nearfar.plugin import load_recipe
from nearfar.rng import Rng
from nearfar_images import pipeline
from nearfar_images.methods.gml_longtail import LongTail
from nearfar_images.systems.gml_longtail import GMLConfig

COUNTS = (50, 10, 3)


def make(counts: tuple[int, ...] = COUNTS, views: int = 3, **options: Any) -> LongTail:
    torch.manual_seed(0)
    config = GMLConfig(head=HeadConfig(layers=2, hidden=6, dim=5, norm="none"), queue=12, least=2, **options)
    info = DataInfo(num_samples=sum(counts), num_classes=len(counts), class_counts=counts)
    method = config.build(info, Encoder(), Noise(views))
    assert isinstance(method, LongTail)
    return method


def stepped(method: LongTail, step: int = 0) -> tuple[dict[str, Tensor], dict[str, Any], Any, dict[str, Any]]:
    viewed = method.views(batch(7, step=step), Rng(0))
    targets = method.targets(viewed, Progress())
    z = method.encode(viewed)
    return z, targets, method.loss(z, viewed, targets, Progress()), viewed


def test_the_terms_are_the_objectives() -> None:
    method = make(supervised_weight=0.5, contrast_weight=2.0, temperature=0.2)
    z, targets, first, viewed = stepped(method)
    method.after_update(z, targets, Progress())
    z, targets, terms, viewed = stepped(method, step=1)
    y, prior = viewed["label"], torch.tensor(COUNTS).float().div(63).log()
    feature = method.encoder(viewed["views"][0].data)
    cosine = F.cosine_similarity(feature[:, None], method.classifier[None], dim=-1)
    torch.testing.assert_close(z["logits"], cosine)
    torch.testing.assert_close(terms.values["classifier"], F.cross_entropy(30 * cosine + prior, y))
    features = torch.cat([method.stored.flat("feature")[method.stored.labels() >= 0], targets["feature"]])
    labels = torch.cat([method.stored.labels()[method.stored.labels() >= 0], y])
    index = torch.cat([method.stored.flat("index")[method.stored.labels() >= 0], viewed["index"]])
    torch.testing.assert_close(targets["feature"], method.teacher.module[0](viewed["views"][2].data))
    key = method.teacher.module[1](features).detach()
    query = method.head(method.encoder(viewed["views"][1].data))
    expected = gml(query, y, key, labels, torch.tensor(COUNTS), temperature=0.2, part="contrast")
    torch.testing.assert_close(terms.values["contrast"], expected)
    ids = (viewed["index"], index)
    expected = gml(query, y, key, labels, torch.tensor(COUNTS), temperature=0.2, part="bandwidth", ids=ids)
    torch.testing.assert_close(terms.values["bandwidth"], expected)
    assert (terms.weights["classifier"], terms.weights["contrast"], terms.weights["bandwidth"]) == (0.5, 2.0, 2.0)
    assert first.counts["bandwidth"] == 7


@pytest.mark.oracle("gml_longtail", 3)
def test_only_the_bandwidth_moves_the_temperatures() -> None:
    method = make()
    *_, terms, _ = stepped(method)
    theta = method.objective.log_temperature
    values = terms.values
    assert torch.autograd.grad(values["contrast"], theta, retain_graph=True, allow_unused=True)[0] is None
    grads = torch.autograd.grad(values["bandwidth"], [theta, *method.encoder.parameters()], allow_unused=True)
    assert (grads[0] != 0).any()
    assert all(grad is None or not grad.any() for grad in grads[1:])


@pytest.mark.oracle("gml_longtail", 5)
def test_slots_follow_the_classes_sizes() -> None:
    for counts, total, least in ((COUNTS, 12, 2), ((5000, 300, 20, 7), 4096, 3), ((1, 1, 1), 3, 1), ((9, 0), 7, 2)):
        slots = class_slots(counts, total, least)
        assert sum(slots) == total
        assert min(slots) >= least
        share = (total - least * len(counts)) / sum(counts)
        assert all(abs(s - least - n * share) < 1 for s, n in zip(slots, counts, strict=True))
    method = make()
    assert method.stored.slots.tolist() == class_slots(COUNTS, 12, 2) == [7, 3, 2]
    for step in range(4):  # class 2 has two samples in a batch, its ring two slots: the newest stay
        z, targets, *_ = stepped(method, step)
        method.after_update(z, targets, Progress())
    assert sorted(method.stored.view("index", 2).tolist()) == sorted(i for i in range(21, 28) if i % 3 == 2)
    with pytest.raises(ValueError, match="total: expected 3 x 2 slots or more, received 5"):
        class_slots(COUNTS, 5, 2)
    with pytest.raises(ValueError, match="counts: expected numbers of samples"):
        class_slots((0, 0), 5, 2)


def test_parts_can_be_left_out() -> None:
    plain = make(contrast_weight=0.0, adjust=False)
    z, targets, terms, viewed = stepped(plain)
    torch.testing.assert_close(terms.total, F.cross_entropy(30 * z["logits"], viewed["label"]))
    plain.after_update(z, targets, Progress())
    assert len(plain.stored) == 0
    assert not any(p.requires_grad for p in plain.head.parameters())
    beside = make(contrast="supcon", supervised_weight=0.0)
    z, targets, terms, viewed = stepped(beside)
    key = beside.teacher.module[1](targets["feature"])
    expected = contrast(z["embedding"][:, 0], key, labels=(viewed["label"], viewed["label"]), temperature=0.1)
    torch.testing.assert_close(terms.total, expected)
    assert not beside.classifier.requires_grad


def test_a_lone_sample_of_a_class_fits_no_bandwidth() -> None:
    method = make()
    viewed = method.views({**batch(3), "label": torch.tensor([0, 1, 2])}, Rng(0))
    targets, z = method.targets(viewed, Progress()), method.encode(viewed)
    terms = method.loss(z, viewed, targets, Progress())
    assert (terms.counts["bandwidth"], terms.values["bandwidth"].item()) == (0.0, 0.0)
    assert torch.isfinite(terms.total)


def test_likelihoods_by_hand() -> None:
    q, key = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    found = log_likelihood(q, key, torch.tensor([0, 0, 2]), 4, temperature=0.5)
    expected = [math.log((math.exp(2) + 1) / 2), -math.inf, -2.0, -math.inf]
    torch.testing.assert_close(found, torch.tensor([expected]))


def test_it_classifies_without_the_prior() -> None:
    method = make().eval()
    raw = batch(7)
    cosine = F.cosine_similarity(method.encoder(raw["image"])[:, None], method.classifier[None], dim=-1)
    torch.testing.assert_close(method.classify(raw), cosine)
    by_keys = make(supervised_weight=0.0)
    z, targets, *_ = stepped(by_keys)
    by_keys.after_update(z, targets, Progress())
    by_keys.eval()
    key = by_keys.teacher.module[1](by_keys.stored.flat("feature")[by_keys.stored.labels() >= 0])
    labels = by_keys.stored.labels()
    expected = log_likelihood(by_keys.features(raw, "embedding"), key, labels[labels >= 0], 3)
    torch.testing.assert_close(by_keys.classify(raw), expected)


def test_a_run_teaches_another(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 12, 12), dtype=np.uint8)
    source = ArraySource(pixels, np.arange(24) % 3, name="toy")
    recipe = dataclasses.replace(
        load_recipe("images/gml_longtail_digits"),
        data=DataConfig(image_size=12, channels=1),
        encoder=EncoderConfig(name="convnet", width=4, dim=16),
        trainer=TrainerConfig(
            max_steps=1, batch_size=12, evaluate_before=False, evaluate_every=0, progress=False, device="cpu",
            output=str(tmp_path / "teacher"),
        ),
    )  # fmt: skip
    pipeline.train(recipe, data=Data(source, source))
    config = dataclasses.replace(
        recipe.method, key_encoder="frozen", teacher=str(tmp_path / "teacher"), distil_weight=1.0
    )  # fmt: skip
    student = dataclasses.replace(
        recipe, method=config, trainer=dataclasses.replace(recipe.trainer, output=str(tmp_path / "student")),
        encoder=EncoderConfig(name="convnet", width=4, dim=8),
    )  # fmt: skip
    taught = pipeline.load_run(tmp_path / "teacher").method
    run = pipeline.train(student, data=Data(source, source))
    assert all(math.isfinite(run.metrics[-2][name]) for name in ("distil", "contrast", "classifier"))
    loaded = pipeline.load_run(run.path).method
    assert isinstance(loaded, LongTail)
    assert isinstance(taught, LongTail)
    for one, other in zip(loaded.teacher.module[0].parameters(), taught.encoder.parameters(), strict=True):
        assert torch.equal(one, other)
    assert loaded.stored.flat("feature").shape[1] == 16
    viewed = loaded.views({"image": torch.from_numpy(pixels[:6, None]), "label": torch.arange(6) % 3,
                           "index": torch.arange(6)}, Rng(0))  # fmt: skip
    targets, z = loaded.targets(viewed, Progress()), loaded.encode(viewed)
    terms = loaded.loss(z, viewed, targets, Progress())
    p, q = (x.mul(30 / 4).softmax(1) for x in (targets["logits"], z["logits"]))
    torch.testing.assert_close(terms.values["distil"], 16 * (p * (p / q).log()).sum(1).mean())
    terms.total.backward()
    assert all(parameter.grad is not None for parameter in loaded.key_head.parameters())


def test_long_tails() -> None:
    source = ArraySource(np.zeros((300, 4, 4), np.uint8), np.arange(300) % 3, name="toy")
    part = long_tail(source, 25.0, order=(2, 0, 1), seed=1)
    assert class_counts(part) == (20, 4, 100)
    assert (np.diff(part.positions) > 0).all()
    assert column(part, "label").tolist() == (part.positions % 3).tolist()
    with pytest.raises(ValueError, match="imbalance: expected 1 or more"):
        long_tail(source, 0.5)
    with pytest.raises(ValueError, match="order: expected the classes 0 to 2"):
        long_tail(source, 2.0, order=(0, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"key_encoder": "frozen"}, "method.key_encoder: expected 'frozen' exactly with method.teacher"),
        ({"distil_weight": 1.0}, "method.distil_weight: expected 0 without method.teacher"),
        ({"temperature": 0.0}, "method.temperature: expected a finite number > 0"),
        ({"contrast_weight": 0.0, "supervised_weight": 0.0}, "method.supervised_weight: expected above 0"),
        ({"contrast_weight": -1.0}, "method.contrast_weight: expected 0 or more"),
        ({"least": 0}, "method.least: expected 1 or more"),
        ({"queue": 0}, "method.queue: expected 1 or more"),
        ({"symmetric": False}, "method.symmetric: expected True"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GMLConfig(**options)


def test_what_data_lacks_is_named() -> None:
    with pytest.raises(ValueError, match="data: expected two classes or more, each with .* none of 1"):
        make((5, 0, 3))
    with pytest.raises(ValueError, match="total: expected 3 x 2 slots or more"):
        GMLConfig(queue=5).build(DataInfo(num_samples=9, class_counts=COUNTS), Encoder(), Noise(3))
    with pytest.raises(ValueError, match="views.num_views: expected 3: classified, query and key, received 2"):
        forward(make(views=2), batch(7))
