"""Two processes over two sources, some parts of which have no row of a source, give the run of one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from distributed.launch import launch


def outcome(output: str, one_labelled: bool) -> dict:
    """The run whose batches hold four labelled samples, or a single one, which only one process sees."""
    import mixed

    shares = ("labelled=1", "unlabelled=15") if one_labelled else ("labelled=4", "unlabelled=12")
    return mixed.outcome(output, mixed.ZIPPED | {"shares": shares}, {"epochs": 1})


@pytest.mark.parametrize("one_labelled", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_two_processes_equal_one(tmp_path: Path, one_labelled: bool) -> None:
    one = outcome(str(tmp_path / "one"), one_labelled)
    two = launch(outcome, 2, str(tmp_path / "two"), one_labelled)
    num = 1 if one_labelled else 4
    assert [seen[0] for seen in one["seen"]] == [num] * len(one["seen"])
    for first, second in zip(*(result["seen"] for result in two), strict=True):
        assert sorted([first[0], second[0]]) == ([0, 1] if one_labelled else [2, 2])
        assert sum(first) == sum(second) == 8
    np.testing.assert_allclose(two[0]["losses"], one["losses"], rtol=1e-5)
    for result in two:
        assert result["knn"] == one["knn"]
        for name, value in one["state"].items():
            torch.testing.assert_close(result["state"][name], value, rtol=1e-4, atol=2e-6)
