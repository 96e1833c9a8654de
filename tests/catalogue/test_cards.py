"""Every card of every installed plugin has what its kind must have: a card exists only when its system works."""

from __future__ import annotations

import ast
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nearfar import plugin
from nearfar.catalog import EVIDENCE, KINDS, System, systems
from nearfar.cli import main
from nearfar.demonstrate.run import demonstrate, demonstration_of

ROOT = Path(__file__).parents[2]
TESTS = ROOT / "tests"
CARDS = systems()
EXPORT = re.compile(r"safetensors|onnx|none: .{10,}")

each_card = pytest.mark.parametrize("card", CARDS, ids=[card.slug for card in CARDS])


# -- the tests that say which oracle they are -------------------------------------------------------------------------


@dataclass(frozen=True)
class Mark:
    slug: str
    number: int
    where: str


def marks(text: str, where: str) -> Iterator[Mark]:
    """The oracle(slug, n) marks that stand on tests: on a test function, on a class of tests, or on a parameter."""
    for node in ast.walk(ast.parse(text)):
        is_test = isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        if not (is_test or (isinstance(node, ast.ClassDef) and node.name.startswith("Test"))):
            continue
        for call in (part for line in node.decorator_list for part in ast.walk(line)):
            if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("mark.oracle"):
                place = f"{where}:{call.lineno}"
                values = [arg.value if isinstance(arg, ast.Constant) else None for arg in call.args]
                match values:
                    case [str(slug), int(number)] if not call.keywords:
                        yield Mark(slug, number, place)
                    case _:
                        raise ValueError(f"{place}: expected oracle('<slug>', n) with both written out")


@cache
def all_marks() -> tuple[Mark, ...]:
    files = sorted(TESTS.rglob("test_*.py"))
    return tuple(mark for file in files for mark in marks(file.read_text(), str(file.relative_to(ROOT))))


def test_marks_are_found_where_they_stand():
    text = """
import pytest
@pytest.mark.oracle("a", 1)
def test_one(): ...
@pytest.mark.parametrize("x", [pytest.param(1, marks=pytest.mark.oracle("a", 2)), 3])
@pytest.mark.oracle("b", 1)
def test_two(x): ...
@pytest.mark.oracle("c", 1)
class TestThree:
    @pytest.mark.oracle("c", 2)
    def test_four(self): ...
@pytest.mark.oracle("d", 1)
def helper(): ...
"""
    assert {(m.slug, m.number) for m in marks(text, "x")} == {("a", 1), ("a", 2), ("b", 1), ("c", 1), ("c", 2)}
    for wrong in ('oracle("a")', 'oracle("a", N)', 'oracle("a", n=1)', 'oracle(1, "a")'):
        with pytest.raises(ValueError, match="x:1: expected oracle"):
            list(marks(f"@pytest.mark.{wrong}\ndef test_x(): ...", "x"))


def test_marks_name_an_oracle_of_their_card():
    """A mark whose slug has no card is a part of core tested ahead of its system; a misspelt one leaves a gap below."""
    numbers = {card.slug: len(card.oracles) for card in CARDS}
    wrong = [mark for mark in all_marks() if mark.slug in numbers and not 1 <= mark.number <= numbers[mark.slug]]
    assert not wrong, ", ".join(f"{mark.where}: {mark.slug} has no oracle {mark.number}" for mark in wrong)


# -- what all kinds must have -----------------------------------------------------------------------------------------


def test_there_are_cards_and_their_slugs_are_unique():
    assert CARDS
    counts = Counter(card.slug for card in CARDS)
    assert [slug for slug, count in counts.items() if count > 1] == []


@each_card
def test_every_oracle_has_a_test(card: System):
    assert card.oracles, "a card needs its sheet's oracles"
    tested = {mark.number for mark in all_marks() if mark.slug == card.slug}
    missing = [f"{n}: {line}" for n, line in enumerate(card.oracles, 1) if n not in tested]
    assert not missing, f"oracles of {card.slug} without a test marked oracle({card.slug!r}, n): " + "; ".join(missing)


