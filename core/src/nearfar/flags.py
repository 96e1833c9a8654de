"""Typed options and recipes from command-line words; every command of every plugin parses the same way."""

from __future__ import annotations

import dataclasses
import os
import sys
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import tyro

from nearfar import plugin as plugins
from nearfar import recipe as recipes
from nearfar.checks import expect
from nearfar.recipe import BaseRecipe, Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nearfar.plugin import Plugin

T = TypeVar("T")
R = TypeVar("R", bound=BaseRecipe)


def parse(what: Callable[..., T], argv: Sequence[str], prog: str, description: str = "") -> T:
    """Options from command-line words.

    Args:
        what: a dataclass, whose instance is returned, or a function, whose result is returned. A boolean that is False
            by default is a plain switch.
        argv: the words after the command.
        prog: the command as the user typed it, for usage and errors.
        description: heads the help; the docstring of `what` by default.

    Raises:
        SystemExit: 0 after --help, 2 after a wrong flag, which is explained on stderr.
    """
    switches = (tyro.conf.FlagCreatePairsOff,)
    return tyro.cli(what, args=list(argv), prog=prog, description=description or None, config=switches)


def parse_recipe(
    plugin: Plugin,
    argv: Sequence[str],
    command: str = "train",
    *,
    kind: type[R] = Recipe,  # type: ignore[assignment]
) -> R:
    """The recipe that command-line words ask for: a name or a file, then flags over its fields.

    `simclr --trainer.epochs 5` starts from a recipe by name, `--recipe FILE --trainer.epochs 5` from a recipe.json (or
    the run folder that holds one). Without any words the plugin's recipes are listed.

    Args:
        plugin: whose recipes resolve.
        argv: the words after the command.
        command: the word between plugin and recipe, for usage and errors.
        kind: the recipe's class, by the plugin's modality.

    Raises:
        TypeError: code of the user's own returns another kind of recipe.
        ValueError: the name or the file is wrong, or the file names code and --trust-code is missing.
        SystemExit: 0 after a list or --help, 2 after a wrong flag, which is explained on stderr.
    """
    prog = f"nearfar {plugin.name} {command}"
    words = list(argv)
    file = _take_value(words, "--recipe")
    trust = _take_switch(words, "--trust-code")
    if file is None and (not words or words[0] in ("-h", "--help")):
        _list_recipes(plugin, prog)
        raise SystemExit(0)
    if file is not None:
        recipe = _from_file(plugin, Path(file), trust)
        prog += f" --recipe {file}"
    else:
        expect(not words[0].startswith("-"), f"{prog}: recipe", "a recipe's name before any flag", repr(words[0]))
        name = words.pop(0)
        recipe = _from_code(name) if ":" in name else plugin.recipe(name.removeprefix(f"{plugin.name}/"))
        prog += f" {name}"
    expect(isinstance(recipe, kind), f"recipe {recipe.name!r}", f"a {kind.__name__}", type(recipe).__name__, TypeError)
    return _flags(recipe, words, prog)


def parse_training(
    plugin: Plugin,
    argv: Sequence[str],
    *,
    kind: type[R] = Recipe,  # type: ignore[assignment]
) -> tuple[R, bool | str]:
    """The recipe of `train RECIPE [--flags] [--resume [RUN]]`, and whether, or in which folder, the run goes on.

    A run folder after --resume without a recipe's name is its own recipe.

    Raises:
        ValueError: --resume without a folder anywhere; and as `parse_recipe`.
    """
    words = list(argv)
    resume = _take_resume(words)
    named = bool(words) and (not words[0].startswith("-") or words[0] in ("-h", "--help"))
    if isinstance(resume, str) and not named and not any(w.partition("=")[0] == "--recipe" for w in words):
        words = ["--recipe", resume, *words]
    recipe = parse_recipe(plugin, words, "train", kind=kind)
    expect(
        resume is not True or bool(recipe.trainer.output),
        "--resume", "the run folder after it, or --trainer.output FOLDER", "neither",
    )  # fmt: skip
    return recipe, resume


