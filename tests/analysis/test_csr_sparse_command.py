"""`nearfar analyse csr_sparse`, and its demonstration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse

from nearfar.analysis.csr_sparse import encode, load, main
from nearfar.cli import main as nearfar


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = np.random.default_rng(0).standard_normal((60, 6)), np.arange(60) % 3
    file = tmp_path / "f.npz"
    np.savez(file, features=x, label=y, pair=x + 1)
    out = tmp_path / "out"
    words = [str(file), "--k", "3", "--at", "1", "3", "99", "--steps", "5", "--batch", "16", "--out", str(out)]
    assert nearfar(["analyse", "csr_sparse", *words, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((out / "report.json").read_text())
    assert [row["k"] for row in report["at"]] == [1, 3]
    assert (report["rows"], report["judged"], report["hidden"]) == (60, 12, 24)
    assert {"explained", "recall", "nearest", "pca_recall", "pca_nearest"} <= report["at"][0].keys()
    assert (out / "plot.svg").is_file()
    codes = sparse.load_npz(out / "codes.npz")
    coder, k = load(out / "coder.safetensors")
    np.testing.assert_allclose(codes.toarray(), encode(coder, torch.tensor(x).float(), k).toarray())
    again = ["analyse", "csr_sparse", str(file), "--coder", str(out / "coder.safetensors"), "--at", "3"]
    assert nearfar(again) == 0
    text = capsys.readouterr().out
    assert f"{report['at'][1]['explained']:.3f}" in text
    assert "12 of 60 rows judged" in text


def test_the_command_complains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def given(name: str, **fields: Any) -> str:
        np.savez(tmp_path / name, **fields)
        return str(tmp_path / name)

    x = np.random.default_rng(0).standard_normal((20, 4))
    good = given("good.npz", features=x)
    cases = {
        "field 'features': expected rows [N, D]": [given("a.npz", label=np.arange(3))],
        "expected rows [N, D], N >= 10": [given("b.npz", features=x[:0])],
        "field 'pair': expected shape (20, 4)": [given("c.npz", features=x, pair=x[:, :3])],
        "labels: expected a field 'label'": [good, "--labels"],
        "held_out: expected a share between 0 and 1": [good, "--held-out", "1"],
        "k: expected at most the 16 latents": [good, "--k", "17"],
        "at: expected numbers from 1 to 16": [good, "--at", "40", "--steps", "1"],
        "coder: expected a coder.safetensors": [good, "--coder", "none"],
    }
    for text, words in cases.items():
        assert nearfar(["analyse", "csr_sparse", *words]) == 2
        assert text in capsys.readouterr().err.replace("\n", " ")


def test_main_is_the_entry() -> None:
    from nearfar import plugin

    module = plugin.load("images").module("csr_sparse")
    assert plugin.locate(module.CARD.entry) is main
    from nearfar.analysis._demonstrations.csr_sparse import ARMS, demonstrate_arm

    assert module.DEMONSTRATION.arms == ARMS
    found = demonstrate_arm("random", 0, True)
    assert found == demonstrate_arm("random", 0, True)
    assert 0 < found["nearest_2"] < found["nearest_8"] < 1
