from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

import toy_plugin
from nearfar import recipe as recipes
from nearfar.flags import parse, parse_recipe
from nearfar.plugin import Plugin, load

MINE = """
from nearfar.config import ContrastConfig
from nearfar.recipe import Recipe


def mine():
    return Recipe(name="whatever", method=ContrastConfig(temperature=0.7))


def wrong():
    return 3
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plugin:
    toy_plugin.write(tmp_path / "site", monkeypatch)
    monkeypatch.chdir(tmp_path)
    return load("toy")


def test_a_name_gives_the_recipe(toy: Plugin):
    assert parse_recipe(toy, ["alpha"]) == toy.recipe("alpha")
    assert (
        parse_recipe(toy, ["alpha-long"]) == parse_recipe(toy, ["alpha_long"]) == parse_recipe(toy, ["toy/alpha-long"])
    )


def test_flags_replace_fields_and_nothing_else(toy: Plugin):
    made = parse_recipe(
        toy,
        [
            "alpha",
            "--trainer.max-steps",
            "2",
            "--trainer.no-progress",
            "--method.head.dim=9",
            "--views.crop-scale",
            "0.1",
            "0.9",
        ],
    )
    plain = toy.recipe("alpha")
    assert made.trainer == dataclasses.replace(plain.trainer, max_steps=2, progress=False)
    assert made.method == dataclasses.replace(plain.method, head=dataclasses.replace(plain.method.head, dim=9))  # type: ignore[attr-defined,call-arg]
    assert made.views.crop_scale == (0.1, 0.9)
    assert (made.data, made.name) == (plain.data, plain.name)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--trainer.max-step", "2"], "--trainer.max-steps"),
        (["--trainer.epochs", "x"], "invalid literal"),
        (["--trainer.epochs", "0"], "trainer.epochs: expected 1 or more, received 0"),
        (["--optimiser.name", "adam"], "adamw"),
        (["--name", "toy/beta"], "--name"),
        (["stray"], "stray"),
    ],
)
def test_wrong_flags_exit_with_2_and_a_reason(toy: Plugin, capsys: pytest.CaptureFixture, words: list[str], said: str):
    with pytest.raises(SystemExit) as caught:
        parse_recipe(toy, ["alpha", *words])
    assert caught.value.code == 2
    out = capsys.readouterr()
    assert said in " ".join(out.err.split())
    assert not out.out


def test_help_shows_fields_with_this_recipes_values(toy: Plugin, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as caught:
        parse_recipe(toy, ["alpha", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "usage: nearfar toy train alpha" in text
    assert "--trainer.epochs" in text
    assert "(default: 7)" in text
    assert "--method.temperature" in text
    assert "--name" not in text


@pytest.mark.parametrize("words", [[], ["--help"]])
def test_without_a_recipe_the_recipes_are_listed(toy: Plugin, capsys: pytest.CaptureFixture, words: list[str]):
    with pytest.raises(SystemExit) as caught:
        parse_recipe(toy, words)
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for name in ("alpha", "alpha_long", "beta", "beta_long", "The main recipe of alpha."):
        assert name in text
    assert "More words" not in text


def test_unknown_recipes_and_flags_without_a_recipe_are_refused(toy: Plugin):
    with pytest.raises(ValueError, match=r"toy recipe: .*did you mean 'alpha'\?"):
        parse_recipe(toy, ["alpa"])
    with pytest.raises(ValueError, match="recipe: expected a recipe's name before any flag, received '--trainer"):
        parse_recipe(toy, ["--trainer.epochs", "3"])


def test_a_file_gives_the_same_recipe_again(toy: Plugin, tmp_path: Path):
    wanted = parse_recipe(toy, ["beta", "--trainer.epochs", "3", "--views.mean", "0.5", "--views.std", "0.2"])
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    recipes.save(wanted, run / "recipe.json")
    assert parse_recipe(toy, ["--recipe", str(run / "recipe.json")]) == wanted
    assert parse_recipe(toy, ["--recipe", str(run)]) == wanted
    assert parse_recipe(toy, [f"--recipe={run}"]) == wanted
    again = parse_recipe(toy, ["--trainer.seed", "5", "--recipe", str(run)])
    assert again.trainer == dataclasses.replace(wanted.trainer, seed=5)


def _file(path: Path, name: str, values: dict | None = None) -> str:
    path.write_text(json.dumps({"schema": recipes.SCHEMA, "recipe": name, "values": values or {}}))
    return str(path)


def test_files_resolve_to_registered_names_of_this_plugin(toy: Plugin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "recipe.json"
    with pytest.raises(ValueError, match=r"toy recipe: .*did you mean 'alpha'\?"):
        parse_recipe(toy, ["--recipe", _file(path, "toy/alpa")])
    with pytest.raises(ValueError, match=r"plugin: .*received 'toys'; did you mean 'toy'\?"):
        parse_recipe(toy, ["--recipe", _file(path, "toys/alpha")])
    with pytest.raises(ValueError, match=r"trainer\.epoch: .*did you mean 'epochs'\?"):
        parse_recipe(toy, ["--recipe", _file(path, "toy/alpha", {"trainer": {"epoch": 3}})])
    toy_plugin.write(tmp_path / "more", monkeypatch, name="rival")
    with pytest.raises(ValueError, match="expected a recipe of 'toy', received 'rival/alpha'"):
        parse_recipe(toy, ["--recipe", _file(path, "rival/alpha")])


def test_missing_files_are_named(toy: Plugin):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json does not exist"):
        parse_recipe(toy, ["--recipe", "nowhere.json"])
    for words in (["--recipe"], ["--recipe", "--trainer.epochs", "3"]):
        with pytest.raises(ValueError, match="--recipe: expected a file after it"):
            parse_recipe(toy, words)


def test_code_named_by_a_file_runs_only_when_trusted(toy: Plugin, tmp_path: Path):
    evidence = tmp_path / "it_ran"
    (tmp_path / "own_recipes.py").write_text(f"open({str(evidence)!r}, 'w').close()\n{MINE}")
    file = _file(tmp_path / "recipe.json", "own_recipes:mine", {"trainer": {"epochs": 2}})
    with pytest.raises(ValueError, match=r"names code to import, 'own_recipes:mine'; .*--trust-code"):
        parse_recipe(toy, ["--recipe", file])
    assert not evidence.exists()
    made = parse_recipe(toy, ["--recipe", file, "--trust-code"])
    assert evidence.exists()
    assert (made.name, made.method.temperature, made.trainer.epochs) == ("own_recipes:mine", 0.7, 2)  # type: ignore[attr-defined]


def test_code_named_by_the_user_is_found_again_by_its_file(toy: Plugin, tmp_path: Path):
    (tmp_path / "my_recipes.py").write_text(MINE)
    made = parse_recipe(toy, ["my_recipes:mine", "--trainer.epochs", "4"])
    recipes.save(made, tmp_path / "recipe.json")
    assert parse_recipe(toy, ["--recipe", "recipe.json", "--trust-code"]) == made
    with pytest.raises(TypeError, match="expected a function that returns a Recipe, received 3"):
        parse_recipe(toy, ["my_recipes:wrong"])


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the options are for."""

    json: bool = False
    """print JSON"""
    count: int = 3


def double(count: int = 1) -> int:
    return 2 * count


def test_parse_gives_a_dataclass_or_a_functions_result(capsys: pytest.CaptureFixture):
    assert parse(Options, ["--json", "--count", "4"], "nearfar x") == Options(json=True, count=4)
    assert parse(double, ["--count", "4"], "nearfar x") == 8
    with pytest.raises(SystemExit):
        parse(Options, ["--help"], "nearfar x")
    text = capsys.readouterr().out
    assert "usage: nearfar x" in text
    assert "What the options are for." in text
    assert "--no-json" not in text
    with pytest.raises(SystemExit) as caught:
        parse(Options, ["--jsn"], "nearfar x")
    assert caught.value.code == 2
    assert "--json" in capsys.readouterr().err
