from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nearfar import catalog
from nearfar.cli import main
from nearfar.config import DataConfig, EncoderConfig
from nearfar_images.compare import plan, run, show
from nearfar_images.compare.options import CompareOptions, seconds


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty pictures of each of two kinds to learn from, eight to be judged on."""
    root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for part, num in (("train", 20), ("test", 8)):
        for name, brightness in (("dark", 70), ("light", 180)):
            (root / part / name).mkdir(parents=True)
            for k in range(num):
                pixels = np.clip(rng.normal(brightness, 40, (12, 12, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{k}.png")
    return root


def options(folder: Path, out: Path, **changes) -> CompareOptions:
    values = {
        "systems": "simclr,moco",
        "data": DataConfig(root=str(folder), image_size=12, cache=str(out.parent / "cache")),
        "encoder": EncoderConfig(name="convnet", width=4, dim=8),
        "epochs": 1, "seeds": 2, "rates": (1e-3, 2e-3), "batch_size": 8, "out": str(out),
    }  # fmt: skip
    return CompareOptions(**(values | changes))


def test_a_comparison_whole_then_with_another_system_and_nothing_twice(folder, tmp_path, monkeypatch):
    asked = options(folder, tmp_path / "out")
    result = run.compare(asked)
    rows = [(r["phase"], r["system"], r["rate"], r["seed"]) for r in result["rows"]]
    tuned = [row for row in rows if row[0] == "tuning"]
    trained = ("simclr", "moco", "cross_entropy")
    assert tuned == [("tuning", s, rate, 1000) for s in trained for rate in (1e-3, 2e-3)]
    assert [row[1::2] for row in rows if row[0] == "final" and row[2]] == [(s, k) for k in range(2) for s in trained]
    assert not any(r["error"] for r in result["rows"])
    assert not list((tmp_path / "out" / "runs").iterdir()), "what a run left is removed when its row is written"
    for row in result["rows"]:
        if row["phase"] == "final" and row["rate"]:
            assert row["rate"] == run.best_rate(result, row["system"], asked)

    names = []
    train = run.pipeline.train
    monkeypatch.setattr(run.pipeline, "train", lambda recipe, **k: names.append(recipe.name) or train(recipe, **k))
    again = run.compare(dataclasses.replace(asked, systems="simclr,moco,dcl"))
    assert names == ["images/dcl"] * 4
    assert again["rows"][: len(rows)] == result["rows"]


def test_what_was_stopped_goes_on_and_another_comparison_is_refused(folder, tmp_path, monkeypatch):
    asked = options(folder, tmp_path / "out", systems="simclr", rates=(1e-3,))
    add = run.Comparison.add

    def stop(self, **row):
        if row["system"] == "cross_entropy":
            raise KeyboardInterrupt
        return add(self, **row)

    monkeypatch.setattr(run.Comparison, "add", stop)
    with pytest.raises(KeyboardInterrupt):
        run.compare(asked)
    kept = json.loads((tmp_path / "out" / "comparison.json").read_text())["rows"]
    monkeypatch.setattr(run.Comparison, "add", add)
    whole = run.compare(asked)["rows"]
    assert whole[: len(kept)] == kept
    assert len(whole) == 3 + 4
    with pytest.raises(ValueError, match="out: expected a folder without another comparison .* differs in epochs"):
        run.compare(dataclasses.replace(asked, epochs=2))


def test_a_system_that_fails_does_not_end_the_others(folder, tmp_path, monkeypatch):
    train = run.pipeline.train

    def fails(recipe, **known):
        if recipe.name == "images/dcl":
            raise ValueError("dcl: expected luck, received none")
        return train(recipe, **known)

    monkeypatch.setattr(run.pipeline, "train", fails)
    asked = options(folder, tmp_path / "out", systems="dcl,simclr", rates=(1e-3,))
    result = run.compare(asked)
    assert sorted({r["system"] for r in result["rows"] if r["error"]}) == ["dcl"]
    found = show.lines(result, "knn")
    assert found[-1].system == "dcl"
    assert "expected luck" in found[-1].error
    assert {line.system for line in found[:-1]} == {"simclr", "cross_entropy", "untrained", "pixels"}


def test_the_command_within_a_budget_and_its_page(folder, tmp_path, capsys):
    words = [
        "--systems", "simclr", "--data.root", str(folder), "--data.image-size", "12", "--encoder.name", "convnet",
        "--encoder.width", "4", "--encoder.dim", "8", "--seeds", "2", "--rates", "1e-3", "--batch-size", "8",
        "--budget", "1m", "--data.cache", str(tmp_path / "cache"), "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(plan, "epochs_within", lambda budget, **known: 1 + int(budget > 10))
        assert main(["compare", "images", *words]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "2 epochs" in out
    assert "16 test images leave each score uncertain" in out
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert page.count("<svg") >= 3
    assert "simclr" in page
    assert main(["images", "compare", *words, "--json"]) == 0, "nothing is run again"
    assert json.loads(capsys.readouterr().out)["epochs"] == 2


def test_recipes_share_everything_but_the_method(folder, tmp_path):
    asked = options(folder, tmp_path, systems="all")
    chosen = plan.cards(asked, labels=True)
    assert {"simclr", "dcl", "moco", "cross_entropy"} <= {card.slug for card in chosen}
    assert "supcon" not in {card.slug for card in chosen}
    assert chosen[-1].slug == "cross_entropy"
    made = [
        plan.recipe(card, asked, num_samples=40, epochs=20, rate=1e-3, seed=1, output="x")
        for card in chosen
    ]  # fmt: skip
    for part in ("data", "optimiser", "trainer", "evaluate"):
        assert len({repr(getattr(recipe, part)) for recipe in made}) == 1, part
    assert {recipe.encoder.name for recipe in made} == {"convnet"}
    moco = next(recipe for recipe in made if recipe.name == "images/moco")
    assert moco.method.queue == 16, "at most half of the data, in whole batches"


def test_budgets():
    assert [seconds(text) for text in ("90s", "1.5m", "2h", "1d")] == [90, 90, 7200, 86400]
    known = {"step_seconds": {"a": 0.1, "b": 0.3}, "steps_per_epoch": 10, "seeds": 3, "rates": 3, "score_seconds": 1.0}
    epochs = plan.epochs_within(100, **known)
    spent = 2 * 6 * 1.0 + epochs * 4 * (3 + 1)
    assert epochs == 5
    assert spent <= 100 < spent + 16
    with pytest.raises(ValueError, match="budget: expected 36s or more for one epoch of every system, received 20s"):
        plan.epochs_within(20, **known)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": "ten"}, "budget: expected a number with a unit"),
        ({"seeds": 1}, "seeds: expected 2 or more"),
        ({"rates": (0.0,)}, "rates: expected numbers above 0"),
        ({"batch_size": 1}, "batch_size: expected 2 or more"),
        ({"epochs": -1}, "epochs: expected 0 or more"),
    ],
)
def test_bad_options(changes, message):
    with pytest.raises(ValueError, match=message):
        CompareOptions(**changes)


def test_bad_systems_and_data(folder, tmp_path):
    with pytest.raises(ValueError, match="systems: expected slugs of .*simclr.*, received 'nothing'"):
        run.compare(options(folder, tmp_path / "out", systems="nothing"))
    with pytest.raises(ValueError, match="system supcon: expected data with labels"):
        plan.cards(options(folder, tmp_path, systems="supcon"), labels=False)
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in (folder / "train" / "dark").iterdir():
        (flat / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="data: expected labels: one subfolder a class"):
        run.compare(options(flat, tmp_path / "out"))


def test_lines_by_hand():
    rows = [
        {"phase": "final", "system": s, "rate": 1e-3, "seed": k, "seconds": 1.0, "error": "", "scores": {"knn": v}}
        for s, values in {"a": (0.9, 0.92), "b": (0.8, 0.81), "cross_entropy": (0.95, 0.96)}.items()
        for k, v in enumerate(values)
    ]
    found = show.lines({"rows": rows, "num_test": 100}, "knn")
    assert [line.system for line in found] == ["cross_entropy", "a", "b"]
    assert found[1].behind is None, "the supervised line is not called best"
    assert found[2].behind is not None
    assert found[2].behind[0] == pytest.approx(-0.105)
    assert found[0].scores["knn"][0] == pytest.approx(0.955)
    assert show.noise({"num_test": 100}, 0.9) == pytest.approx(0.0586, abs=2e-3)


def test_every_card_that_trains_without_labels_can_be_compared(tmp_path):
    asked = CompareOptions(data=DataConfig(source="digits"))
    for card in catalog.systems(["images"]):
        if card.kind in ("train", "baseline"):
            made = plan.recipe(card, asked, num_samples=1347, epochs=3, rate=1e-3, seed=0, output="x")
            assert made.trainer.epochs == 3
