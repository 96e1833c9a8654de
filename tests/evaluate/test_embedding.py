from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from nearfar.config import EvaluateConfig
from nearfar.evaluate import embedding, evaluate_embedding, few_label_probe, geometry, knn, linear_probe, retrieval

CONFIG = EvaluateConfig(num_neighbours=3, per_class=4, few_label_draws=2, confidence=0.9)
GEOMETRY = {"uniformity", "effective_rank", "std", "dead_dimensions", "rows", "dimensions"}
LABELLED = {"knn", "linear", "few_label", "recall@1", "map", "map@r"}


@pytest.fixture
def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(90) % 3
    x = torch.randn(90, 6, generator=generator) + torch.eye(3, 6)[y]
    return x[:60], y[:60], x[60:], y[60:]


@pytest.fixture(autouse=True)
def said(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    embedding._say.cache_clear()
    caplog.set_level(logging.WARNING)
    return caplog


def test_every_score_is_that_of_its_function(data: tuple[Tensor, ...], said: pytest.LogCaptureFixture) -> None:
    scores = evaluate_embedding(*data, CONFIG)
    assert set(scores) == LABELLED | GEOMETRY
    assert scores["knn"] == knn(*data, k=3, confidence=0.9)
    assert scores["linear"] == linear_probe(*data, confidence=0.9)
    assert scores["few_label"] == few_label_probe(*data, per_class=4, draws=2, confidence=0.9)
    assert scores["recall@1"] == retrieval(*data[2:], confidence=0.9)["recall@1"]
    assert scores["map"] == retrieval(*data[2:], confidence=0.9)["map"]
    measures = geometry(data[2])
    assert {name: scores[name].value for name in GEOMETRY} == measures
    assert scores["std"].low == scores["std"].value == scores["std"].high
    assert not said.text
    assert set(evaluate_embedding(*data)) == set(scores)  # the default config


def test_without_labels_there_is_geometry_and_a_word_once(
    data: tuple[Tensor, ...], said: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        assert set(evaluate_embedding(data[0], None, data[2], None, CONFIG)) == GEOMETRY
    assert said.text.count("no labels of both sets") == 1
    assert set(evaluate_embedding(data[0], None, data[2], data[3])) == GEOMETRY | {"recall@1", "map", "map@r"}


def test_what_labels_do_not_allow_is_left_out_by_name(data: tuple[Tensor, ...], said: pytest.LogCaptureFixture) -> None:
    train_x, train_y, test_x, test_y = data
    scores = evaluate_embedding(train_x, train_y, test_x, test_y, EvaluateConfig(per_class=30))
    assert set(scores) == GEOMETRY | LABELLED - {"few_label"}
    assert "fewer than 30 training labels" in said.text
    scores = evaluate_embedding(train_x, torch.zeros_like(train_y), test_x, torch.arange(30))
    assert set(scores) == GEOMETRY
    assert "single class" in said.text
    assert "no class with two test rows" in said.text


def test_bad_input_is_named(data: tuple[Tensor, ...]) -> None:
    train_x, train_y, test_x, test_y = data
    bad = test_x.clone()
    bad[4, 0] = torch.nan
    with pytest.raises(ValueError, match=r"test_x: expected finite features.*first 4"):
        evaluate_embedding(train_x, train_y, bad, test_y)
    with pytest.raises((ValueError, TypeError), match="test_x"):
        evaluate_embedding(train_x, train_y, test_x[:, :2], test_y)
    with pytest.raises(ValueError, match="k: expected a number of neighbours"):
        evaluate_embedding(train_x, train_y, test_x, test_y, EvaluateConfig(num_neighbours=61))
