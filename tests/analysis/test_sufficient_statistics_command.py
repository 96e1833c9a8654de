"""Critics on samples, `nearfar analyse sufficient_statistics`, and its demonstration."""

from __future__ import annotations

import json
import math
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch import Tensor

from nearfar.analysis.sufficient_statistics import estimate_sufficiency, gaussian_sufficiency, main, sufficiency
from nearfar.cli import main as nearfar

F64 = torch.float64


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def samples(num: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(num, 2, generator=generator(0)) * torch.tensor([2.0, 1.0])
    z1, z2 = (x + 0.7 * torch.randn(num, 2, generator=generator(s)) for s in (1, 2))
    return z1, z2


@pytest.mark.parametrize("critic", ["nwj", "info_nce", "chi_square", "jensen_shannon", "hellinger"])
def test_critics_tell_a_code_that_keeps_from_one_that_loses(critic: str) -> None:
    z1, z2 = samples(1000)
    options: dict[str, Any] = {"critic": critic, "steps": 100, "width": 32, "lr": 1e-2, "batch_size": 128}
    good = estimate_sufficiency(z1, z2, 3 * z1[:, :1], **options)
    poor = estimate_sufficiency(z1, z2, torch.randn(1000, 1, generator=generator(5)), **options)
    assert good.information == poor.information  # the same critic of the same views
    assert good.gap == good.information - good.kept > 0.03
    assert poor.kept == pytest.approx(0, abs=0.02)
    assert good.kept > 0.2
    assert good.num_held_out == 200
    if critic == "info_nce":
        truth = gaussian_sufficiency(torch.tensor([4.0, 1.0]), 0.7, torch.tensor([[1.0, 0.0]]))
        assert good.kept == pytest.approx(truth.kept, abs=0.1)
        assert good.information == pytest.approx(truth.information, abs=0.15)
    assert not good.saturated


def test_critics_are_of_their_seed_and_leave_the_global_one_alone() -> None:
    z1, z2 = samples(200)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, again = (estimate_sufficiency(z1, z2, z1, steps=5, seed=1) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert one == again
    assert one.gap == 0
    assert one != estimate_sufficiency(z1, z2, z1, steps=5, seed=2)


def test_info_nce_says_when_it_stands_at_its_ceiling() -> None:
    z = torch.randn(150, 3, generator=generator(0))
    found = estimate_sufficiency(z, z, z, critic="info_nce", steps=150, lr=3e-3, batch_size=90)
    assert found.saturated
    assert found.information <= math.log(found.num_held_out) + 1e-4


def table() -> Tensor:
    t = torch.rand(6, 4, generator=generator(0), dtype=F64) ** 3
    t[0, 1] = 0
    return t / t.sum()


def save(path, **fields: Any) -> str:
    np.savez(path, **fields)
    return str(path)


def test_the_command_on_a_table(tmp_path, capsys) -> None:
    t, ids = table(), torch.tensor([0, 0, 1, 1, 2, 2])
    file = save(tmp_path / "t.npz", table=t.numpy(), encoder=ids.numpy())
    words = [file, "--candidates", "2", "4", "64", "--draws", "500", "--limit", "10000"]
    assert nearfar(["analyse", "sufficient_statistics", *words, "--json", "--out", str(tmp_path / "out")]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((tmp_path / "out/report.json").read_text())
    assert ElementTree.fromstring((tmp_path / "out/plot.svg").read_text()).tag == "{http://www.w3.org/2000/svg}svg"
    (report,) = result["files"]
    assert (report["mode"], report["num_states"], report["num_codes"]) == ("exact", [6, 4], 3)
    assert [s["divergence"] for s in report["sufficiency"]] == ["kl", "chi_square", "jensen_shannon", "hellinger"]
    gap = sufficiency(t, ids).gap
    assert report["sufficiency"][0]["gap"] == gap
    assert (report["squared_error_bound"], report["log_loss_bound"]) == (2 * gap, gap)
    assert [k["exact"] for k in report["info_nce"]] == [True, True, False]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert f"{gap:.5f}" in text
    assert "exact" in text


def test_the_command_on_gaussians_and_samples(tmp_path, capsys) -> None:
    lam, w = np.array([3.0, 1.0, 0.5]), np.eye(3)[:2]
    files = [save(tmp_path / "g.npz", variance=lam, noise=0.7, encoder=w)]
    z1, z2 = (z.numpy() for z in samples(200))
    files.append(save(tmp_path / "s.npz", first=z1, second=z2, feature=z1[:, :1]))
    words = [*files, "--steps", "3", "--critic", "jensen_shannon", "--out", str(tmp_path)]
    assert main([*words, "--json"]) == 0
    gaussian, estimate = json.loads(capsys.readouterr().out)["files"]
    expected = gaussian_sufficiency(torch.from_numpy(lam), 0.7, torch.from_numpy(w))
    assert (gaussian["mode"], gaussian["gap"]) == ("gaussian", expected.gap)
    assert (estimate["mode"], estimate["divergence"], estimate["num_held_out"]) == ("estimate", "jensen_shannon", 40)
    assert main(words) == 0
    text = capsys.readouterr().out
    assert f"{expected.gap:.5f}" in text
    assert "no bound" in text


def test_the_command_complains(tmp_path, capsys) -> None:
    t, ids = table().numpy(), np.zeros(6, dtype=np.int64)
    big = np.full((201, 1), 1 / 201)
    cases = {
        "expected one or more .npz files": [],
        "exactly one set of table, encoder; or variance, noise, encoder; or first, second, feature": [
            save(tmp_path / "a.npz", table=t),
        ],
        "received encoder, noise, table, variance": [
            save(tmp_path / "b.npz", table=t, encoder=ids, variance=np.ones(2), noise=1.0),
        ],
        "expected numbers that sum to 1": [save(tmp_path / "c.npz", table=2 * t, encoder=ids)],
        "expected integer codes": [save(tmp_path / "d.npz", table=t, encoder=ids + 0.5)],
        "expected at most 200 states a view": [save(tmp_path / "e.npz", table=big, encoder=np.arange(201))],
        "field 'noise': expected one number": [
            save(tmp_path / "f.npz", variance=np.ones(2), noise=np.ones(2), encoder=np.eye(2)),
        ],
    }  # fmt: skip
    for text, words in cases.items():
        assert nearfar(["analyse", "sufficient_statistics", *words]) == 2
        assert text in capsys.readouterr().err.replace("\n", " ")


def test_the_demonstration() -> None:
    from nearfar import plugin
    from nearfar.analysis._demonstrations.sufficient_statistics import GAUSSIAN, TOPICS

    module = plugin.load("images").module("sufficient_statistics")
    run = plugin.locate(module.DEMONSTRATION.run)
    assert set(module.DEMONSTRATION.arms) == {*GAUSSIAN, *TOPICS}
    assert set(module.CARD.claim.order) <= set(GAUSSIAN)
    found = run("untrained", 0, True)
    assert found == run("untrained", 0, True)
    assert found["sufficiency"] == pytest.approx((1 - found["kept"]) * found["information"])
    assert run("trained", 0, True)["sufficiency"] < found["sufficiency"]
    one = run("topics_1", 0, True)
    assert one["kept"] == pytest.approx(0, abs=1e-12)
    assert one["error"] == pytest.approx(1)  # a code that never changes predicts the mean
    assert 0 < one["augmentation"] < 1
