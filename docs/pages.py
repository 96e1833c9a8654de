"""Pages and tables that Sphinx makes from the code: objectives, API, catalogue, benchmarks.

The folders objectives/generated and api/generated are written when a build begins; the directives `{objectives}`,
`{systems}` and `{benchmarks}` put tables into hand-written pages.
"""

from __future__ import annotations

import importlib
import inspect
import json
import pkgutil
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

import nearfar.objectives
from nearfar import catalog

HERE = Path(__file__).parent
RESULTS = HERE.parent / "benchmarks" / "results"

# What a user may import, in the order in which a reader meets it.
MODULES = (
    "nearfar.contrast", "nearfar.method", "nearfar.methods", "nearfar.train", "nearfar.config", "nearfar.recipe",
    "nearfar.data", "nearfar.batch", "nearfar.rng", "nearfar.views", "nearfar.models", "nearfar.heads",
    "nearfar.memory", "nearfar.momentum", "nearfar.samplers", "nearfar.schedules", "nearfar.distributed",
    "nearfar.evaluate", "nearfar.report", "nearfar.runs", "nearfar.catalog", "nearfar.plugin", "nearfar.testing",
    "nearfar_images.encoders", "nearfar_images.export", "nearfar_images.weights", "nearfar_images.data",
)  # fmt: skip

# A line of its own such as `L_i = ...` opens a formula in a docstring.
FORMULA = re.compile(r"\w+ = ")
SECTIONS = ("Args:", "Attributes:", "Returns:", "Raises:", "Yields:", "Notes:", "Note:", "Example:", "Examples:")


def first_line(thing: Any) -> str:
    """The opening sentence of a docstring."""
    text = inspect.getdoc(thing) or ""
    return " ".join(text.split("\n\n")[0].split())


def families() -> Iterator[tuple[str, ModuleType]]:
    """The modules of `nearfar.objectives`, one family of objectives each."""
    package = nearfar.objectives
    for info in pkgutil.iter_modules(package.__path__):
        if not info.name.startswith("_"):
            yield info.name, importlib.import_module(f"{package.__name__}.{info.name}")


def members(module: ModuleType) -> list[str]:
    """Public functions, then Modules, that a module of objectives defines."""
    public = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == module.__name__
    ]
    return sorted(public, key=lambda name: inspect.isclass(getattr(module, name)))


def rst(*lines: str) -> list[str]:
    return ["```{eval-rst}", *lines, "```", ""]


def objective_page(name: str, module: ModuleType) -> str:
    lines = [f"# {name}", "", first_line(module), ""]
    for member in members(module):
        kind = "autoclass" if inspect.isclass(getattr(module, member)) else "autofunction"
        lines += [f"## {member}", "", *rst(f".. {kind}:: {module.__name__}.{member}")]
    return "\n".join(lines)


def api_page(name: str) -> str:
    return "\n".join([f"# {name}", "", *rst(f".. automodule:: {name}")])


def readable(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Makes a plain-text docstring valid reStructuredText: what is set apart stays as it is, |x| and a*b are text."""
    result: list[str] = []
    apart = example = False
    base = 0  # indentation of the line that a formula belongs to; -1: a formula without one, up to the next blank line
    for k, line in enumerate(lines):
        apart = apart and (bool(line.strip()) if base < 0 else not line.strip() or _indent(line) > base)
        example = bool(line.strip()) and (example or line.lstrip().startswith(">>>"))
        if apart or example:
            result.append(f"    {line}" if base < 0 and apart else line)
            continue
        follows = next((other for other in lines[k + 1 :] if other.strip()), "")
        spaced = k + 1 < len(lines) and not lines[k + 1].strip() and _indent(follows) > _indent(line)
        if FORMULA.match(line) and k and not lines[k - 1].strip():
            apart, base = True, -1
            result += ["::", "", f"    {line}"]
        elif line.lstrip().startswith(".. "):
            apart, base = True, _indent(line)
            result.append(line)
        elif line.rstrip().endswith(":") and spaced and line.strip() not in SECTIONS:
            apart, base = True, _indent(line)
            result.append(_escaped(line.rstrip().rstrip(":")) + "::")
        else:
            result.append(_escaped(line))
    lines[:] = result


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _escaped(line: str) -> str:
    """Escapes what reStructuredText would read as markup, outside of `code`."""
    parts = re.split(r"(`+[^`]*`+)", line)
    parts[::2] = [re.sub(r"[\\\\*|]|(?<=\w)_(?!\w)", r"\\\g<0>", part) for part in parts[::2]]
    return "".join(parts)


def write(folder: Path, pages: dict[str, str]) -> None:
    """Writes what changed and removes what is gone, so that a second build is quick."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.md"):
        if path.stem not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / f"{name}.md"
        if not path.is_file() or path.read_text() != text:
            path.write_text(text)


