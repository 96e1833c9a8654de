"""`nearfar images evaluate`: scores of a run or an encoder on one set of images or several."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from nearfar.checks import expect
from nearfar.config import DataConfig, EncoderConfig
from nearfar.flags import parse
from nearfar.terminal import console, print_json, score_table
from nearfar_images.commands import PROG, _load, _recipe
from nearfar_images.options import EVALUATE, EvaluateOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from nearfar.data import Data
    from nearfar.method import Method
    from nearfar_images.pipeline import LoadedRun


def evaluate(argv: list[str]) -> int:
    """`nearfar images evaluate --run RUN` or `--encoder.name NAME`."""
    options = _parse_evaluate(argv)
    named = options.encoder != EncoderConfig()
    expect(
        bool(options.run) != named, "evaluate", "either --run RUN or --encoder.name NAME", "both" if named else "none"
    )
    expect(not options.fine_tune or bool(options.run), "fine_tune", "0 without --run", options.fine_tune)
    from nearfar.method import Method
    from nearfar_images import robustness
    from nearfar_images.data import open_images

    loaded = _load(options.run, options.checkpoint, options.trust_code) if options.run else None
    data = open_images(options.data)
    # before minutes of work, not after
    kind = "pictures" if options.data.source == "pictures" else "folder"
    others = [open_images(dataclasses.replace(options.data, source=kind, root=root)) for root in options.transfer]
    if loaded is not None and type(loaded.method).scores is not Method.scores:
        for name in ("references", "robustness", "fine_tune"):
            given = getattr(options, name)
            expect(not given, name, f"off for {loaded.recipe.name}, which is scored by what it makes", given)
    config, arms = _arms(options, loaded, data)
    result = _scored(options, arms, data, config)
    if loaded is not None and options.fine_tune:
        tuned = robustness.fine_tune(loaded, data, epochs=options.fine_tune)[1]
        result["scores"][loaded.checkpoint.name]["fine_tune"] = asdict(tuned)
    result["transfer"] = [_scored(options, arms, other, config) for other in others]
    if options.json:
        print_json(result)
        return 0
    level = f"{options.evaluate.confidence:.0%}"
    out = console()
    for part in (result, *result["transfer"]):
        out.print(score_table(part["scores"]))
        out.print(f"[dim]{part['num_test']} test images of {escape(part['data'])}; {level} intervals in brackets[/]")
    return 0


def _arms(options: EvaluateOptions, loaded: LoadedRun | None, data: Data) -> tuple[DataConfig, dict[str, Method]]:
    """What is scored, by name: the run or the encoder, and the references."""
    from nearfar_images import pipeline

    arms: dict[str, Method] = {}
    if loaded is not None:
        config = options.data
        arms[loaded.checkpoint.name] = loaded.method
        if options.references:
            arms["untrained"] = pipeline.untrained(loaded)
    else:
        config = pipeline.resolve_data(options.data, data.train)
        arms[options.encoder.name] = pipeline.load_encoder(options.encoder, config, mean=options.mean, std=options.std)
        if options.references:
            plain = dataclasses.replace(options.encoder, weights="")
            arms["untrained"] = pipeline.load_encoder(plain, config, mean=options.mean, std=options.std)
    if options.references:
        arms["pixels"] = pipeline.load_pixels(config)
    return config, arms


def _scored(options: EvaluateOptions, arms: Mapping[str, Method], data: Data, config: DataConfig) -> dict[str, Any]:
    """Every arm's scores on one set of images."""
    from nearfar_images import pipeline, robustness

    found = {}
    for name, method in arms.items():
        output = "default" if name == "pixels" else options.output_name
        row = pipeline.evaluate(method, data, options.evaluate, workers=config.workers, output=output)
        if options.robustness:
            worse = robustness.robustness(method, data, options.evaluate, output=output, workers=config.workers)
            row |= {f"knn {kind}": score for kind, score in worse.items() if kind != "clean"}
        found[name] = {kind: asdict(score) for kind, score in row.items()}
    return {"data": data.test.name, "num_test": len(data.test), "scores": found}


def _parse_evaluate(argv: list[str]) -> EvaluateOptions:
    """Options whose data and scores are the run's own unless flags say otherwise."""
    run = next((argv[i + 1] for i, word in enumerate(argv[:-1]) if word == "--run"), "")
    run = run or next((word.partition("=")[2] for word in argv if word.startswith("--run=")), "")
    defaults = EvaluateOptions()
    if run:
        recipe = _recipe(run, "--trust-code" in argv)
        clusterings = recipe.evaluate.clusterings or defaults.evaluate.clusterings
        scores = dataclasses.replace(recipe.evaluate, clusterings=clusterings)
        defaults = EvaluateOptions(data=recipe.data, evaluate=scores)
    kinds: list[Any] = [
        (f.name, type(getattr(defaults, f.name)), dataclasses.field(default=getattr(defaults, f.name)))
        for f in dataclasses.fields(EvaluateOptions)
        if f.name in ("data", "evaluate")
    ]
    options = dataclasses.make_dataclass("Options", kinds, bases=(EvaluateOptions,), frozen=True, kw_only=True)
    return parse(options, argv, f"{PROG} evaluate", EVALUATE)
