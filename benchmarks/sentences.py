"""Sentence training and encoding beside sentence-transformers: the same encoder and sentences, in one process.

    python benchmarks/sentences.py                    written to results/sentences.json
    python benchmarks/sentences.py --rounds 3 --no-write

Both train a BERT of 6 layers and width 384 with random weights on pairs of sentences of Python's manual. Cases:

    plain     one step of 64 pairs, the same batches: ours against MultipleNegativesRankingLoss
    cached    one step of 512 pairs, 64 at a time: ours against CachedMultipleNegativesRankingLoss
    corpus    256 pairs with each one's own batching: batches by length against batches as they come
    encode    512 sentences to vectors, without training

Theirs is a loop of its model, its loss and torch's AdamW, ours the trainer's whole update; both tokenise in the step.
Memory is the high-water mark of a fresh process during a step, above what it held before. Run it on a machine that does
nothing else.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from common import in_fresh_process, interleaved, metadata, peak_of, write

from nearfar.config import TrainerConfig
from nearfar.data import without_test
from nearfar.plugin import load_recipe
from nearfar.rng import Rng
from nearfar.samplers import ByLength, Shuffle
from nearfar.train.engine import Engine
from nearfar_sentences import manual, pipeline
from nearfar_sentences.config import TextEncoderConfig
from nearfar_sentences.data import TextSource
from nearfar_sentences.encoder import build_encoder

THREADS, LAYERS, DIM, LENGTH, RATE = 2, 6, 384, 128, 1e-5
PLAIN, CACHED, CHUNK, CORPUS, ENCODED = 64, 512, 64, 256, 512


def pairs(num: int) -> tuple[list[str], list[str]]:
    """A sentence and the next one of its topic."""
    found = manual.sentences()
    rows = [(a, b) for (a, topic), (b, other) in pairwise(found) if topic == other][:num]
    first, second = zip(*rows, strict=True)
    return list(first), list(second)


def model_folder(folder: Path) -> Path:
    """The encoder as a folder that both read: mean pooling, random weights."""
    from sentence_transformers import SentenceTransformer, models
    from transformers import PreTrainedTokenizerFast

    config = TextEncoderConfig(
        layers=LAYERS, dim=DIM, heads=12, vocabulary=8000, max_length=LENGTH, dropout=0.1, pooling="mean"
    )
    encoder = build_encoder(config, [text for text, _ in manual.sentences()])
    encoder.backbone.save_pretrained(folder / "bert")
    encoder.tokenizer.to_json()
    names = {f"{kind}_token": encoder.tokenizer.names[kind] for kind in ("pad", "unk", "cls", "sep", "mask")}
    inputs = ["input_ids", "attention_mask"]
    PreTrainedTokenizerFast(
        tokenizer_object=encoder.tokenizer.fast, model_max_length=LENGTH, model_input_names=inputs, **names
    ).save_pretrained(folder / "bert")
    transformer = models.Transformer(str(folder / "bert"), max_seq_length=LENGTH)
    pooling = models.Pooling(transformer.get_word_embedding_dimension(), pooling_mode="mean")
    SentenceTransformer(modules=[transformer, pooling], device="cpu").save(str(folder / "model"))
    return folder / "model"


class Ours:
    """The trainer's update of SimCSE with pairs."""

    def __init__(self, folder: Path, size: int, cache: int = 0) -> None:
        recipe = load_recipe("sentences/simcse_supervised")
        config = TrainerConfig(batch_size=size, cache=cache, epochs=1)
        encoder = TextEncoderConfig(name=str(folder), max_length=LENGTH, pooling="mean")
        recipe = dataclasses.replace(
            recipe, trainer=config, encoder=encoder, method=dataclasses.replace(recipe.method, head="none"),
            optimiser=dataclasses.replace(recipe.optimiser, lr=RATE, schedule="constant"),
        )  # fmt: skip
        first, second = pairs(max(size, CORPUS))
        self.source = TextSource(first, positive=second)
        _, self.method = pipeline.build(recipe, without_test(self.source))
        self.method.train()
        self.engine = Engine(
            Accelerator(cpu=True), self.method, config, recipe.optimiser, steps=1000, steps_per_epoch=1000,
            features=lambda *_, **__: None,  # type: ignore[arg-type, return-value]
        )  # fmt: skip

    def step(self, rows: np.ndarray) -> None:
        batch = self.method.views(self.source.batch(rows), Rng(0))
        self.engine.minimize(self.method, batch)


class Theirs:
    """Their model and loss with torch's AdamW."""

    def __init__(self, folder: Path, cache: int = 0) -> None:
        from sentence_transformers import SentenceTransformer, losses

        self.model = SentenceTransformer(str(folder), device="cpu").train()
        self.loss: Any = (
            losses.CachedMultipleNegativesRankingLoss(self.model, mini_batch_size=cache)
            if cache
            else losses.MultipleNegativesRankingLoss(self.model)
        )
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=RATE, weight_decay=0.01)

    def step(self, first: Sequence[str], second: Sequence[str]) -> None:
        read = getattr(self.model, "preprocess", None) or self.model.tokenize
        features = [read(list(column)) for column in (first, second)]
        value = self.loss(features, torch.zeros(len(first)))
        value.backward()
        self.optimiser.step()
        self.optimiser.zero_grad()


