"""`nearfar analyse curl_theory`, and its demonstration."""

from __future__ import annotations

import json
import math
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch import Tensor

from nearfar.analysis.curl_theory import contrastive_loss, main, supervised_loss
from nearfar.cli import main as nearfar

F64 = torch.float64
LABELS = torch.arange(4).repeat_interleave(5)
PRIOR = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=F64)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def save(path, **fields: Any) -> str:
    np.savez(path, **fields)
    return str(path)


def test_the_command(tmp_path, capsys) -> None:
    f = draw(20, 3)
    file = save(tmp_path / "f.npz", features=f.numpy(), label=LABELS.numpy() + 3, prior=PRIOR.numpy())
    words = [file, "--negatives", "1", "2", "--blocks", "2", "--num-fitted", "3"]
    assert nearfar(["analyse", "curl_theory", *words, "--json", "--out", str(tmp_path / "out")]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((tmp_path / "out/report.json").read_text())
    assert ElementTree.fromstring((tmp_path / "out/plot.svg").read_text()).tag == "{http://www.w3.org/2000/svg}svg"
    (report,) = result["files"]
    assert report["file"] == file
    expected = contrastive_loss(f, LABELS, PRIOR, num_negatives=2)
    assert report["contrastive"][1]["loss"] == expected.loss
    assert report["sup_mu"] == supervised_loss(f, LABELS, PRIOR).mean_classifier
    assert (report["num_fitted"], report["num_tasks"]) == (3, 6)
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "20 points of 4 classes, logistic loss in bits" in text
    assert "from 3 of 6 tasks" in text
    assert f"{expected.bound:.4f}" in text


def test_the_command_scales_and_compares(tmp_path, capsys) -> None:
    f = draw(20, 3)
    files = [save(tmp_path / f"{i}.npz", features=(i + 1) * f.numpy(), label=LABELS.numpy()) for i in range(2)]
    assert main([*files, "--json", "--normalize", "--temperature", "0.5", "--negatives", "1", "--blocks", "1"]) == 0
    one, two = json.loads(capsys.readouterr().out)["files"]
    z = torch.nn.functional.normalize(f, dim=1) / math.sqrt(0.5)
    assert one["contrastive"][0]["loss"] == pytest.approx(contrastive_loss(z, LABELS).loss)
    assert two["contrastive"][0]["loss"] == pytest.approx(one["contrastive"][0]["loss"])


def test_the_command_complains(tmp_path, capsys) -> None:
    f, labels = draw(4, 2).numpy(), np.array([0, 0, 1, 1])
    cases = {
        "expected one or more .npz files": [],
        "expected an .npz or .npy file": [str(tmp_path / "none.npz")],
        "field 'features': expected rows": [save(tmp_path / "a.npz", label=labels)],
        "field 'label': expected 4 labels": [save(tmp_path / "b.npz", features=f)],
        "labels of at least 2 classes": [save(tmp_path / "c.npz", features=f, label=0 * labels)],
        "expected finite numbers, received nan": [save(tmp_path / "d.npz", features=f * np.nan, label=labels)],
        "expected no rows of length 0": [save(tmp_path / "e.npz", features=0 * f, label=labels), "--normalize"],
        "temperature: expected a finite number > 0": [
            save(tmp_path / "g.npz", features=f, label=labels), "--temperature", "0",
        ],
    }  # fmt: skip
    for text, words in cases.items():
        assert nearfar(["analyse", "curl_theory", *words]) == 2
        assert text in capsys.readouterr().err.replace("\n", " ")


def test_the_demonstration() -> None:
    from nearfar import plugin
    from nearfar.analysis._demonstrations.curl_theory import ARMS

    module = plugin.load("images").module("curl_theory")
    run = plugin.locate(module.DEMONSTRATION.run)
    assert set(module.DEMONSTRATION.arms) == set(ARMS)
    assert set(module.CARD.claim.order) <= set(ARMS)
    found = run("untrained", 0, True)
    assert found == run("untrained", 0, True)
    assert module.CARD.claim.metric in found
    assert found["slack"] == found["bound"] - found["sup_mu"]
    assert 0.5 < found["accuracy"] < 1
    assert run("block_5", 0, True)["loss"] < found["loss"]
