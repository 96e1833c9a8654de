"""CAPro: its targets, cleaning, stages and terms, and how texts choose seeds.

Legend: B batch, C classes, D embedding, K keys.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from images.vectors import batch, make
from nearfar.config import HeadConfig
from nearfar.method import Progress
from nearfar.plugin import load_recipe
from nearfar.rng import Rng
from nearfar_images.methods.capro import bootstrap, clean, mean_ce
from nearfar_images.systems.capro import CAProConfig
from nearfar_images.webtext import choose_anchors, save_anchors, smooth_texts

C = 3
NUM = 24
EARLY, LATE = Progress(epoch=1, steps=10), Progress(epoch=50, steps=10)
HEAD = HeadConfig(layers=2, hidden=6, dim=5, norm="none")
ONLY: dict[str, Any] = {
    "beta": 0.0, "instance_weight": 0.0, "reconstruction_weight": 0.0, "prototype_weight": 0.0
}  # fmt: skip


def built(**options: Any) -> Any:
    config = CAProConfig(**{"head": HEAD, "queue": 9, "prototypes_from": 2, "clean_from": 3} | options)
    return make(config, num_samples=NUM, num_classes=C)


def begun(**options: Any) -> Any:
    """A method with prototypes and a full queue."""
    method = built(**options)
    generator = torch.Generator().manual_seed(1)
    method.web.write(torch.arange(NUM), label=torch.arange(NUM) % C)
    method.begin(torch.randn(NUM, 5, generator=generator), torch.arange(NUM))
    method.queue.push(key=F.normalize(torch.randn(9, 5, generator=generator), dim=1))
    return method


def step(method: Any, progress: Progress, raw: Any = None) -> tuple[dict[str, Tensor], Any, Any]:
    viewed = method.views(raw or batch(6), Rng(0))
    targets, z = method.targets(viewed, progress), method.encode(viewed)
    return z, targets, method.loss(z, viewed, targets, progress)


def fake_engine(epoch: int, features: Any) -> Any:
    """As much of an engine as on_epoch asks for."""
    unused = dict.fromkeys(("minimize", "backward", "step", "call"), print)
    return SimpleNamespace(progress=Progress(epoch=epoch), features=features, **unused)


# -- oracles -----------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("capro", 1)
def test_with_everything_off_it_is_cross_entropy() -> None:
    method = built(**ONLY, clean_from=10**6)
    z, targets, terms = step(method, LATE)
    expected = F.cross_entropy(method.classifier(z["feature"]), targets["label"])
    torch.testing.assert_close(terms.values["classifier"], expected)
    terms.total.backward()
    own = {name: p.grad.clone() for name, p in method.encoder.named_parameters()}
    method.zero_grad()
    z, targets, terms = step(method, LATE)
    low = terms.values["low"]
    torch.testing.assert_close(terms.total, expected + low)  # the small classifier's own cross-entropy stays
    torch.testing.assert_close(low, F.cross_entropy(method.low(F.normalize(z["embedding"][:, 0], dim=1)),
                                                    targets["label"]))  # fmt: skip
    (F.cross_entropy(z["logits"], targets["label"]) + low).backward()
    for name, p in method.encoder.named_parameters():
        torch.testing.assert_close(p.grad, own[name])


@pytest.mark.oracle("capro", 2)
def test_bootstrapped_targets() -> None:
    key = torch.eye(5, dtype=torch.float64)
    chance = torch.rand(5, C, dtype=torch.float64).softmax(1)
    z = F.normalize(torch.randn(7, 5, dtype=torch.float64), dim=1)
    found = bootstrap(z, key, chance)
    torch.testing.assert_close(found.sum(1), torch.ones(7, dtype=torch.float64))
    for i in range(7):
        weight = torch.stack([(z[i] @ k).clamp(0, 1) + 1e-7 for k in key])
        torch.testing.assert_close(found[i], (weight[:, None] * chance).sum(0) / weight.sum())
    torch.testing.assert_close(bootstrap(key, key, chance), chance, atol=1e-5, rtol=0)
    method = begun()
    torch.nn.init.zeros_(method.low.weight)
    torch.nn.init.zeros_(method.low.bias)
    method.prototypes.vector = torch.zeros(C, 5)
    found = method.bootstrapped(F.normalize(torch.randn(4, 5), dim=1), torch.randn(4, 1, 5))
    torch.testing.assert_close(found, torch.full((4, C), 1 / C))


@pytest.mark.oracle("capro", 3)
def test_cleaning_of_a_batch_made_by_hand() -> None:
    chance = torch.tensor([[0.1, 0.7, 0.2], [0.45, 0.35, 0.2], [0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.59, 0.4, 0.01]])
    label = torch.tensor([0, 1, 2, 0, 1])
    anchor = torch.tensor([False, False, False, True, False])
    found = clean(chance, label, anchor, threshold=0.6)
    assert found.label.tolist() == [1, 1, 2, 0, 1]  # corrected, kept, (dropped), a seed's own, kept
    assert found.kept.tolist() == [True, True, False, True, True]
    assert label.tolist() == [0, 1, 2, 0, 1]


@pytest.mark.oracle("capro", 4)
def test_prototypes_begin_with_the_means_of_seeds() -> None:
    method = built()
    method.web.write(torch.arange(NUM), label=torch.arange(NUM) % C)
    method.anchor[torch.tensor([0, 3, 9, 1])] = True  # none of class 2
    key = torch.randn(NUM, 5)
    method.begin(key, torch.arange(NUM))
    unit = F.normalize(key, dim=1)
    for c, rows in enumerate(([0, 3, 9], [1], list(range(2, NUM, 3)))):
        torch.testing.assert_close(method.prototypes.vector[c], F.normalize(unit[rows].mean(0), dim=0))
    before = method.prototypes.vector.clone()
    z, targets, _ = step(method, EARLY)
    method.after_update({n: v.detach() for n, v in z.items()}, targets, EARLY)
    torch.testing.assert_close(method.prototypes.vector.norm(dim=1), torch.ones(C))
    one = before.clone()
    for i in range(6):
        moved = 0.999 * one[i % C] + 0.001 * F.normalize(z["embedding"][i, 0].detach(), dim=0)
        one[i % C] = F.normalize(moved, dim=0)
    torch.testing.assert_close(method.prototypes.vector, one, atol=1e-5, rtol=0)


# -- the terms ---------------------------------------------------------------------------------------------------------


def test_terms_of_a_late_batch() -> None:
    method = begun(threshold=0.0)  # every label is corrected
    z, targets, terms = step(method, LATE)
    unit = F.normalize(z["embedding"][:, 0], dim=1)
    near = unit @ method.prototypes.vector.T / 0.1
    label = (0.5 * z["logits"].softmax(1) + 0.5 * near.softmax(1)).argmax(1)
    key = F.normalize(targets["key"][:, 0], dim=1)
    dictionary = torch.cat([method.queue.view("key"), key])
    chance = 0.5 * method.low(dictionary).softmax(1) + 0.5 * (dictionary @ method.prototypes.vector.T / 0.1).softmax(1)
    target = bootstrap(unit, dictionary, chance)
    low = method.low(unit).log_softmax(1)
    logits = torch.cat([(unit * key).sum(1, keepdim=True), unit @ method.queue.view("key").T], 1) / 0.1
    expected = {
        "classifier": F.cross_entropy(z["logits"], label),
        "low": 0.9 * F.nll_loss(low, label) - 0.1 * (target * low).sum(1).mean(),
        "instances": F.cross_entropy(logits, torch.zeros(6, dtype=torch.long)),
        "reconstruction": (method.reconstructor(unit) - z["feature"]).square().mean(),
        "prototypes": F.cross_entropy(near, label),
    }
    assert set(terms.values) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(terms.values[name], value, msg=lambda m, n=name: f"{n}: {m}")
    assert float(terms.logs["kept"]) == 1


def test_gradients_of_the_reconstruction() -> None:
    for method, reaches in ((built(), True), (begun(), False)):
        step(method, EARLY)[2].values["reconstruction"].backward()
        assert (method.head.layers[0].weight.grad is not None) == reaches
        assert method.reconstructor[0].weight.grad is not None
    assert all(p.grad is None for p in method.teacher.parameters())


def test_where_nothing_survives() -> None:
    method = begun(threshold=1.0)
    method.prototypes.vector = F.normalize(torch.randn(C, 5), dim=1)
    raw = batch(2)
    z, targets, _ = step(method, LATE, raw)
    near = method.near(F.normalize(z["embedding"][:, 0], dim=1)).softmax(1)
    least = (z["logits"].softmax(1) + near).argmin(1).detach()  # the least probable label is dropped
    z, targets, terms = step(method, LATE, raw | {"label": least})
    assert float(terms.logs["kept"]) == 0
    assert all(float(terms.values[name].detach()) == 0 for name in ("classifier", "low", "prototypes"))
    assert torch.isfinite(terms.total)
    before = method.prototypes.vector.clone()
    method.after_update({n: v.detach() for n, v in z.items()}, targets, LATE)
    assert torch.equal(method.prototypes.vector, before)
    assert float(mean_ce(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))) == 0


def test_stages(tmp_path: Path) -> None:
    save_anchors(tmp_path / "anchors.npz", torch.tensor([2, 5]))
    method = built(anchors=str(tmp_path / "anchors.npz"), frozen_epochs=1, final_from=5)
    key = torch.randn(NUM, 5)

    def engine(epoch: int) -> Any:
        return fake_engine(epoch, lambda output: (key, torch.arange(NUM)))

    method.on_epoch(engine(0))
    assert method.anchor.nonzero()[:, 0].tolist() == [2, 5]
    assert not method.ready
    method.web.write(torch.arange(NUM), label=torch.arange(NUM) % C)
    method.on_epoch(engine(2))
    assert method.ready
    for epoch, alone in ((4, False), (5, True)):
        terms = step(method, Progress(epoch=epoch))[2]
        assert (float(terms.total.detach()) == float(terms.values["classifier"].detach())) == alone
    for epoch, still in ((0, ["encoder"]), (1, []), (5, ["encoder", "head", "low", "reconstructor"])):
        method.zero_grad()
        for parameter in method.parameters():
            parameter.grad = torch.ones_like(parameter)
        method.on_gradients(Progress(epoch=epoch))
        for name in ("encoder", "head", "low", "reconstructor", "classifier"):
            grads = [p.grad for p in method.get_submodule(name).parameters()]
            assert all((grad is None) == (name in still) for grad in grads), (epoch, name)


# -- texts -------------------------------------------------------------------------------------------------------------


@pytest.mark.oracle("capro", 5)
def test_smoothing_over_equal_neighbours_is_their_mean() -> None:
    visual = torch.ones(4, 3)
    text = torch.randn(4, 6)
    found = smooth_texts(text, visual, num_neighbours=3, k1=3, k2=2)
    for i in range(4):
        torch.testing.assert_close(found[i], text[[j for j in range(4) if j != i]].mean(0))
    found = smooth_texts(text, visual, num_neighbours=3, k1=3, k2=2, self_weight=1.0)
    torch.testing.assert_close(found[0], (text[1:].mean(0) + text[0]) / 2)


def test_anchors_are_images_whose_texts_fit_their_class() -> None:
    generator = torch.Generator().manual_seed(0)
    definition = torch.eye(C, 6)
    true = torch.arange(60) % C
    label = true.clone()
    label[:15] = (true[:15] + 1) % C
    text = definition[true] + 0.15 * torch.randn(60, 6, generator=generator)
    text[59] = 0
    found = choose_anchors(text, definition, label, num_anchors=8)
    assert [int(found[label == c].sum()) for c in range(C)] == [8] * C
    assert torch.equal(label[found], true[found])
    assert not found[59]
    few = choose_anchors(text, definition, label, num_anchors=40)
    assert int(few.sum()) == 59


# -- bad input ---------------------------------------------------------------------------------------------------------


def test_the_papers_settings() -> None:
    method = load_recipe("images/capro_webvision").method
    assert isinstance(method, CAProConfig)
    assert (method.temperature, method.alpha, method.beta, method.queue, method.threshold) == (0.1, 0.5, 0.1, 8192, 0.6)
    assert (method.frozen_epochs, method.prototypes_from, method.clean_from) == (5, 5, 10)


def test_bad_input_is_refused(tmp_path: Path) -> None:
    for name, value, expected in (
        ("alpha", 1.5, "a number in"), ("temperature", 0.0, "a finite number > 0"), ("clean_from", 2, "method.prot"),
        ("prototypes_from", 0, "1 or more"), ("key_encoder", "frozen", "'ema'"), ("queue", 0, "1 or more"),
        ("final_from", 7, "0, or method.clean_from"), ("prototype_weight", -1.0, "0 or more"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"method\.{name}.*: expected {expected}.* received"):
            CAProConfig(**{name: value})
    engine = fake_engine(0, print)
    with pytest.raises(FileNotFoundError, match="method.anchors: expected a file"):
        built(anchors="nowhere.npz").on_epoch(engine)
    np.savez(tmp_path / "a.npz", anchor=np.array([NUM]))
    with pytest.raises(ValueError, match="anchor: expected indices from 0 to 23"):
        built(anchors=str(tmp_path / "a.npz")).on_epoch(engine)
    np.savez(tmp_path / "b.npz", other=np.array([1]))
    with pytest.raises(ValueError, match="fields: expected 'anchor'"):
        built(anchors=str(tmp_path / "b.npz")).on_epoch(engine)
    with pytest.raises(ValueError, match="info.num_classes: expected 2 or more, received 0"):
        make(CAProConfig(), num_samples=NUM)
    with pytest.raises(ValueError, match="label: expected classes from 0 to 2"):
        choose_anchors(torch.randn(4, 6), torch.randn(3, 6), torch.tensor([0, 1, 2, 3]))
