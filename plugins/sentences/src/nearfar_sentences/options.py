"""The options of the plugin's commands and what heads their --help. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from nearfar.config import EvaluateConfig
from nearfar_sentences.config import TextDataConfig, TextEncoderConfig


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which encoder: that of a run, or a pretrained one."""

    run: str = ""
    """folder of a run"""
    checkpoint: str = ""
    """best, last or a step; empty: the best, or the last where no score has chosen one"""
    output_name: str = "default"
    """of a run: which of the method's outputs, e.g. embedding"""
    encoder: TextEncoderConfig = field(default_factory=TextEncoderConfig)
    """without a run: encoder.name is a folder or name of a transformers encoder"""
    batch_size: int = 64
    """sentences a forward"""


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(ModelOptions):
    """Options of `nearfar sentences evaluate`."""

    sts: str = ""
    """folder of scored pairs, one subfolder a task; empty: the environment variable NEARFAR_STS, where it is set"""
    data: TextDataConfig = field(default_factory=lambda: TextDataConfig(source="manual"))
    """labelled sentences for kNN, probes, retrieval, clustering and geometry"""
    evaluate: EvaluateConfig = field(default_factory=lambda: EvaluateConfig(clusterings=3))
    sts_only: bool = False
    """leave the labelled sentences out"""
    json: bool = False
    """print JSON and nothing else"""


EVALUATE = """Scores of a sentence encoder: STS (Spearman times 100), and with labelled sentences kNN, probes,
retrieval, clustering and geometry.

A task's "all" is one correlation over the pairs of all its sets, "mean" the mean of the sets' own.

Examples:
  nearfar sentences evaluate --run RUN
  nearfar sentences evaluate --run RUN --sts STS_FOLDER --data.root labelled.csv
  nearfar sentences evaluate --encoder.name MODEL --encoder.pooling mean --encoder.max-length 128 --sts STS_FOLDER
"""


@dataclass(frozen=True, kw_only=True)
class EmbedOptions(ModelOptions):
    """Options of `nearfar sentences embed`."""

    root: str
    """file of sentences, as train reads it"""
    text: str = ""
    """column of the sentences"""
    out: str = "features.npz"
    """file to write: .npz (features, index) or .npy (features)"""
    normalise: bool = False
    """to unit length"""


EMBED = """Writes the features of every sentence of a file, in its order.

Examples:
  nearfar sentences embed --run RUN --root corpus.txt --out features.npz
"""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of `nearfar sentences export`."""

    run: str
    """folder of a run"""
    checkpoint: str = ""
    """best, last or a step"""
    out: str = "encoder"
    """folder to write"""
    formats: tuple[Literal["transformers", "onnx"], ...] = ("transformers",)
    """transformers: a folder that transformers and sentence-transformers load; onnx: encoder.onnx beside it"""


EXPORT = """Writes the trained encoder for use elsewhere.

The folder loads with SentenceTransformer(FOLDER) and gives the features of `nearfar sentences embed`.

Examples:
  nearfar sentences export --run RUN --out encoder
  python -c "from sentence_transformers import SentenceTransformer as S; print(S('encoder').encode(['A sentence.']))"
"""


@dataclass(frozen=True, kw_only=True)
class SearchOptions(ModelOptions):
    """Options of `nearfar sentences search`."""

    root: str
    """file of sentences to look in"""
    text: str = ""
    """column of the sentences"""
    query: tuple[str, ...] = ()
    """sentences to look for"""
    k: int = 5
    """how many of each"""
    json: bool = False
    """print JSON and nothing else"""


SEARCH = """The sentences of a file most similar to a query, by the cosine of their features.

Examples:
  nearfar sentences search --run RUN --root corpus.txt --query "how do I remove an item"
"""


@dataclass(frozen=True, kw_only=True)
class MineOptions(ModelOptions):
    """Options of `nearfar sentences mine-negatives`."""

    root: str
    """file of pairs"""
    text: str = ""
    """column of the anchors"""
    positive: str = "positive"
    """column of the positives"""
    out: str = "mined.jsonl"
    """file to write: text, positive, negative a line"""
    num: int = 1
    """negatives of each pair, each a line of its own"""
    skip: int = 0
    """nearest candidates left out"""
    margin: float = 0.05
    """a candidate counts only when its cosine lies this much below the positive's: nearer ones may be true"""
    ceiling: float = 0.95
    """and below this"""
    reach: int = 100
    """nearest candidates that are looked at"""


MINE = """For every pair the positives of other pairs that are most similar to its anchor, as hard negatives.

Candidates as near as the positive itself are left out, since they may mean the same; so are copies of anchor and
positive. Pairs without any candidate left are counted and left out.

Examples:
  nearfar sentences mine-negatives --encoder.name MODEL --root pairs.csv --out mined.jsonl
  nearfar sentences train simcse_supervised --data.root mined.jsonl --data.negative negative
"""
