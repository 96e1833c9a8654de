"""`nearfar images train|embed|neighbours|export|demo`: words to options, options to functions of this plugin.

Nothing heavy is imported before the words are understood, so that --help and mistakes answer at once.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from nearfar.checks import expect
from nearfar.flags import parse, parse_recipe, parse_training
from nearfar.recipe import Recipe, read
from nearfar.terminal import console, print_json, score_table
from nearfar_images.options import (
    EMBED,
    EXPORT,
    NEIGHBOURS,
    EmbedOptions,
    ExportOptions,
    NeighboursOptions,
)

if TYPE_CHECKING:
    from nearfar.train import Run
    from nearfar_images.pipeline import LoadedRun

PROG = "nearfar images"


# -- train, demo -------------------------------------------------------------------------------------------------------


def train(argv: list[str]) -> int:
    """`nearfar images train RECIPE [--flags] [--resume [RUN]]`."""
    recipe, resume = parse_training(_plugin(), argv)
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
            out.print(score_table({when: scores[when] for when in ("before", "after") if when in scores}))
        else:
            out.print("No scores: the data has no labels or no validation part.")
        out.print(f"run     {run.path}", soft_wrap=True)
        if run.report.exists():
            out.print(f"report  {run.report}", soft_wrap=True)
    return run


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
    encoder, recipe = getattr(loaded.method, "encoder", None), loaded.recipe
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
