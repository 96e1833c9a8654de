"""MLS's method around vectors: its dictionary, its labels, when InfoNCE stands in for them.

Legend: V views, B samples, N entries, D embedding, F features.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from images import vectors
from nearfar.config import HeadConfig
from nearfar.method import Progress
from nearfar.objectives import info_nce, multi_label, nearest_labels
from nearfar.plugin import load_recipe
from nearfar.rng import Rng
from nearfar.testing import check_method
from nearfar_images.systems.mls import MLSConfig

HEAD = HeadConfig(layers=2, hidden=12, dim=6, norm="none")
LATER = Progress(5, fraction=0.5, steps=10)


def made(num_views: int = 2, **options: Any) -> Any:
    return vectors.make(MLSConfig(**{"queue": 20, "num_positives": 3, "head": HEAD} | options), num_views=num_views)


def step(method: Any, number: int, progress: Progress = LATER) -> tuple[Any, Any, Any, Any]:
    """Views, embeddings, targets and terms of a batch."""
    viewed = method.views(vectors.batch(6, step=number), Rng(0))
    targets, z = method.targets(viewed, progress), method.encode(viewed)
    return viewed, z, targets, method.loss(z, viewed, targets, progress)


def test_the_loss_is_the_objective_with_the_batch_and_former_batches() -> None:
    method, queued = made(), []
    for number in range(5):
        viewed, z, targets, terms = step(method, number)
        query, feature = z["embedding"][:, 0], method.encoder(viewed["views"][0].data).detach()
        torch.testing.assert_close(z["feature"][:, 0], feature)
        assert z["embedding"].shape == (6, 1, 6)
        key_feature = method.teacher.module[0](viewed["views"][1].data)
        key = method.teacher.module[1](key_feature)
        torch.testing.assert_close(targets["key"][:, 0], key)
        torch.testing.assert_close(targets["key_feature"][:, 0], key_feature)
        former = torch.cat(queued)[-20:] if queued else torch.zeros(0, 16)
        dictionary, features = torch.cat([key, former[:, :6]]), torch.cat([key_feature, former[:, 6:]])
        labels = nearest_labels(feature, features, 3, torch.arange(6))
        weight = (len(features) - 3) / 3
        torch.testing.assert_close(
            terms.total, multi_label(query, dictionary, labels, temperature=0.2, positive_weight=weight)
        )
        assert float(terms.logs["dictionary"]) == len(dictionary)
        method.after_update({}, targets, LATER)
        queued.append(torch.cat([key, key_feature], 1))
    stored = torch.cat([method.queue.view("key"), method.queue.view("feature")], 1)
    newest = torch.cat(
        [normalize(torch.cat(queued)[-20:, :6], dim=1), normalize(torch.cat(queued)[-20:, 6:], dim=1)], 1
    )
    torch.testing.assert_close(stored[stored[:, 0].argsort()], newest[newest[:, 0].argsort()])  # rows stay together


@pytest.mark.oracle("mls", 2)
def test_labels_do_not_depend_on_the_head_and_gradient_flows_through_it_alone() -> None:
    method = made()
    viewed, z, targets, terms = step(method, 0)
    terms.total.backward()
    assert all(p.grad is not None for part in (method.encoder, method.head) for p in part.parameters())
    assert all(p.grad is None for p in method.teacher.parameters())
    assert not z["feature"].requires_grad
    other = copy.deepcopy(method)
    for parameter in other.head.parameters():
        parameter.data.mul_(-2)
    torch.testing.assert_close(other.encode(viewed)["feature"], z["feature"])
    torch.testing.assert_close(other.targets(viewed, LATER)["key_feature"], targets["key_feature"])


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_info_nce_comes_first_and_beside_the_labels_where_asked(weight: float) -> None:
    method = made(contrast_weight=weight, warm_up=0.2)
    _, z, targets, terms = step(method, 0, Progress(1, fraction=0.1, steps=10))
    expected = info_nce(z["embedding"][:, 0], targets["key"][:, 0], in_batch=True, temperature=0.2)
    assert list(terms.values) == ["contrast"]
    torch.testing.assert_close(terms.total, expected)
    _, _, _, later = step(method, 0, Progress(2, fraction=0.2, steps=10))
    assert list(later.values) == (["multi_label", "contrast"] if weight else ["multi_label"])
    if weight:
        torch.testing.assert_close(later.total, later.values["multi_label"] + weight * expected)


def test_info_nce_stands_in_while_the_dictionary_is_too_short() -> None:
    method = made(num_positives=8)
    _, _, targets, terms = step(method, 0)
    assert list(terms.values) == ["contrast"]
    method.after_update({}, targets, LATER)
    assert list(step(method, 1)[3].values) == ["multi_label"]


def test_symmetry_is_the_mean_over_both_queries_that_meet_the_other_views_keys() -> None:
    method = made(symmetric=True)
    _, z, targets, terms = step(method, 0)
    losses = []
    for q, k in ((0, 1), (1, 0)):
        labels = nearest_labels(z["feature"][:, q], targets["key_feature"][:, k], 3, torch.arange(6))
        losses.append(multi_label(z["embedding"][:, q], targets["key"][:, k], labels, positive_weight=1.0))
    torch.testing.assert_close(terms.total, torch.stack(losses).mean())
    method.after_update({}, targets, LATER)
    assert len(method.queue) == 12


def test_weight_is_capped_and_the_prior_is_the_log_odds() -> None:
    method = made(positive_weight=1.5, bias="prior", num_positives=1, force_own=False)
    _, z, targets, terms = step(method, 0)
    labels = nearest_labels(z["feature"][:, 0], targets["key_feature"][:, 0], 1)
    expected = multi_label(
        z["embedding"][:, 0], targets["key"][:, 0], labels, positive_weight=1.5, bias=math.log(1 / 5)
    )
    torch.testing.assert_close(terms.total, expected)


def test_the_contract() -> None:
    for options in ({"warm_up": 0.0}, {"symmetric": True, "contrast_weight": 0.3}):
        check_method(made(**options), vectors.batch(8))


def test_the_recipe_for_coco_is_what_is_known_of_the_papers() -> None:
    recipe = load_recipe("images/mls_coco")
    assert isinstance(recipe.method, MLSConfig)
    assert (recipe.method.momentum, recipe.method.head.hidden, recipe.method.head.dim) == (0.999, 2048, 128)
    assert (recipe.encoder.name, recipe.trainer.batch_size) == ("torchvision/resnet50", 512)


def test_bad_input_is_refused() -> None:
    for name, value, expected in (
        ("key_encoder", "shared", "0 when|'ema'"), ("predictor", HeadConfig(), "'none'"),
        ("num_positives", 20, "1 or more, below method.queue"), ("num_positives", 0, "1 or more"),
        ("temperature", 0.0, "a finite number > 0"), ("positive_weight", 0.5, "1 or more"),
        ("contrast_weight", -1.0, "0 or more"), ("warm_up", 1.5, r"a number in \[0, 1\]"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"method\..*: expected ({expected}).*received"):
            MLSConfig(**{"queue": 20, "num_positives": 3} | {name: value})
    method = made(num_views=1)
    with pytest.raises(ValueError, match=r"views\.num_views: expected 2 or more, for a query and a key, received 1"):
        method.targets(method.views(vectors.batch(), Rng()), LATER)
