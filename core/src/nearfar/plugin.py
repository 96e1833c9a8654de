"""A plugin is a named record found through the entry point group `nearfar.plugins`; finding it loads nothing heavy."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from nearfar.checks import expect_choice

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nearfar.catalog import System
    from nearfar.recipe import Recipe

GROUP = "nearfar.plugins"

INSTALL = {
    name: f"pip install nearfar-{name.replace('_', '-')}"
    for name in (
        "images", "dense", "sentences", "video", "graphs", "points", "geo", "image_text", "diffusion", "lvlm",
    )
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Plugin:
    """What a separately installed distribution adds.

    Args:
        name: the word after `nearfar` on the command line.
        summary: one line.
        systems: dotted package with one module a system; each module holds CARD (a System) and RECIPES, a dict from
            recipe name to a function without arguments that returns a Recipe. These modules import no torch.
        commands: word -> "module:function"; the function takes the remaining arguments as a list.
        help: word -> one line.
    """

    name: str
    summary: str
    systems: str
    commands: dict[str, str]
    help: dict[str, str] = field(default_factory=dict)

    def modules(self) -> Iterator[str]:
        """Names of the system modules, sorted."""
        package = importlib.import_module(self.systems)
        yield from sorted(info.name for info in pkgutil.iter_modules(package.__path__) if info.name[0] != "_")

    def cards(self) -> list[System]:
        """The cards of every system of this plugin."""
        return [importlib.import_module(f"{self.systems}.{name}").CARD for name in self.modules()]

    def recipes(self) -> dict[str, str]:
        """Recipe name -> module that defines it."""
        found = {}
        for name in self.modules():
            module = importlib.import_module(f"{self.systems}.{name}")
            found.update(dict.fromkeys(module.RECIPES, name))
        return found

    def recipe(self, name: str) -> Recipe:
        """The recipe of that name; a system's slug is the name of its main recipe, and only that module is loaded."""
        name = name.replace("-", "_")
        owner = name if name in set(self.modules()) else self.recipes().get(name)
        if owner is None:
            expect_choice(f"{self.name} recipe", name, sorted(self.recipes()))
        return importlib.import_module(f"{self.systems}.{owner}").RECIPES[name]()


def installed() -> dict[str, EntryPoint]:
    """Entry points of the installed plugins by name; nothing is imported."""
    return {point.name: point for point in sorted(entry_points(group=GROUP), key=lambda p: p.name)}


def load(name: str) -> Plugin:
    """The plugin of that name, or an error that says how to install it."""
    points = installed()
    if name not in points:
        if name in INSTALL:
            raise ModuleNotFoundError(f"plugin {name!r} is not installed; install it with: {INSTALL[name]}")
        expect_choice("plugin", name, sorted({*points, *INSTALL}))
    return points[name].load()


def load_recipe(qualified: str) -> Recipe:
    """The recipe "plugin/name"; only registered names resolve."""
    plugin, _, name = qualified.partition("/")
    if not name:
        raise ValueError(f"recipe: expected 'plugin/name', received {qualified!r}")
    return load(plugin).recipe(name)
