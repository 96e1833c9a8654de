"""`nearfar analyse sas_subset`: its classes, files and links; the oracles are in tests/prototypes/test_subset.py."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nearfar.analysis.sas_subset import SubsetOptions, el2n, gather, main, of_file, place_correlation
from nearfar.cli import main as nearfar
from nearfar.prototypes import class_subset


def given(file: Path, **fields: Any) -> str:
    np.savez(file, **fields)
    return str(file)


def rows(num: int = 40, dim: int = 5) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((num, dim)) + 1


def test_the_command_chooses_what_class_subset_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, label = rows(), np.arange(40) % 3 + 5
    file = given(tmp_path / "f.npz", features=x, label=label, difficulty=np.linalg.norm(x, axis=1))
    out = tmp_path / "out"
    for objective in ("graph_cut", "row_sum"):
        words = [file, "--share", "0.3", "--objective", objective, "--json", "--out", str(out)]
        assert nearfar(["analyse", "sas_subset", *words]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report == json.loads((out / "report.json").read_text())
        expected = class_subset(torch.tensor(x), torch.tensor(label), share=0.3, objective=objective)
        found = np.load(out / "subset.npz")
        assert np.array_equal(found["index"], expected.index.numpy())
        assert np.array_equal(found["gain"], expected.gain.numpy())
        assert np.array_equal(found["class"], label - 5)
        assert [row["chosen"] for row in report["classes"]] == [4, 3, 3]
    assert "<svg" in (out / "plot.svg").read_text()
    hard = np.linalg.norm(x, axis=1)
    assert report["difficulty"]["all"] == pytest.approx(hard.mean())
    assert report["difficulty"]["chosen"] == pytest.approx(hard[found["index"]].mean())
    assert main([file, "--share", "0.3"]) == 0
    assert "10 of 40 rows" in capsys.readouterr().out


def test_augmented_views_and_clusters(tmp_path: Path) -> None:
    centre = np.repeat(np.eye(3) * 5, 10, axis=0)
    views = centre[:, None] + 0.1 * np.random.default_rng(0).standard_normal((30, 4, 3))
    file = given(tmp_path / "f.npz", features=views)
    _, arrays = of_file(SubsetOptions(file=file, classes="kmeans", num_classes=3, share=0.2))
    groups = arrays["class"].reshape(3, 10)
    assert (groups == groups[:, :1]).all()
    assert len(set(groups[:, 0])) == 3
    expected = class_subset(torch.tensor(views), torch.tensor(arrays["class"]), share=0.2)
    assert np.array_equal(arrays["index"], expected.index.numpy())


def test_classes_from_a_few_labels(tmp_path: Path) -> None:
    truth = np.arange(60) % 3
    strong = np.eye(3)[truth] + 0.05 * np.random.default_rng(1).standard_normal((60, 3))
    label = np.where(np.arange(60) < 9, truth, -1)
    file = given(tmp_path / "f.npz", features=rows(60), strong=strong, label=label)
    _, arrays = of_file(SubsetOptions(file=file, classes="probe"))
    assert np.array_equal(arrays["class"], truth)


def test_the_folder_has_the_chosen_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = []
    for k in range(8):
        file = tmp_path / "data" / f"class{k % 2}" / f"{k}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(str(k))
        paths.append(str(file))
    source = given(tmp_path / "f.npz", features=rows(8), label=np.arange(8) % 2, path=np.array(paths))
    folder = tmp_path / "fewer"
    assert main([source, "--share", "0.5", "--images", str(folder), "--out", str(tmp_path / "out")]) == 0
    chosen = np.load(tmp_path / "out" / "subset.npz")["index"]
    found = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.png"))
    assert found == sorted(f"class{k % 2}/{k}.png" for k in chosen)
    assert (folder / found[0]).read_text() == Path(found[0]).stem
    with pytest.raises(ValueError, match="images: expected a new or an empty folder"):
        gather(folder, paths, chosen)
    copied = tmp_path / "copied"
    monkeypatch.setattr("nearfar.analysis.sas_subset.os.link", None)  # on another disk nothing is linked
    plain = Path.stat
    monkeypatch.setattr(
        Path, "stat", lambda self, **k: os.stat_result((*plain(self, **k)[:2], 99, *plain(self, **k)[3:]))
        if self == copied else plain(self, **k),
    )  # fmt: skip
    gather(copied, paths, chosen)
    monkeypatch.undo()
    assert sorted(p.name for p in copied.rglob("*.png")) == sorted(Path(p).name for p in found)
    with pytest.raises(FileNotFoundError, match="path: expected a file"):
        gather(tmp_path / "other", [*paths, str(tmp_path / "data" / "none.png")], np.array([8]))


def test_the_folder_is_what_training_reads(tmp_path: Path) -> None:
    from PIL import Image

    from nearfar.data import open_folder

    for k in range(6):
        file = tmp_path / "data" / f"class{k % 2}" / f"{k}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), 40 * k, dtype=np.uint8)).save(file)
    paths = sorted(str(p) for p in (tmp_path / "data").rglob("*.png"))
    gather(tmp_path / "fewer", paths, np.array([0, 1, 4]))
    source = open_folder(tmp_path / "fewer", channels=1)
    assert (len(source), source.class_names) == (3, ("class0", "class1"))
    assert int(source[2]["image"].max()) == 40 * int(Path(paths[4]).stem)


def test_rank_correlation_and_difficulty() -> None:
    label = np.array([0, 0, 0, 1, 1, 1])
    order = np.array([2, 0, 1, 5, 4, 3])
    hard = np.array([2.0, 3, 1, 3, 2, 1])  # the easiest of each class first
    assert place_correlation(order, label, hard) == pytest.approx(-1)
    assert place_correlation(order, label, -hard) == pytest.approx(1)
    assert place_correlation(order, label, 0 * hard) == 0
    with pytest.raises(ValueError, match="order: expected each of the 6 rows once"):
        place_correlation(order[:5], label, hard)
    logits = torch.randn(3, 5, 4)
    labels = torch.tensor([0, 1, 2, 3, 0])
    wrong = (logits.softmax(-1) - torch.eye(4)[labels]).square().sum(-1).sqrt()
    by_hand = [sum(float(wrong[r, i]) for r in range(3)) / 3 for i in range(5)]
    torch.testing.assert_close(el2n(logits, labels), torch.tensor(by_hand))
    torch.testing.assert_close(el2n(logits[:1], labels), el2n(logits[0], labels))
    with pytest.raises(ValueError, match=r"labels: expected shape \(5,\)"):
        el2n(logits, labels[:4])


def test_the_command_complains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, label = rows(10), np.arange(10) % 2
    good = given(tmp_path / "g.npz", features=x, label=label)
    cases = {
        "field 'label': expected one value a row, 10": [given(tmp_path / "a.npz", features=x)],
        "field 'features': expected rows [N, D]": [given(tmp_path / "b.npz", label=label)],
        "expected rows [N, D], N >= 2": [given(tmp_path / "c.npz", features=x[:0], label=label[:0])],
        "expected finite numbers": [given(tmp_path / "d.npz", features=x * np.nan, label=label)],
        "expected shape (10,), one value a row": [given(tmp_path / "e.npz", features=x, label=label[:9])],
        "x: expected rows that are not zero": [given(tmp_path / "h.npz", features=0 * x, label=label)],
        "field 'difficulty': expected finite": [
            given(tmp_path / "i.npz", features=x, label=label, difficulty=np.full(10, np.inf))
        ],
        "share: expected a number in (0, 1]": [good, "--share", "1.5"],
        "num_classes: expected 1 to the 10 rows": [good, "--classes", "kmeans", "--num-classes", "11"],
        "field 'strong': expected rows [N, D]": [good, "--classes", "probe"],
        "2 known classes or more": [
            given(tmp_path / "j.npz", features=x, strong=x, label=0 * label - 1), "--classes", "probe",
        ],
        "images: expected a field 'path'": [good, "--images", str(tmp_path / "new")],
    }  # fmt: skip
    with np.errstate(invalid="ignore"):
        for text, words in cases.items():
            assert nearfar(["analyse", "sas_subset", *words]) == 2
            assert text in capsys.readouterr().err.replace("\n", " ")


def test_the_demonstration_has_its_arms() -> None:
    from nearfar import plugin

    module = plugin.load("images").module("sas_subset")
    assert plugin.locate(module.CARD.entry) is main
    assert set(module.CARD.claim.order) <= set(module.DEMONSTRATION.arms)
    assert callable(plugin.locate(module.DEMONSTRATION.run))
