from __future__ import annotations

import sys
from pathlib import Path

import pytest

import toy_plugin
from nearfar import plugin
from nearfar.plugin import Plugin, installed, load, load_recipe, locate


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    toy_plugin.write(tmp_path, monkeypatch)
    return tmp_path


@pytest.mark.usefixtures("toy")
def test_an_entry_point_is_found_without_importing_it():
    assert installed()["toy"].value == "nearfar_toy:PLUGIN"
    assert "nearfar_toy" not in sys.modules


@pytest.mark.usefixtures("toy")
def test_a_plugin_lists_its_systems_and_recipes():
    toy = load("toy")
    assert list(toy.modules()) == ["alpha", "beta"]
    assert [card.slug for card in toy.cards()] == ["alpha", "beta"]
    assert toy.recipes() == {"alpha": "alpha", "alpha_long": "alpha", "beta": "beta", "beta_long": "beta"}


@pytest.mark.usefixtures("toy")
def test_a_main_recipe_loads_its_own_module_only():
    assert load("toy").recipe("alpha").name == "toy/alpha"
    assert "nearfar_toy.systems.alpha" in sys.modules
    assert "nearfar_toy.systems.beta" not in sys.modules


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("name", ["toy/alpha_long", "toy/alpha-long"])
def test_recipes_resolve_with_dashes_or_underscores(name: str):
    assert load_recipe(name).trainer.epochs == 7


@pytest.mark.usefixtures("toy")
def test_unknown_recipes_are_refused_with_the_nearest():
    with pytest.raises(
        ValueError, match=r"toy recipe: expected one of .*'beta_long', received 'alfa'; did you mean 'alpha'\?"
    ):
        load_recipe("toy/alfa")
    for name in ("alpha", "/alpha", "toy/", ""):
        with pytest.raises(ValueError, match="expected 'plugin/name'"):
            load_recipe(name)


def test_a_module_whose_slug_is_no_recipe_is_no_crash(toy: Path):
    path = toy / "nearfar_toy" / "systems" / "beta.py"
    path.write_text(path.read_text() + '\ndel RECIPES["beta"]\n')
    assert load_recipe("toy/beta_long").name == "toy/beta"
    with pytest.raises(ValueError, match=r"received 'beta'"):
        load_recipe("toy/beta")


def test_two_modules_may_not_define_one_recipe(toy: Path):
    path = toy / "nearfar_toy" / "systems" / "beta.py"
    path.write_text(path.read_text() + '\nRECIPES["alpha_long"] = beta\n')
    with pytest.raises(ValueError, match="toy recipe 'alpha_long': expected one module, received alpha and beta"):
        load("toy").recipes()


@pytest.mark.usefixtures("toy")
def test_absent_plugins_say_how_to_install_them():
    absent = next(name for name in plugin.INSTALL if name not in installed())
    with pytest.raises(ModuleNotFoundError, match=rf"plugin '{absent}' is not installed; .*pip install nearfar-"):
        load(absent)
    with pytest.raises(ValueError, match=r"plugin: expected one of .*, received 'tay'; did you mean 'toy'\?"):
        load("tay")
    assert plugin.INSTALL["image_text"] == "pip install nearfar-image-text"


def test_a_plugin_that_does_not_import_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    toy_plugin.write(tmp_path, monkeypatch, broken="import not_there_at_all\n")
    with pytest.raises(
        ImportError, match="plugin 'toy' is installed but does not import: No module named 'not_there_at_all'"
    ):
        load("toy")


def test_an_entry_point_has_to_be_a_plugin_of_its_name(toy: Path):
    info = toy / "nearfar_toy-1.0.dist-info" / "entry_points.txt"
    info.write_text("[nearfar.plugins]\ntoy = nearfar_toy.commands:train\nother = nearfar_toy:PLUGIN\n")
    with pytest.raises(TypeError, match=r"plugin 'toy': expected a nearfar\.plugin\.Plugin"):
        load("toy")
    with pytest.raises(ValueError, match="plugin 'other': expected a Plugin of the same name, received 'toy'"):
        load("other")


def test_two_distributions_may_not_claim_one_name(toy: Path):
    info = toy / "nearfar_rival-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nearfar_rival\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[nearfar.plugins]\ntoy = nearfar_rival:PLUGIN\n")
    with pytest.raises(ValueError, match="plugin 'toy': expected one distribution"):
        installed()


@pytest.mark.usefixtures("toy")
def test_commands_resolve_by_word():
    toy = load("toy")
    assert "nearfar_toy.commands" not in sys.modules
    assert toy.command("code")(["3"]) == 3
    with pytest.raises(
        ValueError, match=r"toy command: expected one of 'train', 'fail', 'code', received 'trian'; did you"
    ):
        toy.command("trian")


@pytest.mark.parametrize("spec", ["json", "json:", ":dumps", "json:dumps()", "json:no_such_name"])
def test_locate_refuses_what_is_no_module_and_name(spec: str):
    with pytest.raises(ValueError, match=r"code: expected .*, received"):
        locate(spec)


def test_locate_finds_an_object():
    import json

    assert locate("json:dumps") is json.dumps


def test_plugins_are_keyword_records():
    with pytest.raises(TypeError, match="positional"):
        Plugin("toy")  # type: ignore[call-arg,misc]
