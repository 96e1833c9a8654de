"""A plugin written into a folder and found there as an installed one is, through its entry point."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

SYSTEM = '''
from nearfar.catalog import System, Taxonomy
from nearfar.config import ContrastConfig, TrainerConfig
from nearfar.recipe import Recipe

CARD = System(
    slug="{slug}", title="The {slug} paper [v2]", authors="A. Author", year=2020, venue="Toys", plugin="{plugin}",
    kind="train", summary="a toy", recipe="{plugin}/{slug}", also=("other",),
    taxonomy=Taxonomy(positive="{positive}", negative="batch", key="shared", loss="probabilistic"),
)


def {slug}():
    """The main recipe of {slug}.

    More words.
    """
    return Recipe(name="{plugin}/{slug}", method=ContrastConfig(temperature=0.3), trainer=TrainerConfig(epochs=7))


RECIPES = {{"{slug}": {slug}, "{slug}_long": {slug}}}
'''

PLUGIN = """
from nearfar.plugin import Plugin

PLUGIN = Plugin(
    name="{name}", summary="toys [to] learn from", systems="{package}.systems",
    commands={{word: "{package}.commands:" + word for word in ("train", "fail", "code")}},
    help={{"train": "train a toy"}}, zoo={{"tiny": "{package}.zoo:TINY", "odd": "{package}.zoo:train"}},
)
"""

ZOO = """
import json
import os
import time
from pathlib import Path

from nearfar.zoo import Model
from {package}.systems.alpha import alpha


def train(recipe):
    import torch

    from nearfar.recipe import save
    from nearfar.train import Run

    folder = Path(recipe.trainer.output)
    save(recipe, folder / "recipe.json")
    with open(os.environ["TOY_LOG"], "a") as log:
        log.write("begun\\n")
    (folder / "weights").write_text("half")
    time.sleep(float(os.environ.get("TOY_SECONDS", "0")))
    (folder / "weights").write_text(str(torch.manual_seed(99).initial_seed()))
    value = float(os.environ.get("TOY_SCORE", "0.9"))
    score = {{"value": value, "low": value - 0.1, "high": value + 0.1, "n": 10}}
    (folder / "scores.json").write_text(json.dumps({{"after": {{"knn": score}}}}))
    return Run(folder)


def load(folder):
    return (folder / "weights").read_text()


TINY = Model(
    summary="a toy [of] toys", recipe=alpha, gate={{"knn": 0.8}}, train="{package}.zoo:train",
    load="{package}.zoo:load", seconds=3,
)
"""

COMMANDS = """
import builtins

from nearfar.cli import parse_recipe
from {package} import PLUGIN


def train(argv):
    recipe = parse_recipe(PLUGIN, argv)
    print(recipe.name, recipe.trainer.epochs, recipe.method.temperature)


def fail(argv):
    kind, message = argv
    raise getattr(builtins, kind)(message)


def code(argv):
    return int(argv[0])
"""


def write(folder: Path, monkeypatch: pytest.MonkeyPatch, *, name: str = "toy", broken: str = "") -> None:
    """Installs the plugin `name`, with systems alpha and beta, for one test; `broken` is put in its first line."""
    package = f"nearfar_{name}"
    systems = folder / package / "systems"
    systems.mkdir(parents=True)
    (folder / package / "__init__.py").write_text(broken + PLUGIN.format(name=name, package=package))
    (folder / package / "commands.py").write_text(COMMANDS.format(package=package))
    (folder / package / "zoo.py").write_text(ZOO.format(package=package))
    (systems / "__init__.py").write_text("")
    (systems / "_shared.py").write_text("raise RuntimeError('no system')")
    for slug, positive in (("alpha", "transformation"), ("beta", "label")):
        (systems / f"{slug}.py").write_text(SYSTEM.format(slug=slug, plugin=name, positive=positive))
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[nearfar.plugins]\n{name} = {package}:PLUGIN\n")
    for module in [m for m in sys.modules if m.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(str(folder))
