from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import toy_plugin
from nearfar import catalog, plugin
from nearfar.catalog import Demonstration
from nearfar.cli import main
from nearfar.demonstrate.run import demonstrate

EXPERIMENT = """
import pathlib

CALLS = pathlib.Path({calls!r})


def arm(name, seed, quick):
    with CALLS.open("a") as file:
        file.write(f"{{name}} {{seed}} {{quick}}\\n")
    if {fails!r} and (name, seed) == ("worse", 1):
        raise KeyboardInterrupt
    return {{"score": {{"better": 1.0, "worse": 0.5}}[name] + seed / 100 + (seed % 2) * (name == "better") / 1000}}
"""

EXTRA = """
import dataclasses
from nearfar.catalog import Claim, Demonstration

CARD = dataclasses.replace(CARD, claim=Claim(metric={metric!r}, order=("better", "worse"), margin=0.2))
DEMONSTRATION = Demonstration(arms=("worse", "better"), run="{package}.experiment:arm", data="numbers [made] up")
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a plugin `toy` whose system alpha has a demonstration; returns a function that rewrites its code."""
    toy_plugin.write(tmp_path / "site", monkeypatch)
    card = catalog.systems(["toy"])[0]
    module = plugin.load("toy").module(card.slug)
    place, package = Path(module.__file__ or ""), module.__name__.partition(".")[0]
    calls = tmp_path / "calls.txt"

    def write(*, fails: bool = False, metric: str = "score") -> None:
        code = place.read_text().partition("\nimport dataclasses")[0]
        place.write_text(code + EXTRA.format(package=package, metric=metric))
        (place.parents[1] / "experiment.py").write_text(EXPERIMENT.format(calls=str(calls), fails=fails))
        for name in [name for name in sys.modules if name.partition(".")[0] == package]:
            del sys.modules[name]

    write()
    calls.touch()
    return card.slug, write, calls


def test_every_seed_runs_every_arm_and_the_file_holds_what_came_out(toy, tmp_path):
    slug, _, calls = toy
    result = demonstrate(slug, folder=tmp_path / "out")
    assert calls.read_text().splitlines() == [f"{arm} {seed} False" for seed in range(3) for arm in ("worse", "better")]
    assert json.loads((tmp_path / "out" / f"{slug}.json").read_text()) == json.loads(json.dumps(result))
    assert result["verdict"]["verdict"] == "shown"
    assert result["verdict"]["leads"] == pytest.approx((0.5, 0.501, 0.5))
    assert result["means"]["worse"]["score"] == pytest.approx(0.51)
    assert len(result["rows"]) == 6


def test_what_was_stopped_goes_on(toy, tmp_path):
    slug, write, calls = toy
    write(fails=True)
    with pytest.raises(KeyboardInterrupt):
        demonstrate(slug, folder=tmp_path)
    kept = json.loads((tmp_path / f"{slug}.json").read_text())
    assert [(row["arm"], row["seed"]) for row in kept["rows"]] == [("worse", 0), ("better", 0)]
    assert kept["verdict"] == {"verdict": "not judged"}
    before = len(calls.read_text().splitlines())
    with pytest.raises(KeyboardInterrupt):
        demonstrate(slug, folder=tmp_path)
    assert calls.read_text().splitlines()[before:] == ["worse 1 False"], "the first seed is not run again"


def test_other_code_or_another_claim_begins_anew(toy, tmp_path):
    slug, write, calls = toy
    demonstrate(slug, folder=tmp_path, seeds=1)
    demonstrate(slug, folder=tmp_path, seeds=1)
    assert len(calls.read_text().splitlines()) == 2
    demonstrate(slug, folder=tmp_path, seeds=1, fresh=True)
    assert len(calls.read_text().splitlines()) == 4
    write(metric="other")
    with pytest.raises(ValueError, match="metrics of arm 'worse': expected 'other', which the claim is about"):
        demonstrate(slug, folder=tmp_path, seeds=1)


def test_quick_is_one_seed_and_no_verdict(toy, tmp_path):
    slug, _, calls = toy
    result = demonstrate(slug, folder=tmp_path, quick=True)
    assert calls.read_text().splitlines() == ["worse 0 True", "better 0 True"]
    assert result["verdict"] == {"verdict": "not judged"}


def test_the_command(toy, tmp_path, capsys):
    slug, _, _ = toy
    assert main(["demonstrate", slug, "--out", str(tmp_path)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "claim score: better > worse, by 0.2 or more" in text
    assert "verdict shown: lead 0.5" in text
    assert "numbers [made] up; mean of 3 seeds" in text
    assert main(["demonstrate", slug, "--out", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["slug"] == slug


def test_complaints(toy, tmp_path, capsys):
    assert main(["demonstrate"]) == 2
    assert "one or more systems, or --all" in capsys.readouterr().err
    assert main(["demonstrate", "nothing"]) == 2
    assert "system: expected" in capsys.readouterr().err
    with pytest.raises(ValueError, match="demonstration: arms: expected two or more"):
        Demonstration(arms=("one",), run="a:b", data="")
    with pytest.raises(ValueError, match="demonstration: seeds: expected 3 or more"):
        Demonstration(arms=("one", "two"), run="a:b", data="", seeds=2)
