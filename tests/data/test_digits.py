"""The digits are those of scikit-learn."""

from __future__ import annotations

import socket

import numpy as np
import pytest
from sklearn.datasets import load_digits

from nearfar.data import digits


def test_digits_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("network")

    monkeypatch.setattr(socket, "socket", refuse)
    source, raw = digits(), load_digits()
    assert (len(source), source.shape, source.num_classes) == (1797, (1, 8, 8), 10)
    assert source.class_names == tuple("0123456789")
    assert source.labels is not None
    np.testing.assert_array_equal(source.labels, raw.target)
    batch = source.batch(np.arange(1797))
    np.testing.assert_allclose(batch["image"][:, 0].numpy() * (16 / 255), raw.images, atol=0.5 * 16 / 255)
    assert len(batch["image"].unique()) == 17
    assert digits(channels=3).shape == (3, 8, 8)
    assert digits().fingerprint() == source.fingerprint()
