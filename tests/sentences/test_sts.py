"""Scored pairs and their correlation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from nearfar_sentences.sts import evaluate_task, read_pairs, read_tasks, spearman

VECTORS = {"a": [1.0, 0.0], "b": [0.8, 0.6], "c": [0.0, 1.0], "d": [-1.0, 0.1]}


def embed(texts: list[str]) -> torch.Tensor:
    return torch.tensor([VECTORS[text] for text in texts])


def test_ranks_with_ties_by_hand() -> None:
    assert spearman(np.array([1, 2, 3, 4]), np.array([10, 30, 20, 40])) == pytest.approx(0.8)
    x, y = np.array([1, 2, 2, 3]), np.array([1, 2, 3, 4])
    ranks_x, ranks_y = np.array([1, 2.5, 2.5, 4]), np.array([1, 2, 3, 4])
    assert spearman(x, y) == pytest.approx(np.corrcoef(ranks_x, ranks_y)[0, 1])
    assert spearman(np.ones(4), y) == 0
    with pytest.raises(ValueError, match="two or more pairs"):
        spearman(np.ones(1), np.ones(1))


def test_all_is_one_correlation_over_the_pairs_of_all_sets(tmp_path: Path) -> None:
    (tmp_path / "2099").mkdir()
    (tmp_path / "2099" / "one.tsv").write_text("5\ta\tb\n1\ta\tc\n\n0\ta\td\n")
    (tmp_path / "2099" / "two.tsv").write_text("2\tb\tc\n4\tc\tc\n3\tb\td\n")
    found = evaluate_task(read_tasks(tmp_path)["2099"], embed)
    cosine = {"ab": 0.8, "ac": 0, "ad": -0.995, "bc": 0.6, "cc": 1, "bd": -0.736}
    together = spearman(
        np.array([cosine[k] for k in ("ab", "ac", "ad", "bc", "cc", "bd")]), np.array([5, 1, 0, 2, 4, 3])
    )
    assert found["all"] == pytest.approx(100 * together)
    assert found["one"] == pytest.approx(100)
    assert found["mean"] == pytest.approx((found["one"] + found["two"]) / 2)


def test_a_header_names_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "sick.txt"
    path.write_text("pair_ID\tsentence_A\tsentence_B\trelatedness_score\tother\n1\ta\tb\t4.5\tx\n2\ta\tc\t1.5\ty\n")
    pairs = read_pairs(path)
    assert pairs.first == ("a", "a")
    assert pairs.second == ("b", "c")
    assert pairs.scores.tolist() == [4.5, 1.5]


def test_bad_files(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    path.write_text("5\ta\tb\nhigh\ta\tb\n")
    with pytest.raises(ValueError, match="line 2: expected score, sentence, sentence"):
        read_pairs(path)
    path.write_text("5\ta\tb\n")
    with pytest.raises(ValueError, match="two or more pairs"):
        read_pairs(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"files of scored pairs"):
        read_tasks(tmp_path)
    with pytest.raises(FileNotFoundError, match="a folder of tab-separated files"):
        read_tasks(tmp_path / "none")