def steps(folder: Path, size: int, cache: int) -> dict[str, Callable[[], None]]:
    """One step of each on the same pairs."""
    first, second = pairs(size)
    ours, theirs = Ours(folder, size, cache), Theirs(folder, cache)
    rows = np.arange(size)
    return {"nearfar": lambda: ours.step(rows), "sentence_transformers": lambda: theirs.step(first, second)}


def corpus(folder: Path) -> tuple[dict[str, Callable[[], None]], dict[str, float]]:
    """A pass over the pairs with each one's own batches, and the share of padding in them."""
    ours, theirs = Ours(folder, 32), Theirs(folder)
    first, second = pairs(CORPUS)
    tokens = ours.method.encoder.tokenise([*first, *second])["attention_mask"].sum(1).numpy()  # type: ignore[operator, union-attr]
    lengths = np.maximum(tokens[:CORPUS], tokens[CORPUS:])
    sorted_, plain = ByLength(lengths, 32, seed=0), Shuffle(CORPUS, 32, 0)

    def pass_ours() -> None:
        for rows in sorted_.batches(0):
            ours.step(rows)

    def pass_theirs() -> None:
        for rows in plain.batches(0):
            theirs.step([first[i] for i in rows], [second[i] for i in rows])

    def padding(batches: list[np.ndarray], joint: bool) -> float:
        used = sum(int(tokens[b].sum() + tokens[b + CORPUS].sum()) for b in batches)
        sizes = [(tokens[b].max(), tokens[b + CORPUS].max()) for b in batches]
        made = sum(len(b) * (2 * max(s) if joint else sum(s)) for b, s in zip(batches, sizes, strict=True))
        return 1 - used / float(made)

    shares = {
        "nearfar": padding(list(sorted_.batches(0)), True),
        "sentence_transformers": padding(list(plain.batches(0)), False),
    }
    return {"nearfar": pass_ours, "sentence_transformers": pass_theirs}, shares


def encode(folder: Path) -> dict[str, Callable[[], Any]]:
    """Sentences to vectors."""
    from sentence_transformers import SentenceTransformer

    texts = [text for text, _ in manual.sentences()][:ENCODED]
    ours = build_encoder(TextEncoderConfig(name=str(folder), max_length=LENGTH)).eval()
    theirs = SentenceTransformer(str(folder), device="cpu")
    found, other = ours.embed(texts[:20]), theirs.encode(texts[:20], convert_to_tensor=True)
    torch.testing.assert_close(found, other, rtol=1e-4, atol=1e-4)
    return {
        "nearfar": lambda: ours.embed(texts, batch_size=32),
        "sentence_transformers": lambda: theirs.encode(texts, batch_size=32, show_progress_bar=False),
    }


def peak(folder: Path, who: str, case: str) -> None:
    """Prints the extra memory of a step in MB."""
    size, cache = (PLAIN, 0) if case == "plain" else (CACHED, CHUNK)
    first, second = pairs(size)
    if who == "nearfar":
        ours = Ours(folder, size, cache)
        run: Callable[[], Any] = lambda: ours.step(np.arange(size))  # noqa: E731
    else:
        theirs = Theirs(folder, cache)
        run = lambda: theirs.step(first, second)  # noqa: E731
    print(json.dumps({"mb": round(peak_of(run), 1)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-write", action="store_true")
    parser.add_argument("--peak", nargs=3, metavar=("FOLDER", "WHO", "CASE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(THREADS)
    if options.peak:
        return peak(Path(options.peak[0]), *options.peak[1:])
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = model_folder(Path(place))
        batched, padding = corpus(folder)
        cases = {
            "plain": (steps(folder, PLAIN, 0), PLAIN), "cached": (steps(folder, CACHED, CHUNK), CACHED),
            "corpus": (batched, CORPUS), "encode": (encode(folder), ENCODED),
        }  # fmt: skip
        for name, (runs, samples) in cases.items():
            times = interleaved(runs, options.rounds if name != "cached" else max(1, options.rounds // 2))
            row: dict[str, Any] = {
                who: {**values, "samples_a_second": round(1000 * samples / values["median_ms"], 1)}
                for who, values in times.items()
            }
            row["times_as_fast"] = round(times["sentence_transformers"]["median_ms"] / times["nearfar"]["median_ms"], 3)
            if name in ("plain", "cached"):
                for who in times:
                    row[who] |= in_fresh_process(__file__, "--peak", str(folder), who, name)
            if name == "corpus":
                row["padding"] = {who: round(share, 3) for who, share in padding.items()}
            result[name] = row
            print(name, json.dumps(row), flush=True)
    if not options.no_write:
        setting = {"encoder": f"BERT, {LAYERS} layers, width {DIM}", "corpus": manual.fingerprint()}
        versions = metadata(("sentence-transformers", "transformers"))
        print(write("sentences", {"setting": setting, "cases": result, "environment": versions}))


if __name__ == "__main__":
    main()
