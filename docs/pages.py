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
DEMONSTRATIONS = HERE.parent / "benchmarks" / "demonstrations"

# What a user may import, in the order in which a reader meets it.
MODULES = (
    "nearfar.contrast", "nearfar.method", "nearfar.methods", "nearfar.train", "nearfar.config", "nearfar.recipe",
    "nearfar.data", "nearfar.batch", "nearfar.rng", "nearfar.views", "nearfar.models", "nearfar.heads",
    "nearfar.memory", "nearfar.negatives", "nearfar.prototypes", "nearfar.lorentz", "nearfar.momentum",
    "nearfar.samplers", "nearfar.schedules", "nearfar.distributed", "nearfar.ring", "nearfar.gradcache",
    "nearfar.worlds", "nearfar.zoo", "nearfar.evaluate", "nearfar.analysis.curl_theory",
    "nearfar.analysis.sufficient_statistics", "nearfar.analysis.feature_bias", "nearfar.analysis.align_uniform",
    "nearfar.analysis.kernel_mixture", "nearfar.report", "nearfar.runs", "nearfar.catalog", "nearfar.plugin",
    "nearfar.demonstrate.run", "nearfar.demonstrate.verdict", "nearfar.testing",
    "nearfar_images.encoders", "nearfar_images.export", "nearfar_images.weights",
    "nearfar_images.data", "nearfar_images.index", "nearfar_images.robustness", "nearfar_images.corruptions",
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
    # A first line that is empty keeps napoleon from reading "x: y" of a field's description as a type.
    lines[:] = ["", *result] if what == "attribute" else result


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
        rows = []
        for name, module in families():
            known = {member: getattr(module, member) for member in members(module)}
            for member, function in known.items():
                if inspect.isfunction(function):
                    pair = [other for other in known if other.lower().replace("_", "") == member.replace("_", "")]
                    links = ", ".join(f"[`{each}`](generated/{name}.md)" for each in pair)
                    rows.append((links, first_line(function)))
        return table(["function, Module", "what it is"], rows)


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
    """The results of one benchmark, `{benchmarks} NAME`: the machine, then a column a case and a row a measure."""

    required_arguments = 1

    def markdown(self) -> list[str]:
        path = RESULTS / f"{self.arguments[0]}.json"
        self.env.note_dependency(str(path))
        if not path.is_file():
            return [f"Not measured yet: there is no `benchmarks/results/{path.name}`."]
        return result_tables(json.loads(path.read_text()))


class Demonstration(MarkdownDirective):
    """What `nearfar demonstrate` found for one system: claim, verdict, and a row an arm with mean and range."""

    required_arguments = 1

    def markdown(self) -> list[str]:
        path = DEMONSTRATIONS / f"{self.arguments[0]}.json"
        self.env.note_dependency(str(path))
        if not path.is_file():
            return [f"Not run yet: there is no `benchmarks/demonstrations/{path.name}`."]
        return demonstration_lines(json.loads(path.read_text()))


class Demonstrations(MarkdownDirective):
    """Claim and verdict of every demonstration that has been run."""

    def markdown(self) -> list[str]:
        rows = []
        for path in sorted(DEMONSTRATIONS.glob("*.json")):
            self.env.note_dependency(str(path))
            result = json.loads(path.read_text())
            claim, verdict = result["claim"], result["verdict"]
            if not claim:
                continue
            order = (" > " if claim["direction"] == "higher" else " < ").join(claim["order"])
            lead = f"{verdict['mean']:.4g} [{verdict['low']:.4g}, {verdict['high']:.4g}]" if "mean" in verdict else ""
            seeds = len({row["seed"] for row in result["rows"]})
            name = f"[`{result['slug']}`](systems/{result['slug']}.md)"
            rows.append((name, claim["metric"], order, f"{claim['margin']:g}", lead, str(seeds), verdict["verdict"]))
        return table(["system", "metric", "claimed order", "margin", "lead", "seeds", "verdict"], rows)


def demonstration_lines(result: dict[str, Any]) -> list[str]:
    """A demonstration's file as Markdown."""
    rows, claim, verdict = result["rows"], result["claim"], result["verdict"]
    num = len({row["seed"] for row in rows})
    lines = [f"{result['data']}; mean over {num} seeds, smallest and largest in brackets.", ""]
    names = [claim["metric"]] if claim else []
    metrics = list(dict.fromkeys([*names, *(name for row in rows for name in row["metrics"])]))[:6]  # the file has all
    cells = []
    for arm in result["arms"]:
        found = [row["metrics"] for row in rows if row["arm"] == arm]
        cells.append([f"`{arm}`", *(spread([one[name] for one in found if name in one]) for name in metrics)])
    lines += table(["arm", *metrics], cells)
    if claim:
        order = (" > " if claim["direction"] == "higher" else " < ").join(claim["order"])
        text = f"Claim, written before the first result: `{claim['metric']}`, {order}, by {claim['margin']:g} or more. "
        text += f"Verdict: **{verdict['verdict']}**"
        if "mean" in verdict:
            text += f", a lead of {verdict['mean']:.4g} [{verdict['low']:.4g}, {verdict['high']:.4g}] by paired seeds"
        lines += [text + ".", ""]
    return lines


def spread(values: Sequence[float]) -> str:
    """Mean with smallest and largest."""
    if not values:
        return ""
    mean = sum(values) / len(values)
    return f"{mean:.4g}" if min(values) == max(values) else f"{mean:.4g} [{min(values):.4g}, {max(values):.4g}]"


MACHINE = ("metadata", "environment")
TARGETS = ("bar", "bars", "met")  # what a figure was hoped to reach; no measurement


def result_tables(result: dict[str, Any]) -> list[str]:
    """A result file as Markdown. Its cases stand in a list or dict `cases`, or are its values; else it is one case."""
    if all(isinstance(value, dict) and "environment" in value for value in result.values()):
        return [line for name, case in result.items() for line in result_tables({**case, "cases": {name: case}})]
    machine = next((result[name] for name in MACHINE if name in result), {})
    lines = [f"{'; '.join(f'{name} {value}' for name, value in flat(machine).items())}.", ""]
    cases = result.get("cases", {"value": result})
    cases = {case["case"]: case for case in cases} if isinstance(cases, list) else cases
    columns = {name: flat(case, leave_out=(*MACHINE, *TARGETS, "case")) for name, case in cases.items()}
    measures = dict.fromkeys(measure for column in columns.values() for measure in column)
    rows = [[measure, *(column.get(measure, "") for column in columns.values())] for measure in measures]
    return [*lines, *table(["measure", *columns], rows)]


def flat(values: dict[str, Any], leave_out: Sequence[str] = (), path: str = "") -> dict[str, str]:
    """Nested values as names and text; a score stands with its interval, plain counts in one line."""
    found: dict[str, str] = {}
    for key, value in values.items():
        name = f"{path} {key.replace('_', ' ')}".strip()
        if key in leave_out:
            continue
        if isinstance(value, dict) and {"value", "low", "high"} <= value.keys():
            interval = "" if value["low"] == value["high"] else f" [{value['low']:.3f}, {value['high']:.3f}]"
            found[name] = f"{value['value']:.3f}{interval}"
        elif isinstance(value, dict) and all(isinstance(inner, int | str) for inner in value.values()):
            found[name] = ", ".join(f"{inner} {count}" for inner, count in value.items())
        elif isinstance(value, dict):
            found |= flat(value, leave_out, name)
        elif isinstance(value, list):
            found[name] = " ".join(map(str, value))
        else:
            found[name] = f"{value:.4g}" if isinstance(value, float) and value < 1000 else str(value)
    return found


def setup(app: Sphinx) -> dict[str, Any]:
    app.connect("builder-inited", generate)
    app.connect("autodoc-process-docstring", readable, priority=100)  # before napoleon reads the sections
    app.add_directive("objectives", Objectives)
    app.add_directive("systems", Systems)
    app.add_directive("benchmarks", Benchmarks)
    app.add_directive("demonstration", Demonstration)
    app.add_directive("demonstrations", Demonstrations)
    return {"version": nearfar.__version__, "parallel_read_safe": True, "parallel_write_safe": True}
