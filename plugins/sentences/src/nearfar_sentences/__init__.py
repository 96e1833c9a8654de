"""nearfar for sentences."""

from __future__ import annotations

from nearfar.plugin import Plugin

PLUGIN = Plugin(
    name="sentences",
    summary="train, evaluate and export sentence encoders",
    systems="nearfar_sentences.systems",
    commands={
        "train": "nearfar_sentences.commands:train",
        "evaluate": "nearfar_sentences.evaluate_command:evaluate",
        "embed": "nearfar_sentences.commands:embed",
        "search": "nearfar_sentences.commands:search",
        "mine-negatives": "nearfar_sentences.commands:mine_negatives",
        "export": "nearfar_sentences.commands:export",
        "topics": "nearfar_sentences.topics_command:topics",
        "methods": "nearfar_sentences.primer_command:methods",
    },
    help={
        "train": "train a system on your sentences: train RECIPE --data.root FILE",
        "evaluate": "STS, kNN, probes, retrieval, clustering and geometry of a run's or a model's features",
        "embed": "write the features of a file of sentences",
        "search": "sentences of a file most similar to a query",
        "mine-negatives": "hard negatives for a file of pairs",
        "export": "write a folder that sentence-transformers loads, or ONNX",
        "topics": "the words of a topic model's topics",
        "methods": "what contrasts what: the systems on sentences by six axes",
    },
)
