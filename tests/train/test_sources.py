"""A run over a labelled and an unlabelled source: what each batch holds, parts, cache, resume, scores."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jobs
import mixed


def test_zipped_batches_learn_from_both(tmp_path: Path) -> None:
    run, method = mixed.train(str(tmp_path / "run"), mixed.ZIPPED, epochs=6)
    assert method.seen == [{"labelled": 4, "unlabelled": 12}] * 24  # an epoch: once through the 48
    rows = [row for row in run.metrics if "loss" in row]
    assert rows[-1]["classify"] < 0.7 * rows[0]["classify"]
    for row in rows:
        assert row["loss"] == pytest.approx(row["contrast"] + row["classify"] + 0.1 * row["shrink"], abs=1e-5)


def test_alternating_batches_are_of_one_source_in_turn(tmp_path: Path) -> None:
    _, method = mixed.train(str(tmp_path / "run"), mixed.ALTERNATING, batch_size=8, epochs=2)
    names = ["".join(name[0] for name, num in seen.items() if num) for seen in method.seen]
    # Seven batches of 8 in 10 and 48 samples, one third of them of the first source: 2 and 5.
    assert names == ["u", "l", "u", "u", "u", "l", "u"] * 2
    assert all(sorted(seen.values()) == [0, 8] for seen in method.seen)


def test_scores_rest_on_labelled_samples_alone(tmp_path: Path) -> None:
    run, method = mixed.train(str(tmp_path / "run"), mixed.ZIPPED)
    from nearfar.evaluate import knn
    from toys import Vectors

    train, test = Vectors(10), Vectors(15, seed=3)
    method.eval()
    with torch.no_grad():
        features = [method.features({"x": source.x}) for source in (train, test)]
    expected = knn(features[0], train.y, features[1], test.y, k=3)
    assert run.scores["after"]["knn"]["value"] == expected.value
    assert run.scores["after"]["knn"]["n"] == 15


@pytest.mark.parametrize(
    ("sampler", "kill_at"),
    [(mixed.ZIPPED, 6), pytest.param(mixed.ZIPPED, 4, marks=pytest.mark.slow),
     pytest.param(mixed.ALTERNATING, 9, marks=pytest.mark.slow)],
    ids=["zipped", "zipped at an epoch's end", "alternating"],
)  # fmt: skip
def test_killed_and_resumed_equals_never_stopped(tmp_path: Path, sampler: dict[str, Any], kill_at: int) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert jobs.run(mixed.job, str(whole), sampler) == 0
    assert jobs.run(mixed.job, str(parts), sampler, False, kill_at) == -signal.SIGKILL
    assert jobs.run(mixed.job, str(parts), sampler, True) == 0
    assert jobs.result(whole) == jobs.result(parts)


def test_a_cached_batch_is_the_plain_one(tmp_path: Path) -> None:
    plain = mixed.outcome(str(tmp_path / "plain"), mixed.ZIPPED, {})
    cached = mixed.outcome(str(tmp_path / "cached"), mixed.ZIPPED, {"cache": 3})
    np.testing.assert_allclose(cached["losses"], plain["losses"], rtol=1e-5)
    for name, value in plain["state"].items():
        torch.testing.assert_close(cached["state"][name], value, rtol=1e-4, atol=1e-6)


def test_accumulated_parts_hold_their_share_of_each(tmp_path: Path) -> None:
    found = mixed.outcome(str(tmp_path / "run"), mixed.ZIPPED, {"accumulate": 4})
    assert found["seen"] == [[1, 3]] * 4 * 8


def test_other_numbers_are_another_run(tmp_path: Path) -> None:
    mixed.train(str(tmp_path / "run"), mixed.ZIPPED, epochs=1)
    with pytest.raises(ValueError, match=r"sampler state: nums: expected \[6, 10\], received \[4, 12\]"):
        mixed.train(
            str(tmp_path / "run"), mixed.ZIPPED | {"shares": ("labelled=6", "unlabelled=10")}, resume=True, epochs=1
        )
