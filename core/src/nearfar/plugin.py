"""A plugin is a named record found through the entry point group `nearfar.plugins`; finding it loads nothing heavy."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

from nearfar.checks import expect, expect_choice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import ModuleType

    from nearfar.catalog import System

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
        commands: word -> "module:function"; the function takes the remaining arguments as a list and returns None or
            an exit code.
        help: word -> one line.
        zoo: name -> "module:NAME" of a `nearfar.zoo.Model`, in a module that imports no torch.
    """

    name: str
    summary: str
    systems: str
    commands: dict[str, str]
    help: dict[str, str] = field(default_factory=dict)
    zoo: dict[str, str] = field(default_factory=dict)

    def modules(self) -> Iterator[str]:
        """Names of the system modules, sorted."""
        package = importlib.import_module(self.systems)
        yield from sorted(info.name for info in pkgutil.iter_modules(package.__path__) if info.name[0] != "_")

    def module(self, name: str) -> ModuleType:
        """The system module of that name."""
        return importlib.import_module(f"{self.systems}.{name}")

    def cards(self) -> list[System]:
        """The cards of every system of this plugin."""
        return [self.module(name).CARD for name in self.modules()]

    def recipes(self) -> dict[str, str]:
        """Recipe name -> module that defines it."""
        found: dict[str, str] = {}
        for module in self.modules():
            for name in self.module(module).RECIPES:
                expect(
                    name not in found, f"{self.name} recipe {name!r}", "one module", f"{found.get(name)} and {module}"
                )
                found[name] = module
        return found

    def recipe(self, name: str) -> Any:
        """The recipe of that name (a BaseRecipe, of the class of the plugin's modality), dashes or underscores.

        A system's slug is the name of its main recipe; then only that system's module is loaded.
        """
        name = name.replace("-", "_")
        if name in set(self.modules()) and name in self.module(name).RECIPES:
            return self.module(name).RECIPES[name]()
        owners = self.recipes()
        expect_choice(f"{self.name} recipe", name, sorted(owners))
        return self.module(owners[name]).RECIPES[name]()

    def command(self, word: str) -> Callable[[list[str]], int | None]:
        """The function behind a command's word."""
        expect_choice(f"{self.name} command", word, self.commands)
        return locate(self.commands[word])


def locate(spec: str) -> Any:
    """The object that "module:name" stands for; this imports the module, so call it on trusted text only."""
    module, _, name = spec.partition(":")
    expect(bool(module) and name.isidentifier(), "code", "'module:name'", repr(spec))
    loaded = importlib.import_module(module)
    expect(hasattr(loaded, name), "code", f"a name that module {module} defines", repr(name))
    return getattr(loaded, name)


def installed() -> dict[str, EntryPoint]:
    """Entry points of the installed plugins by name; nothing is imported."""
    found: dict[str, EntryPoint] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda p: p.name):
        other = found.setdefault(point.name, point)
        expect(
            other.value == point.value, f"plugin {point.name!r}", "one distribution", f"{other.value}, {point.value}"
        )
    return found


def load(name: str) -> Plugin:
    """The plugin of that name, or an error that says how to install it."""
    points = installed()
    if name not in points:
        if name in INSTALL:
            raise ModuleNotFoundError(f"plugin {name!r} is not installed; install it with: {INSTALL[name]}")
        expect_choice("plugin", name, sorted({*points, *INSTALL}))
    try:
        found = points[name].load()
    except (ImportError, AttributeError) as error:
        raise ImportError(f"plugin {name!r} is installed but does not import: {error}") from error
    expect(isinstance(found, Plugin), f"plugin {name!r}", "a nearfar.plugin.Plugin", repr(found), TypeError)
    expect(found.name == name, f"plugin {name!r}", "a Plugin of the same name", repr(found.name))
    return found


def load_recipe(qualified: str) -> Any:
    """The recipe "plugin/name"; only registered names resolve."""
    plugin, _, name = qualified.partition("/")
    if not plugin or not name:
        raise ValueError(f"recipe: expected 'plugin/name', received {qualified!r}")
    return load(plugin).recipe(name)
