"""Without the library `datasets` its source says how to get it."""

from __future__ import annotations

import sys

import pytest

from nearfar.config import DataConfig
from nearfar.data import open_data


def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r'data.source "hf" needs the library datasets: pip install "nearfar\[hf\]"'):
        open_data(DataConfig(source="hf", root="somebody/something"))