def generate(app: Sphinx) -> None:
    write(HERE / "objectives" / "generated", {name: objective_page(name, module) for name, module in families()})
    write(HERE / "api" / "generated", {name: api_page(name) for name in MODULES})


# -- tables in hand-written pages --------------------------------------------------------------------------------------


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

    return [line(head), line(["---"] * len(head)), *map(line, rows), ""]


class MarkdownDirective(SphinxDirective):
    """A directive whose content is Markdown made anew at every build."""

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()
        return self.parse_text_to_nodes("\n".join(self.markdown()), allow_section_headings=True)

    def markdown(self) -> list[str]:
        raise TypeError(f"{type(self).__name__} does not define markdown")


class Objectives(MarkdownDirective):
    """Every objective with its opening sentence."""

    def markdown(self) -> list[str]:
        rows = [
            (f"[`{member}`](generated/{name}.md)", first_line(getattr(module, member)))
            for name, module in families()
            for member in members(module)
        ]
        return table(["objective", "what it is"], rows)


class Systems(MarkdownDirective):
    """The catalogue of the installed plugins."""

    def markdown(self) -> list[str]:
        rows = []
        for card in catalog.systems():
            page = HERE / "systems" / f"{card.slug}.md"
            name = f"[`{card.slug}`]({page.name})" if page.is_file() else f"`{card.slug}`"
            rows.append((name, f"{card.title} ({card.venue} {card.year})", card.plugin, card.kind, card.summary))
        return table(["system", "paper", "plugin", "kind", "what it does"], rows)


class Benchmarks(MarkdownDirective):
    """The results of one benchmark, `{benchmarks} NAME`: facts about the machine, then the rows."""

    required_arguments = 1

    def markdown(self) -> list[str]:
        path = RESULTS / f"{self.arguments[0]}.json"
        self.env.note_dependency(str(path))
        if not path.is_file():
            return [f"Not measured yet: `benchmarks/results/{path.name}` is missing; `make bench` writes it."]
        return tables(json.loads(path.read_text()))


def tables(result: dict[str, Any]) -> list[str]:
    """A result file as Markdown: plain values as facts, lists of objects as tables."""
    facts = [f"{key}: {value}" for key, value in result.items() if not isinstance(value, list | dict)]
    for key, value in result.items():
        if isinstance(value, dict):
            facts += [f"{key} {inner}: {v}" for inner, v in value.items() if not isinstance(v, list | dict)]
    lines = ["; ".join(facts), ""]
    for key, value in result.items():
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value):
            head = list(dict.fromkeys(name for row in value for name in row))
            rows = [[_cell(row.get(name, "")) for name in head] for row in value]
            lines += [f"**{key}**", "", *table([name.replace("_", " ") for name in head], rows)]
    return lines


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("builder-inited", generate)
    app.connect("autodoc-process-docstring", readable, priority=100)  # before napoleon reads the sections
    app.add_directive("objectives", Objectives)
    app.add_directive("systems", Systems)
    app.add_directive("benchmarks", Benchmarks)
    return {"version": nearfar.__version__, "parallel_read_safe": True, "parallel_write_safe": True}
