from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from nearfar.evaluate import knn, neighbours, predict
from nearfar.evaluate import knn as knn_function


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, y = load_digits(return_X_y=True)
    x, y = torch.from_numpy(x), torch.from_numpy(y).long()
    return x[:1000], y[:1000], x[1000:], y[1000:]


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    module = __import__("sys").modules[knn_function.__module__]
    monkeypatch.setattr(module, "QUERY_TILE", 37)
    monkeypatch.setattr(module, "BANK_TILE", 101)


@pytest.mark.parametrize("k", [1, 5, 150])
@pytest.mark.usefixtures("small_tiles")
def test_votes_equal_scikit_learn(digits: tuple[Tensor, ...], k: int) -> None:
    train_x, train_y, test_x, test_y = digits
    model = KNeighborsClassifier(k, metric="cosine").fit(train_x.numpy(), train_y.numpy())
    predicted = predict(train_x, train_y + 7, test_x, k=k)
    assert np.array_equal(predicted.numpy() - 7, model.predict(test_x.numpy()))
    score = knn(train_x, train_y, test_x, test_y, k=k)
    assert score.value == pytest.approx(model.score(test_x.numpy(), test_y.numpy()))
    assert score.n == len(test_y)
    assert score.low < score.value < score.high


@pytest.mark.usefixtures("small_tiles")
def test_softmax_weights_equal_scikit_learn(digits: tuple[Tensor, ...]) -> None:
    train_x, train_y, test_x, _ = digits
    model = KNeighborsClassifier(20, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07))
    model.fit(train_x.numpy(), train_y.numpy())
    predicted = predict(train_x, train_y, test_x, k=20, weights="softmax")
    assert np.array_equal(predicted.numpy(), model.predict(test_x.numpy()))


def test_leave_one_out_equals_brute_force(digits: tuple[Tensor, ...], small_tiles: None) -> None:
    x, y = digits[0][:300], digits[1][:300]
    unit = x / x.norm(dim=1, keepdim=True)
    cosine = unit @ unit.T
    cosine.fill_diagonal_(-2)
    expected, index = cosine.topk(4, dim=1)
    found, rows = neighbours(x, k=4)
    assert torch.allclose(found, expected)
    assert torch.equal(rows, index)
    votes = torch.nn.functional.one_hot(y[index], 10).sum(1)
    assert torch.equal(predict(x, y, k=4), votes.argmax(1))
    assert neighbours(x[:3], k=2)[1].shape == (3, 2)


@pytest.mark.usefixtures("small_tiles")
def test_equal_similarities_take_the_earlier_row_over_tiles() -> None:
    """Unit vectors along the axes have exact cosines of 0 and 1, most of them equal."""
    generator = torch.Generator().manual_seed(0)
    bank = torch.eye(3)[torch.randint(0, 3, (450,), generator=generator)]
    query = torch.eye(3)[torch.randint(0, 3, (50,), generator=generator)]
    for k in (1, 7, 130, 300, 450):
        expected = (query @ bank.T).sort(dim=1, descending=True, stable=True).indices[:, :k]
        assert torch.equal(neighbours(bank, query, k=k)[1], expected), k


def test_equal_votes_take_the_smallest_class_and_zero_rows_are_far() -> None:
    bank = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 0.0]])
    assert predict(bank, torch.tensor([5, 3, 9]), torch.tensor([[1.0, 0.0]]), k=2).tolist() == [3]
    cosine, index = neighbours(bank, torch.tensor([[0.0, 0.0], [1.0, 0.0]]), k=3)
    assert cosine[0].tolist() == [0, 0, 0]
    assert index[0].tolist() == [0, 1, 2]
    assert index[1].tolist() == [0, 1, 2]


def test_half_precision_and_odd_classes() -> None:
    x = torch.eye(4).half()
    score = knn(x, torch.tensor([-1, 3, -1, 3]), x, torch.tensor([-1, 3, 8, 3]), k=1)
    assert score.value == 0.75


def test_bad_input_is_named() -> None:
    x, y = torch.eye(4), torch.tensor([0, 1, 0, 1])
    bad = x.clone()
    bad[2, 1] = torch.nan
    with pytest.raises(ValueError, match="train_x: expected finite features, received 1 rows with nan or inf, first 2"):
        knn(bad, y, x, y, k=1)
    with pytest.raises(ValueError, match="query_x: expected finite features"):
        knn(x, y, bad, y, k=1)
    with pytest.raises(ValueError, match=r"k: expected a number of neighbours in \[1, 4\].*received 5"):
        knn(x, y, x, y, k=5)
    with pytest.raises(ValueError, match=r"k: .*\[1, 3\]"):
        predict(x, y, k=4)
    with pytest.raises(ValueError, match=r"train_y: expected labels of at least 2 classes, received only class \[0\]"):
        knn(x, torch.zeros(4, dtype=torch.long), x, y, k=1)
    with pytest.raises(ValueError, match="train_x: expected at least one row"):
        knn(x[:0], y[:0], x, y, k=1)
    with pytest.raises(ValueError, match="temperature"):
        knn(x, y, x, y, k=1, temperature=0.0)
    with pytest.raises((ValueError, TypeError), match="weights"):
        knn(x, y, x, y, k=1, weights="distance")
    with pytest.raises((ValueError, TypeError), match="test_x"):
        knn(x, y, torch.eye(3), y[:3], k=1)
    with pytest.raises((ValueError, TypeError), match="test_y"):
        knn(x, y, x, y[:3], k=1)
    with pytest.raises(TypeError, match="train_y"):
        knn(x, y.float(), x, y, k=1)
