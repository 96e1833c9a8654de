"""`nearfar images train|embed|neighbours|export|demo`: words to options, options to functions of this plugin.

Nothing heavy is imported before the words are understood, so that --help and mistakes answer at once.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from nearfar.checks import expect
from nearfar.flags import parse, parse_recipe
from nearfar.recipe import Recipe, read
from nearfar.terminal import console, print_json, table
from nearfar_images.options import (
    EMBED,
    EXPORT,
    NEIGHBOURS,
    EmbedOptions,
    ExportOptions,
    NeighboursOptions,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nearfar.train import Run
    from nearfar_images.pipeline import LoadedRun

PROG = "nearfar images"


# -- train, demo -------------------------------------------------------------------------------------------------------


def train(argv: list[str]) -> int:
    """`nearfar images train RECIPE [--flags] [--resume [RUN]]`."""
    words = list(argv)
    resume = _take_resume(words)
    named = bool(words) and (not words[0].startswith("-") or words[0] in ("-h", "--help"))
    if isinstance(resume, str) and not named and not any(w.partition("=")[0] == "--recipe" for w in words):
        words = ["--recipe", resume, *words]
    recipe = parse_recipe(_plugin(), words, "train")
    expect(
        resume is not True or bool(recipe.trainer.output),
        "--resume", "the run folder after it, or --trainer.output FOLDER", "neither",
    )  # fmt: skip
    _train(recipe, resume)
    return 0


def demo(argv: list[str]) -> int:
    """`nearfar images demo [--flags]`: SimCLR on handwritten digits, and what to do next."""
    recipe = parse_recipe(_plugin(), ["simclr_digits", *argv], "demo")
    run = _train(recipe, False)
    console().print(
        f"\nNext: {PROG} evaluate --run {run.path} --references\n"
        f"      {PROG} export --run {run.path} --out encoder\n"
        f"      {PROG} train simclr --data.root FOLDER_OF_IMAGES",
        soft_wrap=True,
    )
    return 0


def _train(recipe: Recipe, resume: bool | str) -> Run:
    from nearfar import distributed
    from nearfar_images import pipeline

    run = pipeline.train(recipe, resume=resume)
    if distributed.is_main():
        out = console()
        scores = run.scores
        if scores.get("after"):
            out.print(_score_table({when: scores[when] for when in ("before", "after") if when in scores}))
        else:
            out.print("No scores: the data has no labels or no validation part.")
        out.print(f"run     {run.path}", soft_wrap=True)
        if run.report.exists():
            out.print(f"report  {run.report}", soft_wrap=True)
    return run


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


# -- embed, neighbours, export -----------------------------------------------------------------------------------------


def embed(argv: list[str]) -> int:
    """`nearfar images embed --run RUN --root FOLDER --out FILE`."""
    options = parse(EmbedOptions, argv, f"{PROG} embed", EMBED)
    from nearfar_images import gallery

    gallery.check_suffix(options.out)
    loaded = _load(options.run, options.checkpoint, options.trust_code)
    made = gallery.embed(
        loaded.method, options.root, loaded.recipe.data, output=options.output_name, workers=options.workers
    )
    path = gallery.save(made, options.out)
    skipped = f", {len(made.skipped)} unreadable images left out" if made.skipped else ""
    console().print(f"{path}: {len(made)} images, {made.features.shape[1]} numbers each{skipped}", soft_wrap=True)
    return 0


def neighbours(argv: list[str]) -> int:
    """`nearfar images neighbours --run RUN --query IMAGE --root FOLDER`."""
    options = parse(NeighboursOptions, ["--k" if w == "-k" else w for w in argv], f"{PROG} neighbours", NEIGHBOURS)
    from nearfar.recipe import to_dict
    from nearfar_images import gallery

    loaded = _load(options.run, options.checkpoint, options.trust_code)
    data, output = loaded.recipe.data, options.output_name
    expect(Path(options.query).is_file(), "query", "an image file", options.query, FileNotFoundError)
    made = gallery.embed(loaded.method, options.root, data, output=output)
    found = gallery.search(loaded.method, options.query, made, data, k=options.k, output=output)
    if options.html:
        gallery.contact_sheet(options.html, options.query, found, to_dict(loaded.recipe))
    if options.json:
        print_json([asdict(item) for item in found])
        return 0
    out = console()
    for item in found:
        out.print(f"{item.similarity:6.3f}  {escape(item.path)}", soft_wrap=True)
    if options.html:
        out.print(f"sheet   {escape(options.html)}", soft_wrap=True)
    return 0


def export(argv: list[str]) -> int:
    """`nearfar images export --run RUN --out FOLDER`."""
    options = parse(ExportOptions, argv, f"{PROG} export", EXPORT)
    from nearfar_images import export as writer
    from nearfar_images.encoders import Encoder
    from nearfar_images.pipeline import shape_of

    loaded = _load(options.run, options.checkpoint, options.trust_code)
    encoder, recipe = loaded.method.encoder, loaded.recipe
    if not isinstance(encoder, Encoder):
        raise TypeError(f"run {options.run}: expected a method with an encoder, received {type(encoder).__name__}")
    made = writer.export(
        encoder, recipe.encoder, shape_of(recipe.data), options.out, formats=options.formats, recipe=recipe
    )  # type: ignore[arg-type]
    out = console()
    for file in made.files:
        out.print(f"{file}  {file.stat().st_size / 1e6:.2f} MB", soft_wrap=True)
    if made.onnx_difference is not None:
        out.print(f"ONNX runtime differs from torch by at most {made.onnx_difference:.1e}")
    return 0


# -- shared ------------------------------------------------------------------------------------------------------------


def _plugin() -> Any:
    from nearfar_images import PLUGIN

    return PLUGIN


def _recipe(run: str, trust: bool) -> Recipe:
    """The recipe of a run folder; one that names code only with --trust-code."""
    path = Path(run)
    expect(path.is_dir(), "run", "the folder of a run", run, FileNotFoundError)
    if ":" in read(path / "recipe.json")[0]:
        return parse_recipe(_plugin(), ["--recipe", run, *(["--trust-code"] if trust else [])], "evaluate")
    from nearfar_images.pipeline import read_recipe

    return read_recipe(path)


def _load(run: str, which: str, trust: bool) -> LoadedRun:
    from nearfar_images.pipeline import load_run

    return load_run(run, which, recipe=_recipe(run, trust))


def _score_table(arms: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Any:
    """Scores as rows, arms as columns; how many rows and dimensions there were is no score."""
    rows = table("score", *arms)
    for name in dict.fromkeys(name for scores in arms.values() for name in scores):
        if name in ("rows", "dimensions"):
            continue
        rows.add_row(escape(name), *(_figure(scores.get(name)) for scores in arms.values()))
    return rows


def _figure(score: Mapping[str, float] | None) -> str:
    if score is None:
        return "-"
    value, low, high = score["value"], score["low"], score["high"]
    return f"{value:.3f}" if low == value == high else f"{value:.3f} [dim]\\[{low:.3f}, {high:.3f}][/]"
