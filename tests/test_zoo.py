"""The zoo: built once, whole or not at all, judged, found again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import jobs
import toy_plugin
from nearfar import distributed, plugin, zoo
from nearfar.cli import main

NAME = "toy/tiny"


@pytest.fixture(autouse=True)
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    toy_plugin.write(tmp_path / "site", monkeypatch)
    monkeypatch.setenv("NEARFAR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TOY_LOG", str(tmp_path / "log"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "site"


def builds(tmp_path: Path) -> int:
    """How often training began."""
    return (tmp_path / "log").read_text().count("begun") if (tmp_path / "log").exists() else 0


def left(tmp_path: Path) -> list[str]:
    """What stands where models are kept."""
    return sorted(p.name.partition("-")[0] + p.suffix for p in (tmp_path / "cache" / "zoo" / "toy").iterdir())


def test_built_once_and_found_again(tmp_path: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    assert zoo.card(NAME) == {}
    assert zoo.get(NAME) == "99"
    assert torch.equal(torch.rand(3), expected)  # the caller's draws go on as if nothing was trained
    assert zoo.get(NAME) == "99"
    assert builds(tmp_path) == 1
    card = zoo.card(NAME)
    assert card["scores"]["knn"]["value"] == 0.9
    assert (card["model"], card["recipe"], card["gate"]) == (NAME, "toy/alpha", {"knn": 0.8})
    values = json.loads((zoo.place(NAME) / "recipe.json").read_text())["values"]
    assert values["trainer"]["output"] == ""
    assert left(tmp_path) == ["tiny", "tiny.lock"]


def test_below_its_gate_it_is_refused_by_name_and_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_SCORE", "0.75")
    message = r"zoo model toy/tiny: expected knn of at least 0.8, received 0.7500 \(interval 0.6500 to 0.8500\)"
    for _ in range(2):
        with pytest.raises(zoo.BelowGate, match=message):
            zoo.get(NAME)
    assert builds(tmp_path) == 2
    assert left(tmp_path) == ["tiny.lock"]
    monkeypatch.setenv("TOY_SCORE", "nan")
    with pytest.raises(zoo.BelowGate, match="received nan"):
        zoo.get(NAME)


def test_a_new_build_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = zoo.build(NAME)
    zoo.build(NAME, again=True)
    assert builds(tmp_path) == 2
    built = (folder / "zoo.json").read_bytes()
    monkeypatch.setenv("TOY_SCORE", "0.1")
    with pytest.raises(zoo.BelowGate, match="received 0.1000"):
        zoo.build(NAME, again=True)
    assert (folder / "zoo.json").read_bytes() == built
    assert zoo.get(NAME) == "99"


def job(site: str, environment: dict[str, str]) -> None:
    """Builds the toy in a process of its own."""
    sys.path.insert(0, site)
    os.environ.update(environment)
    zoo.build(NAME)


def test_half_built_is_never_used(tmp_path: Path, site: Path) -> None:
    environment = {name: os.environ[name] for name in ("NEARFAR_CACHE", "TOY_LOG")}
    folder = tmp_path / "cache" / "zoo" / "toy"

    def halfway() -> bool:
        return any(place.stat().st_size for place in folder.glob("*.part/weights"))

    jobs.kill(job, str(site), environment | {"TOY_SECONDS": "60"}, when=halfway)
    assert zoo.card(NAME) == {}
    assert left(tmp_path) == ["tiny.lock", "tiny.part"]
    assert zoo.get(NAME) == "99"
    assert builds(tmp_path) == 2
    assert left(tmp_path) == ["tiny", "tiny.lock"]


def test_two_processes_at_once_build_once(tmp_path: Path, site: Path) -> None:
    environment = {name: os.environ[name] for name in ("NEARFAR_CACHE", "TOY_LOG")} | {"TOY_SECONDS": "1"}
    both = [jobs.start(job, str(site), environment) for _ in range(2)]
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    assert builds(tmp_path) == 1
    assert zoo.get(NAME) == "99"


def test_what_decides_a_model_names_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    model = zoo.find(NAME)
    recipe = model.recipe()
    others = [
        dataclasses.replace(model, gate={"knn": 0.81}),
        dataclasses.replace(model, version=2),
        dataclasses.replace(model, recipe=lambda: dataclasses.replace(
            recipe, trainer=dataclasses.replace(recipe.trainer, epochs=8))),
    ]  # fmt: skip
    places = {zoo.place(NAME)}
    for other in others:
        monkeypatch.setattr(zoo, "find", lambda name, other=other: other)
        places.add(zoo.place(NAME))
    words = dataclasses.replace(model, summary="other words", seconds=9)
    monkeypatch.setattr(zoo, "find", lambda name: words)
    assert zoo.place(NAME) in places
    assert len(places) == 4


def test_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="zoo model: expected one of .*'toy/tiny', received 'toy/tinny'; did you mean"):
        zoo.get("toy/tinny")
    with pytest.raises(TypeError, match="zoo model toy/odd: expected a nearfar.zoo.Model"):
        zoo.find("toy/odd")
    with pytest.raises(ValueError, match="model: gate: expected a score to reach, received none"):
        zoo.Model(summary="", recipe=zoo.find(NAME).recipe, gate={}, train="a:b", load="a:b", seconds=1)
    absent = next(name for name in plugin.INSTALL if name not in plugin.installed())
    with pytest.raises(ModuleNotFoundError, match="is not installed; install it with"):
        zoo.find(f"{absent}/x")
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "world", lambda: 2)
        with pytest.raises(RuntimeError, match="nearfar zoo build toy/tiny, received 2 processes and nothing built"):
            zoo.build(NAME)


def test_a_gate_of_a_score_that_the_run_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    model = dataclasses.replace(zoo.find(NAME), gate={"linear": 0.5})
    monkeypatch.setattr(zoo, "find", lambda name: model)
    with pytest.raises(ValueError, match=r"zoo model toy/tiny: gate: expected scores of the run \(knn\)"):
        zoo.build(NAME)


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def only_tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = zoo.models()
    monkeypatch.setattr(zoo, "models", lambda: {NAME: everything[NAME]})


@pytest.mark.usefixtures("only_tiny")
def test_list_build_path(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["zoo"]) == 0
    text = capsys.readouterr().out
    for part in (NAME, "a toy [of] toys", "knn >= 0.8", "no, takes about 3 s", "1 model in"):
        assert part in text
    assert main(["zoo", "path", NAME]) == 2
    assert "expected one that is built: nearfar zoo build toy/tiny" in capsys.readouterr().err
    monkeypatch.setenv("TOY_SCORE", "0.2")
    assert main(["zoo", "build", NAME]) == 1
    assert "expected knn of at least 0.8, received 0.2000" in capsys.readouterr().err
    monkeypatch.delenv("TOY_SCORE")
    assert main(["zoo", "build", NAME]) == 0
    assert f"{NAME}  knn 0.900" in capsys.readouterr().out
    assert main(["zoo", "path", NAME]) == 0
    assert capsys.readouterr().out.strip() == str(zoo.place(NAME))
    assert main(["zoo", "list"]) == 0
    assert "knn 0.900" in capsys.readouterr().out
    assert builds(tmp_path) == 2


@pytest.mark.usefixtures("only_tiny")
def test_json(capsys: pytest.CaptureFixture) -> None:
    def read(*words: str) -> Any:
        assert main(["zoo", *words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    assert read()[0] | {"path": ""} == {
        "model": NAME, "summary": "a toy [of] toys", "gate": {"knn": 0.8}, "seconds": 3, "path": "", "built": {},
    }  # fmt: skip
    (made,) = read("build", NAME)
    assert made["path"] == read("path", NAME)["path"] == read("list")[0]["path"] == str(zoo.place(NAME))
    assert made["scores"]["knn"]["value"] == 0.9
    assert read("list")[0]["built"]["model"] == NAME


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bild", NAME], "zoo command: expected one of 'list', 'build', 'path', received 'bild'; did you mean 'build'"),
        (["build"], "names"),
        (["build", NAME, "toy/none"], "received 'toy/none'"),
    ],
)
def test_mistakes(words: list[str], message: str, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    assert main(["zoo", *words]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert builds(tmp_path) == 0


def test_looking_loads_no_torch(site: Path) -> None:
    code = (
        "import sys; from nearfar import zoo; zoo.find('toy/tiny'); zoo.place('toy/tiny'); zoo.card('toy/tiny');"
        "[zoo.find(name) for name in zoo.models() if name != 'toy/odd'];"
        "assert 'torch' not in sys.modules, 'torch was loaded'"
    )
    environment = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
