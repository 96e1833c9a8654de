"""`nearfar sentences topics`: the topics of a topic model's run. Loads no torch before the words are understood."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.markup import escape

from nearfar.checks import expect
from nearfar.flags import parse
from nearfar.terminal import console, print_json, table
from nearfar_sentences.commands import PROG, read_texts


@dataclass(frozen=True, kw_only=True)
class TopicsOptions:
    """Options of `nearfar sentences topics`."""

    run: str
    """folder of a run of topic_moo"""
    checkpoint: str = ""
    """best, last or a step; empty: the best, or the last where no score has chosen one"""
    num_words: int = 10
    """likeliest words of each topic"""
    root: str = ""
    """file of documents: how large each topic's share of them is, and how often its words meet in them"""
    text: str = ""
    """column of the documents"""
    json: bool = False
    """print JSON and nothing else"""


TOPICS = """The likeliest words of every topic of a run; with documents also their shares of topics and their coherence.

Examples:
  nearfar sentences topics --run RUN
  nearfar sentences topics --run RUN --root held-out.txt
"""


def topics(argv: list[str]) -> int:
    """`nearfar sentences topics --run RUN`."""
    options = parse(TopicsOptions, argv, f"{PROG} topics", TOPICS)
    expect(options.num_words >= 2, "num_words", "2 or more", options.num_words)
    texts = read_texts(options.root, options.text) if options.root else []
    rows = _rows(options, texts)
    if options.json:
        print_json(rows)
        return 0
    out = console()
    shown = table("topic", *(["share", "npmi"] if texts else []), "words")
    for row in rows:
        scores = [f"{row['share']:.3f}", f"{row['npmi']:.3f}"] if texts else []
        shown.add_row(str(row["topic"]), *scores, escape(", ".join(row["words"])))
    out.print(shown)
    return 0


def _rows(options: TopicsOptions, texts: list[str]) -> list[dict[str, Any]]:
    from nearfar_sentences.methods.topic_moo import TopicMOO
    from nearfar_sentences.pipeline import load_run
    from nearfar_sentences.topic_scores import npmi

    method: Any = load_run(Path(options.run), options.checkpoint).method
    expect(isinstance(method, TopicMOO), "run", "one of topic_moo", f"one of {type(method).__name__}", TypeError)
    words = method.top_words(options.num_words)
    rows: list[dict[str, Any]] = [{"topic": i, "words": own} for i, own in enumerate(words)]
    if texts:
        from nearfar_sentences.pipeline import embed

        place = {word: i for i, word in enumerate(method.encoder.words)}
        coherence = npmi([[place[word] for word in own] for own in words], method.encoder(texts))
        shares = embed(method, texts).mean(0).tolist()
        for row, share, value in zip(rows, shares, coherence, strict=True):
            row |= {"share": share, "npmi": value}
    return rows
