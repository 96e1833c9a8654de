"""Sentences from files, from Python's reference manual, or from Hugging Face, as sources of the trainer.

A sample has `index`, `text`, and where the columns are there `positive`, `negative`, `label`, `image`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nearfar.batch import Batch
from nearfar.checks import expect
from nearfar.data import Data, Subset, holdout
from nearfar.data.source import digest
from nearfar_sentences.config import TextDataConfig
from nearfar_sentences.reading import Table, read_table

TEXT = ("text", "sentence", "sentence1", "anchor", "query", "premise")
LABEL = ("label", "topic")


class TextSource:
    """Sentences in memory, a row a sample.

    Args:
        text: sentences.
        positive, negative: sentences of the same length of list, or none.
        labels: class of every sample as a text or number, or none.
        image: features [N, F] of an image a sample, or none.
        name: for people.
        class_names: classes known beforehand, of the training part.

    Raises:
        ValueError: no samples, an empty sentence, columns of different lengths, a label that is no known class.
    """

    shape: tuple[int, ...] = ()

    def __init__(
        self,
        text: Sequence[str],
        *,
        positive: Sequence[str] | None = None,
        negative: Sequence[str] | None = None,
        labels: Sequence[Any] | None = None,
        image: np.ndarray | None = None,
        name: str = "sentences",
        class_names: Sequence[str] = (),
    ) -> None:
        expect(len(text) > 0, name, "at least one sentence", "none")
        self.columns = {"text": list(text)}
        for column, values in (("positive", positive), ("negative", negative)):
            if values is not None:
                self.columns[column] = list(values)
        for column, values in self.columns.items():
            expect(len(values) == len(text), f"{name}: {column}", f"{len(text)} sentences", len(values))
            for row, value in enumerate(values):
                given = isinstance(value, str) and bool(value.strip())
                expect(given, f"{name}: {column} {row}", "a sentence", repr(value))
        self.name, self.image = name, image
        if image is not None:
            fits = image.ndim == 2 and len(image) == len(text)
            expect(fits, f"{name}: image", f"features [{len(text)}, F]", image.shape)
        self.labels: np.ndarray | None = None
        self.class_names, self.num_classes = tuple(class_names), len(class_names)
        if labels is not None:
            expect(len(labels) == len(text), f"{name}: labels", f"{len(text)} labels", len(labels))
            names = [str(label) for label in labels]
            self.class_names = tuple(class_names) or tuple(sorted(set(names), key=_natural))
            number = {known: place for place, known in enumerate(self.class_names)}
            for row, known in enumerate(names):
                expect(known in number, f"{name}: label {row}", f"one of {', '.join(self.class_names[:20])}", known)
            self.labels = np.array([number[known] for known in names], dtype=np.int64)
            self.num_classes = len(self.class_names)

    def __len__(self) -> int:
        return len(self.columns["text"])

    def __getitem__(self, i: int) -> dict[str, Any]:
        sample: dict[str, Any] = {"index": i} | {name: values[i] for name, values in self.columns.items()}
        if self.labels is not None:
            sample["label"] = int(self.labels[i])
        if self.image is not None:
            sample["image_feature"] = self.image[i]
        return sample

    def batch(self, positions: np.ndarray) -> Batch:
        """Many samples at once."""
        batch: Batch = {"index": torch.as_tensor(positions, dtype=torch.int64)}
        batch |= {name: [values[i] for i in positions.tolist()] for name, values in self.columns.items()}
        if self.labels is not None:
            batch["label"] = torch.from_numpy(self.labels[positions])
        if self.image is not None:
            batch["image_feature"] = torch.from_numpy(np.asarray(self.image[positions], dtype=np.float32))
        return batch

    def column(self, name: str) -> np.ndarray | None:
        """What samplers ask for: "text" and its like as they are, "length" in words of the longest column."""
        if name == "length":
            rows = zip(*self.columns.values(), strict=True)
            return np.array([max(value.count(" ") + 1 for value in row) for row in rows])
        return np.array(self.columns[name]) if name in self.columns else None

    def path(self, i: int) -> str:
        """Where sample i lies."""
        return f"{self.name} {i}"

    def fingerprint(self) -> str:
        """Hash of the sentences, labels and image features."""
        parts = ["\n".join(values) for values in self.columns.values()]
        more = [] if self.labels is None else [self.labels]
        return digest(*parts, *more, *([] if self.image is None else [self.image]))


def open_texts(config: TextDataConfig, seed: int = 0) -> Data:
    """The sentences that a config describes, with a part held out.

    Args:
        config: what to open.
        seed: of the samples that `config.limit` draws.

    Raises:
        ValueError, FileNotFoundError: nothing there, no such column, unreadable lines; the message says which.
    """
    if config.source == "manual":
        from nearfar_sentences import manual

        text, topics = zip(*manual.sentences(), strict=True)
        source = TextSource(text, labels=topics, name=f"Python's reference manual {manual.fingerprint()}")
    else:
        expect(bool(config.root), "data.root", "a file of sentences", "nothing; give --data.root FILE")
        table = _hub(config) if config.source == "hf" else read_table(Path(config.root), config.max_bad_share)
        source = from_table(table, config)
    if not config.limit or config.limit >= len(source):
        return holdout(source, config.validation)
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, len(source)])))
    data = holdout(source, config.validation)
    assert isinstance(data.train, Subset)
    kept = np.sort(rng.choice(len(data.train), min(config.limit, len(data.train)), replace=False))
    return Data(Subset(source, data.train.positions[kept]), data.test, holdout=True)


def from_table(table: Table, config: TextDataConfig) -> TextSource:
    """The source that a table's columns make.

    Raises:
        ValueError: a column that is not there; those that are get named.
    """
    names = list(table.columns)
    text = config.text or next((name for name in TEXT if name in names), names[0] if len(names) == 1 else "")
    label = config.label or next((name for name in LABEL if name in names), "")
    label = "" if label == "none" else label
    for option, name in (
        ("text", text),
        ("positive", config.positive),
        ("negative", config.negative),
        ("label", label),
    ):
        needed = bool(name) or option == "text"
        expect(not needed or name in names, f"data.{option}", f"a column of {', '.join(names)}", repr(name))
    image = None
    if config.image:
        image = np.load(config.image, allow_pickle=False)
    pairs = {option: getattr(config, option) for option in ("positive", "negative")}
    return TextSource(
        table.texts(text),
        labels=table.columns[label] if label else None,
        image=image,
        name=table.name,
        **{option: table.texts(name) for option, name in pairs.items() if name},  # type: ignore[arg-type]
    )


def _hub(config: TextDataConfig) -> Table:
    """A Hugging Face dataset as a table."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError("data.source: hf needs the library datasets: pip install datasets") from error
    found = datasets.load_dataset(config.root, split="train")
    return Table(config.root, {name: list(found[name]) for name in found.column_names}, list(range(1, len(found) + 1)))


def _natural(text: str) -> tuple[int, float, str]:
    """Numbers by size before words by letter."""
    try:
        return (0, float(text), text)
    except ValueError:
        return (1, 0.0, text)