@each_card
def test_the_card_is_complete(card: System):
    for field in ("title", "authors", "venue", "summary"):
        assert getattr(card, field).strip(), field
    assert 1980 <= card.year <= 2100
    assert card.kind in KINDS
    assert card.evidence in EVIDENCE
    assert card.taxonomy is not None
    assert card.plugin in plugin.installed()
    assert set(card.also) <= set(plugin.INSTALL) - {card.plugin}
    assert card.export, "formats its features export to, or ('none: reason',)"
    assert all(EXPORT.fullmatch(form) for form in card.export), card.export
    assert len(set(card.oracles)) == len(card.oracles)


@each_card
def test_the_card_stands_in_a_module_of_its_slug(card: System):
    assert plugin.load(card.plugin).module(card.slug).CARD is card


@each_card
def test_the_docs_have_its_page(card: System):
    page = ROOT / "docs" / "systems" / f"{card.slug}.md"
    assert page.is_file(), f"docs/systems/{card.slug}.md does not exist"
    text = page.read_text()
    assert card.title in " ".join(text.split())
    if card.evidence == "rebuilt":
        assert "rebuilt" in text.lower(), "a reconstruction says so on its page"


@each_card
def test_it_has_a_demonstration_of_its_claim(card: System):
    found = demonstration_of(card.slug)
    assert callable(plugin.locate(found.run))
    assert card.claim is not None
    assert set(card.claim.order) <= set(found.arms), "the claim's arms are among the demonstration's"
    if found.run == "nearfar_images.demonstrations:recipe_arm":
        recipes = plugin.load(card.plugin).recipes()
        for arm in set(found.arms) - {"untrained", "pixels"}:
            assert {arm, f"{arm}_digits"} & recipes.keys(), f"arm {arm!r} is no recipe"


@each_card
@pytest.mark.slow
def test_its_demonstration_runs(card: System, tmp_path: Path):
    result = demonstrate(card.slug, quick=True, folder=tmp_path)
    assert {row["arm"] for row in result["rows"]} == set(demonstration_of(card.slug).arms)
    assert all(card.claim.metric in row["metrics"] for row in result["rows"] if row["arm"] in card.claim.order)


# -- what each kind must have -----------------------------------------------------------------------------------------


def images(folder: Path) -> list[str]:
    """Sixteen pictures of each of two classes, and the flags of a run on them that takes a second.

    Each class has two folders, and a table holds the brightness of every picture: see COLUMNS.
    """
    rng = np.random.default_rng(0)
    rows = ["file_name,brightness"]
    for name, brightness in (("dark", 60), ("light", 190)):
        for k in range(16):
            pixels = np.clip(rng.normal(brightness, 30, (16, 16, 3)), 0, 255).astype(np.uint8)
            file = Path(name, ("even", "odd")[k % 2], f"{k:02d}.png")
            (folder / "data" / file).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / "data" / file)
            rows.append(f"{file.as_posix()},{pixels.mean()}")
    (folder / "data" / "metadata.csv").write_text("\n".join(rows))
    return [
        "--data.root", str(folder / "data"), "--data.image-size", "16", "--trainer.batch-size", "8",
        "--encoder.name", "convnet", "--encoder.width", "8", "--data.cache", str(folder / "cache"),
    ]  # fmt: skip


def sentences(folder: Path) -> list[str]:
    """Thirty-two triplets of sentences with two classes, features of an image each, and the flags of a run on them."""
    rng = np.random.default_rng(0)
    words = ["red", "blue", "round", "square", "old", "new", "small", "large"]
    rows = ["text,positive,negative,label"]
    for k in range(32):
        noun = ("cat", "house")[k % 2]
        first, second, third = (" ".join(rng.choice(words, 3)) for _ in range(3))
        rows.append(f"the {first} {noun},a {second} {noun},the {third} tree,{noun}")
    (folder / "data.csv").write_text("\n".join(rows))
    np.save(folder / "image.npy", rng.normal(size=(32, 6)).astype(np.float32))
    return [
        "--data.root", str(folder / "data.csv"), "--data.validation", "0.25", "--trainer.batch-size", "8",
        "--encoder.layers", "1", "--encoder.dim", "16", "--encoder.heads", "2", "--encoder.vocabulary", "200",
        "--encoder.max-length", "16",
    ]  # fmt: skip


