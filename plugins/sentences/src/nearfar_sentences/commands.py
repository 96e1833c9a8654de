"""`nearfar sentences train|embed|export|search|mine-negatives`: words to options, options to functions of this plugin.

Nothing heavy is imported before the words are understood, so that --help and mistakes answer at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from nearfar.checks import expect
from nearfar.flags import parse, parse_training
from nearfar.terminal import console, print_json, score_table
from nearfar_sentences.config import TextEncoderConfig, TextRecipe
from nearfar_sentences.options import (
    EMBED,
    EXPORT,
    MINE,
    SEARCH,
    EmbedOptions,
    ExportOptions,
    MineOptions,
    ModelOptions,
    SearchOptions,
)

if TYPE_CHECKING:
    from torch import Tensor

PROG = "nearfar sentences"


def train(argv: list[str]) -> int:
    """`nearfar sentences train RECIPE [--flags] [--resume [RUN]]`."""
    from nearfar_sentences import PLUGIN

    recipe, resume = parse_training(PLUGIN, argv, kind=TextRecipe)
    from nearfar import distributed
    from nearfar_sentences import pipeline

    run = pipeline.train(recipe, resume=resume)
    if distributed.is_main():
        out, scores = console(), run.scores
        if scores.get("after"):
            out.print(score_table({when: scores[when] for when in ("before", "after") if when in scores}))
        out.print(f"run     {run.path}", soft_wrap=True)
        if run.report.exists():
            out.print(f"report  {run.report}", soft_wrap=True)
    return 0


def embed(argv: list[str]) -> int:
    """`nearfar sentences embed --run RUN --root FILE --out FILE`."""
    options = parse(EmbedOptions, argv, f"{PROG} embed", EMBED)
    suffix = Path(options.out).suffix
    expect(suffix in (".npz", ".npy"), "out", "a file .npz or .npy", options.out)
    import numpy as np
    from torch.nn.functional import normalize

    texts = read_texts(options.root, options.text)
    features = model(options)(texts)
    values = (normalize(features, dim=1) if options.normalise else features).numpy()
    if suffix == ".npy":
        np.save(options.out, values)
    else:
        np.savez(options.out, features=values, index=np.arange(len(values)), text=np.array(texts))
    console().print(f"{options.out}: {len(values)} sentences, {values.shape[1]} numbers each", soft_wrap=True)
    return 0


def export(argv: list[str]) -> int:
    """`nearfar sentences export --run RUN --out FOLDER`."""
    options = parse(ExportOptions, argv, f"{PROG} export", EXPORT)
    from nearfar_sentences import export as writer
    from nearfar_sentences.pipeline import load_run

    loaded = load_run(options.run, options.checkpoint)
    made = writer.export(loaded, options.out, onnx="onnx" in options.formats)
    out = console()
    for file in made.files:
        out.print(f"{file}  {file.stat().st_size / 1e6:.2f} MB", soft_wrap=True)
    if made.onnx_difference is not None:
        out.print(f"ONNX runtime differs from torch by at most {made.onnx_difference:.1e}")
    return 0


def search(argv: list[str]) -> int:
    """`nearfar sentences search --run RUN --root FILE --query TEXT`."""
    options = parse(SearchOptions, argv, f"{PROG} search", SEARCH)
    expect(bool(options.query), "query", "a sentence or more", "none")
    from nearfar_sentences.search import nearest

    texts, embed = read_texts(options.root, options.text), model(options)
    places, cosines = nearest(embed(list(options.query)), embed(texts), options.k)
    rows = [
        {"query": query, "text": texts[i], "row": i, "similarity": c}
        for query, found, values in zip(options.query, places.tolist(), cosines.tolist(), strict=True)
        for i, c in zip(found, values, strict=True)
    ]
    if options.json:
        print_json(rows)
        return 0
    out, before = console(), None
    for row in rows:
        if row["query"] != before:
            out.print(f"[bold]{escape(row['query'])}[/]", soft_wrap=True)
            before = row["query"]
        out.print(f"{row['similarity']:6.3f}  {escape(row['text'])}", soft_wrap=True)
    return 0


def mine_negatives(argv: list[str]) -> int:
    """`nearfar sentences mine-negatives --encoder.name MODEL --root FILE --out FILE`."""
    options = parse(MineOptions, argv, f"{PROG} mine-negatives", MINE)
    expect(Path(options.out).suffix == ".jsonl", "out", "a file .jsonl", options.out)
    import json

    from nearfar_sentences.search import mine

    texts = read_texts(options.root, options.text)
    positives = read_texts(options.root, options.positive)
    embed = model(options)
    found = mine(
        texts, positives, embed(texts), embed(positives), num=options.num, skip=options.skip, margin=options.margin,
        ceiling=options.ceiling, reach=options.reach,
    )  # fmt: skip
    with open(options.out, "w", encoding="utf-8") as file:
        for pair, negative in found:
            row = {"text": texts[pair], "positive": positives[pair], "negative": positives[negative]}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    without = len(texts) - len({pair for pair, _ in found})
    left = f"; {without} pairs without one left out" if without else ""
    console().print(f"{options.out}: {len(found)} negatives of {len(texts)} pairs{left}", soft_wrap=True)
    return 0


def read_texts(root: str, column: str) -> list[str]:
    """The sentences of a file's column, in its order."""
    from nearfar_sentences.config import TextDataConfig
    from nearfar_sentences.data import from_table
    from nearfar_sentences.reading import read_table

    return from_table(read_table(Path(root)), TextDataConfig(text=column, label="none")).columns["text"]


def model(options: ModelOptions) -> Callable[[Sequence[str]], Tensor]:
    """From sentences to features, by a run or a pretrained encoder.

    Raises:
        ValueError: neither or both are named.
    """
    named = options.encoder != TextEncoderConfig()
    expect(bool(options.run) != named, "model", "either --run RUN or --encoder.name NAME", "both" if named else "none")
    from nearfar_sentences import pipeline

    if options.run:
        loaded: Any = pipeline.load_run(options.run, options.checkpoint)
        return lambda texts: loaded.embed(texts, output=options.output_name, batch_size=options.batch_size)
    from nearfar_sentences.encoder import build_encoder

    expect(options.encoder.name != "tiny", "encoder.name", "a folder or name of a transformers encoder", "'tiny'")
    encoder = build_encoder(options.encoder)
    return lambda texts: encoder.embed(texts, batch_size=options.batch_size)
