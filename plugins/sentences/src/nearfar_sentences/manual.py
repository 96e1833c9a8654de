"""The sentences of Python's reference manual, which every Python carries: a small corpus with topics.

The text differs by Python release, so figures on it name `fingerprint()`.
"""

from __future__ import annotations

import functools
import hashlib
import re

SHORT, LONG = 5, 60  # words
ABBREVIATIONS = ("e.g.", "i.e.", "etc.", "cf.", "vs.")


@functools.cache
def sentences() -> tuple[tuple[str, str], ...]:
    """(sentence, topic) of every sentence of running text, in the manual's order, each sentence once."""
    from pydoc_data.topics import topics

    found: dict[str, str] = {}
    for topic, text in sorted(topics.items()):
        for paragraph in re.split(r"\n\s*\n", text):
            lines = paragraph.split("\n")
            if any(re.match(r"\s*(>>>|[|+=~-]{2,}|\.\.\. )|.*(::=|-->)", line) for line in lines):
                continue  # examples, grammar, tables
            for sentence in _split(" ".join(line.strip() for line in lines)):
                if SHORT <= len(sentence.split()) <= LONG:
                    found.setdefault(sentence, topic)
    return tuple(found.items())


def _split(paragraph: str) -> list[str]:
    """Sentences of a paragraph; marks of the manual's own are taken away."""
    text = re.sub(r'[*`"]+', "", paragraph)
    text = re.sub(r"\s+", " ", text).strip()
    for word in ABBREVIATIONS:
        text = text.replace(word, word.replace(".", "\0"))
    parts = re.split(r"(?<=[.!?])\s+(?=[A-Z])", text)
    return [part.replace("\0", ".") for part in parts if re.match(r"[A-Z(]", part) and part[-1:] in ".!?"]


def fingerprint() -> str:
    """Hash of all sentences and topics."""
    text = "\n".join(f"{topic}\t{sentence}" for sentence, topic in sentences())
    return hashlib.sha256(text.encode()).hexdigest()[:16]