# What makes a tiny data set of a plugin's modality, and the flags that go with it.
DATA: dict[str, Callable[[Path], list[str]]] = {"images": images, "sentences": sentences}
# Flags for what a method needs beside labels.
COLUMNS = {
    "target": ["--data.target", "brightness"],
    "path": ["--data.levels", "folder1", "folder2"],
    "group": ["--data.root", "", "--data.sources", "a={folder}/data/dark", "b={folder}/data/light"],
}
# Flags for methods whose batch must have more samples than the embedding has features.
OWN = {
    "wmse": ["--method.head.dim", "4", "--method.wmse.size", "0"],
    "cut": [
        "--method.width", "4", "--method.num-blocks", "2", "--method.layers", "0", "4", "12", "--sampler.shares", "a=4",
        "b=4", "--method.discriminator-layers", "2", "--method.discriminator-width", "4", "--data.validation", "0.25",
    ],
    "pcl_sr": ["--method.network.blocks", "1", "--method.width", "8"],
}  # fmt: skip


def trains(card: System, folder: Path) -> None:
    """Two steps from the command line leave a finished run with finite losses, weights and features."""
    from safetensors.numpy import load_file

    owner, _, name = card.recipe.partition("/")
    needs = plugin.load_recipe(card.recipe).method.needs_columns
    columns = (word.format(folder=folder) for column in needs for word in COLUMNS[column])
    flags = [*DATA[owner](folder), *columns, *OWN.get(card.slug, [])]
    out = folder / "run"
    code = main([owner, "train", name, *flags, "--trainer.max-steps", "2", "--trainer.output", str(out)])
    assert code == 0
    assert json.loads((out / "recipe.json").read_text())["recipe"] == card.recipe
    status = json.loads((out / "status.json").read_text())
    assert (status["status"], status["step"]) == ("finished", 2)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses
    assert all(math.isfinite(loss) for loss in losses)
    (weights,) = (out / "checkpoints").glob("step-*2/model.safetensors")
    for key, values in load_file(weights).items():
        assert values.dtype.kind != "f" or np.isfinite(values).all(), key
    scores = json.loads((out / "scores.json").read_text())
    assert scores["after"], "features of labelled data are scored"
    assert all(math.isfinite(score["value"]) for score in scores["after"].values())
    features = folder / "features.npy"
    root = folder / ("data.csv" if owner == "sentences" else "data")
    assert main([owner, "embed", "--run", str(out), "--root", str(root), "--out", str(features)]) == 0
    found = np.load(features, allow_pickle=False)
    assert found.shape[0] == 32
    assert np.isfinite(found).all()
    assert found.std(axis=0).max() > 0, "every sample has the same features"


def has_recipes(card: System) -> None:
    """The card's recipe and its variants resolve by the names they carry."""
    module = plugin.load(card.plugin).module(card.slug)
    assert plugin.load_recipe(card.recipe).name == card.recipe
    for name in module.RECIPES:
        assert plugin.load_recipe(f"{card.plugin}/{name}").name == f"{card.plugin}/{name}"


def has_entry(card: System, folder: Path) -> None:
    """What users call can be called; how it behaves is the matter of its oracles."""
    assert callable(plugin.locate(card.entry))


CHECKS: dict[str, Callable[[System, Path], None]] = {
    "train": trains,
    "pipeline": trains,
    "baseline": trains,
    "inference": has_entry,
    "tool": has_entry,
    "analysis": has_entry,
}


def test_every_kind_has_a_check():
    assert set(CHECKS) == set(KINDS)


@each_card
def test_its_recipes_resolve(card: System):
    assert card.trains == bool(card.recipe)
    if card.trains:
        has_recipes(card)


@each_card
def test_it_does_what_its_kind_does(card: System, tmp_path: Path):
    CHECKS[card.kind](card, tmp_path)
