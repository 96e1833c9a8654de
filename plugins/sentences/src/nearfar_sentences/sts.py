"""Semantic textual similarity: files of scored pairs, and Spearman's correlation with cosines.

A set is a tab-separated file of score, sentence, sentence; a task is a folder of sets, e.g. a year of SemEval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nearfar.checks import expect

Embed = Callable[[Sequence[str]], Tensor]
"""from sentences to vectors [N, D]"""


@dataclass(frozen=True)
class Pairs:
    """Scored pairs of sentences."""

    name: str
    first: tuple[str, ...]
    second: tuple[str, ...]
    scores: np.ndarray


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation, ties sharing their mean rank; 0 where one side is constant."""
    from scipy.stats import spearmanr

    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    expect(len(x) == len(y) and len(x) >= 2, "scores", "two or more pairs", f"{len(x)} and {len(y)}")
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(spearmanr(x, y).statistic)


def read_pairs(path: Path) -> Pairs:
    """The pairs of a tab-separated file: score, sentence, sentence; or with a header that names such columns.

    Raises:
        ValueError: a line with other fields, or a score that is no number; names the line.
    """
    first, second, scores = [], [], []
    places = (0, 1, 2)
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            fields = line.rstrip("\r\n").split("\t")
            if number == 1 and not _is_number(fields[0]):
                header = [name.lower() for name in fields]
                if "sentence_a" in header:  # SICK
                    places = (header.index("relatedness_score"), header.index("sentence_a"), header.index("sentence_b"))
                    continue
            if not line.strip():
                continue
            fits = len(fields) > max(places) and _is_number(fields[places[0]])
            expect(fits, f"{path} line {number}", "score, sentence, sentence with tabs between", repr(line[:60]))
            scores.append(float(fields[places[0]]))
            first.append(fields[places[1]])
            second.append(fields[places[2]])
    expect(len(scores) >= 2, str(path), "two or more pairs", len(scores))
    return Pairs(path.stem, tuple(first), tuple(second), np.array(scores))


def read_tasks(root: Path) -> dict[str, list[Pairs]]:
    """Tasks by name: every subfolder with .tsv or .txt files, or the folder itself.

    Raises:
        FileNotFoundError: no such folder, or no files of pairs in it.
    """
    expect(root.is_dir(), "sts", "a folder of tab-separated files, one folder a task", str(root), FileNotFoundError)
    tasks = {}
    for folder in [root, *sorted(path for path in root.iterdir() if path.is_dir())]:
        files = sorted(path for path in folder.iterdir() if path.suffix in (".tsv", ".txt"))
        if files:
            tasks[folder.name] = [read_pairs(path) for path in files]
    expect(bool(tasks), "sts", "files of scored pairs (.tsv)", f"none below {root}", FileNotFoundError)
    return tasks


def similarity(pairs: Pairs, embed: Embed) -> np.ndarray:
    """Cosines [N] of the pairs."""
    texts = [*pairs.first, *pairs.second]
    unit = torch.nn.functional.normalize(torch.as_tensor(embed(texts)).double(), dim=1)
    return (unit[: len(pairs.first)] * unit[len(pairs.first) :]).sum(1).numpy()


def evaluate_task(sets: Sequence[Pairs], embed: Embed) -> dict[str, float]:
    """Spearman's correlation, times 100, of a task.

    Returns:
        "all": over the pairs of all sets together, as SentEval and the literature since SimCSE report a year; "mean":
        of the sets' own; and each set's by its name.
    """
    cosines = [similarity(pairs, embed) for pairs in sets]
    own = {pairs.name: 100 * spearman(cosine, pairs.scores) for pairs, cosine in zip(sets, cosines, strict=True)}
    together = spearman(np.concatenate(cosines), np.concatenate([pairs.scores for pairs in sets]))
    return {"all": 100 * together, "mean": float(np.mean(list(own.values()))), **own}


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
