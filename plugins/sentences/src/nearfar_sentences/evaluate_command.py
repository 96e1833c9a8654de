"""`nearfar sentences evaluate`: STS and the scores of labelled sentences."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from nearfar.checks import expect
from nearfar.flags import parse
from nearfar.terminal import console, print_json, score_table, table
from nearfar_sentences.commands import PROG, model
from nearfar_sentences.options import EVALUATE, EvaluateOptions

if TYPE_CHECKING:
    from torch import Tensor

VARIABLE = "NEARFAR_STS"


def evaluate(argv: list[str]) -> int:
    """`nearfar sentences evaluate --run RUN` or `--encoder.name NAME`."""
    options = parse(EvaluateOptions, argv, f"{PROG} evaluate", EVALUATE)
    folder = options.sts or os.environ.get(VARIABLE, "")
    expect(bool(folder) or not options.sts_only, "sts", f"a folder, or the variable {VARIABLE}", "neither")
    from nearfar_sentences import sts

    tasks = sts.read_tasks(Path(folder)) if folder else {}
    embed = model(options)
    result: dict[str, Any] = {"sts": {name: sts.evaluate_task(sets, embed) for name, sets in tasks.items()}}
    if not options.sts_only:
        result |= labelled(options, embed)
    if options.json:
        print_json(result)
        return 0
    _show(options, result)
    return 0


def labelled(options: EvaluateOptions, embed: Callable[[Sequence[str]], Tensor]) -> dict[str, Any]:
    """Scores of frozen features on held-out labelled sentences.

    Raises:
        ValueError: the data has no labels, or no part is held out.
    """
    import torch

    from nearfar.evaluate import evaluate_embedding
    from nearfar_sentences.data import open_texts
    from nearfar_sentences.pipeline import texts_of

    data = open_texts(options.data)
    expect(data.train.labels is not None, "data", "a column of labels", f"none in {data.train.name}")
    expect(len(data.test) > 0, "data.validation", "a share above 0", options.data.validation)
    parts = [(embed(texts_of(part)), torch.from_numpy(part.labels)) for part in (data.train, data.test)]  # type: ignore[arg-type]
    scores = evaluate_embedding(*parts[0], *parts[1], options.evaluate)
    return {
        "data": data.train.name, "num_test": len(data.test),
        "scores": {name: asdict(score) for name, score in scores.items()},
    }  # fmt: skip


def _show(options: EvaluateOptions, result: dict[str, Any]) -> None:
    out = console()
    if result["sts"]:
        rows = table("STS", "all", "mean")
        for name, scores in result["sts"].items():
            rows.add_row(escape(name), f"{scores['all']:.2f}", f"{scores['mean']:.2f}")
            for part, value in scores.items():
                if part not in ("all", "mean"):
                    rows.add_row(f"[dim]  {escape(part)}[/]", "", f"[dim]{value:.2f}[/]")
        out.print(rows)
    if "scores" in result:
        out.print(score_table({"features": result["scores"]}))
        level = f"{options.evaluate.confidence:.0%}"
        name = escape(result["data"])
        out.print(f"[dim]{result['num_test']} held-out sentences of {name}; {level} intervals in brackets[/]")