def _take_resume(words: list[str]) -> bool | str:
    """Removes `--resume [RUN]` from the words; True where no folder follows."""
    for i, word in enumerate(words):
        if word.startswith("--resume="):
            del words[i]
            return word.partition("=")[2]
        if word == "--resume":
            follows = i + 1 < len(words) and not words[i + 1].startswith("-")
            value: bool | str = words[i + 1] if follows else True
            del words[i : i + 1 + follows]
            return value
    return False


def _flags(recipe: R, words: list[str], prog: str) -> R:
    """The recipe with its fields replaced by flags; each part keeps the class it has, and the name is no flag."""
    hints = typing.get_type_hints(type(recipe))
    parts = []
    for f in dataclasses.fields(recipe):
        value = getattr(recipe, f.name)
        if f.name != "name":
            kind = type(value) if dataclasses.is_dataclass(value) else hints[f.name]
            parts.append((f.name, kind, dataclasses.field(default=value)))
    options = dataclasses.make_dataclass("Options", parts, frozen=True, kw_only=True)
    changed = tyro.cli(options, args=words, prog=prog, description=f"Recipe {recipe.name}; every field is a flag.")
    return dataclasses.replace(recipe, **{name: getattr(changed, name) for name, *_ in parts})


def _from_file(plugin: Plugin, path: Path, trust: bool) -> BaseRecipe:
    path = path / "recipe.json" if path.is_dir() else path
    name, values = recipes.read(path)
    if ":" in name:
        if not trust:
            raise ValueError(
                f"recipe file {path}: names code to import, {name!r}; read that code, and add --trust-code to run it"
            )
        base = _from_code(name)
    else:
        owner = name.partition("/")[0]
        if owner in plugins.installed() and owner != plugin.name:
            raise ValueError(f"recipe file {path}: expected a recipe of {plugin.name!r}, received {name!r}")
        base = plugins.load_recipe(name)
    return recipes.update(base, values)


def _from_code(spec: str) -> BaseRecipe:
    """The recipe that the user's own function "module:function" returns, named so that its file finds it again."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    recipe = plugins.locate(spec)()
    expect(
        isinstance(recipe, BaseRecipe), f"recipe {spec!r}", "a function that returns a Recipe", repr(recipe), TypeError
    )
    return dataclasses.replace(recipe, name=spec)


def _take_value(words: list[str], flag: str) -> str | None:
    """Removes `flag VALUE` or `flag=VALUE` from the words and returns the value."""
    for i, word in enumerate(words):
        if word == flag:
            expect(i + 1 < len(words) and not words[i + 1].startswith("--"), flag, "a file after it", "none")
            value = words[i + 1]
            del words[i : i + 2]
            return value
        if word.startswith(f"{flag}="):
            del words[i]
            return word.partition("=")[2]
    return None


def _take_switch(words: list[str], flag: str) -> bool:
    present = flag in words
    if present:
        words.remove(flag)
    return present


def _list_recipes(plugin: Plugin, prog: str) -> None:
    from nearfar.terminal import console, table

    out = console()
    out.print(f"[bold]{prog} RECIPE[/] [dim][--flags][/]\n{prog} --recipe FILE [dim][--flags] [--trust-code][/]\n")
    rows = table("recipe", "what it is", "system")
    owners = plugin.recipes()
    for name in sorted(owners):
        module = plugin.module(owners[name])
        text: Any = module.RECIPES[name].__doc__ or module.CARD.title
        rows.add_row(name, text.strip().split("\n")[0], module.CARD.slug)
    out.print(rows if owners else f"No recipes: {plugin.systems} holds no systems.")
    first = next(iter(sorted(owners)), "RECIPE")
    out.print(f"\n[dim]{prog} {first} --help shows every flag[/]")
