"""The programs in README and docs run as they stand.

All ```python blocks of a page run in order, in one namespace and one empty folder. A block that begins with
`# file: PATH` is written to that file instead, for later blocks to import; files named test_*.py are run by pytest.
"""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced program and where it stands."""

    page: Path
    line: int
    code: str

    @property
    def file(self) -> str:
        """The file it is to be written to, or nothing."""
        first = self.code.split("\n", 1)[0]
        return first.removeprefix("# file: ") if first.startswith("# file: ") else ""

    def compiled(self):
        """Code whose line numbers are those of the page."""
        return compile("\n" * self.line + self.code, str(self.page), "exec")


def blocks(page: str) -> list[Block]:
    path = ROOT / page
    text = path.read_text()
    return [
        Block(path, text.count("\n", 0, match.start()) + 1, match.group(2))
        for match in FENCE.finditer(text)
        if match.group(1) == "python"
    ]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty working folder whose modules can be imported, and are forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")) or name.split(".")[0] == "mine":
            del sys.modules[name]


def run(found: list[Block], place: Path) -> dict[str, object]:
    namespace: dict[str, object] = {"__name__": "__page__"}
    for block in found:
        if block.file:
            path = place / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.code)
        else:
            exec(block.compiled(), namespace)
    return namespace


def test_readme(place, capsys):
    run(blocks("README.md"), place)
    found = re.findall(r"^(\w+) before (\d\.\d+) after (\d\.\d+)$", capsys.readouterr().out, re.MULTILINE)
    assert [name for name, *_ in found] == ["few_label", "map"]
    assert all(float(after) > float(before) for _, before, after in found)


def test_getting_started(place, capsys):
    namespace = run(blocks("docs/getting-started.md"), place)
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert namespace["index"].shape == (100, 3)
    assert (place / "runs/from-parts/report.html").is_file()


def test_run_folder(place):
    assert run(blocks("docs/run-folder.md"), place)["run"].status == {}


def test_worlds(place, capsys):
    namespace = run(blocks("docs/worlds.md"), place)
    said, things = capsys.readouterr().out.splitlines()
    assert len(said.split(" | ")) == 4
    assert things.count("'") == 2 * len(namespace["scene"].things)
    assert len(namespace["source"]) == 10_000


def test_data(place, capsys):
    namespace = run(blocks("docs/data.md"), place)
    assert capsys.readouterr().out == "270 10 torch.Size([32, 3, 8, 8]) [0 1]\n[1 6] 10 66.5\n"
    assert len(namespace["batches"]) == 3
    assert not namespace["loader"].faults
    assert len(namespace["labels"]) == 8
    assert len(namespace["parts"]["unlabelled"]["index"]) == 56
    assert "label" not in namespace["parts"]["unlabelled"]


def test_plain_loop(place, capsys):
    others = ("lightning", "transformers")
    found = [block for block in blocks("docs/own-loop.md") if not any(name in block.code for name in others)]
    namespace = run(found, place)
    first = float(capsys.readouterr().out.removeprefix("loss "))
    assert 0 < first < 6.3  # log(2 * 256 - 1), what an embedding that tells nothing apart would pay
    assert namespace["loss"].isfinite()


@pytest.mark.parity
@pytest.mark.parametrize("library", ["lightning", "transformers"])
@pytest.mark.filterwarnings("default")  # of the other library
def test_other_trainers(library, place):
    pytest.importorskip(library)
    (block,) = [b for b in blocks("docs/own-loop.md") if library in b.code]
    run([block], place)


def test_writing_a_system(place, capsys):
    namespace = run(blocks("docs/writing-a-system.md"), place)
    assert capsys.readouterr().out.startswith("finished ")
    assert len(namespace["run"].checkpoints) == 2
    env = {**os.environ, "PYTHONPATH": str(place), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(place), "tests"],
        capture_output=True, text=True, env=env, cwd=place,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout


@pytest.mark.parametrize("page", sorted(p.name for p in (ROOT / "docs/systems").glob("*.md") if p.name != "index.md"))
def test_pages_of_systems(page, place, monkeypatch):
    """As they stand, but for the length of the training."""
    from nearfar import plugin

    def short(name: str):
        recipe = load(name)
        trainer = dataclasses.replace(recipe.trainer, max_steps=2, progress=False)
        return dataclasses.replace(recipe, trainer=trainer)

    load = plugin.load_recipe
    monkeypatch.setattr(plugin, "load_recipe", short)
    run(blocks(f"docs/systems/{page}"), place)


def test_every_page_has_its_blocks_run():
    """A page that gains a program must gain a test."""
    own = {
        "README.md", "data.md", "getting-started.md", "own-loop.md", "run-folder.md", "worlds.md",
        "writing-a-system.md",
    }  # fmt: skip
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs/objectives").glob("*.md")]:
        assert page.name in own or page.name == "design.md" or not blocks(str(page)), page


def test_links_between_pages():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text()):
            if "generated" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}, which does not exist"
