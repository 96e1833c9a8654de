"""Where sentences come from, what encodes them, and the recipe of a run on them. Loads no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from nearfar.checks import expect
from nearfar.config import MethodConfig
from nearfar.recipe import BaseRecipe

Augmentation = Literal["delete_words", "delete_spans", "reorder", "substitute"]
Pooling = Literal["auto", "cls", "mean", "max", "avg_first_last", "avg_top2"]


@dataclass(frozen=True, kw_only=True)
class TextDataConfig:
    """Where sentences come from and which columns they stand in."""

    root: str = ""
    """.txt (a sentence a line), .csv, .tsv, .jsonl or .parquet; of hf a folder, a file or a name on the hub"""
    source: Literal["file", "manual", "hf"] = "file"
    """file; manual: the sentences of Python's reference manual, by topic; hf: a Hugging Face dataset"""
    text: str = ""
    """column of the sentences; empty: text, sentence, sentence1, anchor or query, or the only one there"""
    positive: str = ""
    """column of a sentence that means the same"""
    negative: str = ""
    """column of a sentence that does not, though it looks alike"""
    label: str = ""
    """column of classes; empty: label or topic, where there is one; none: no labels"""
    image: str = ""
    """.npy file of image features, one row a sample"""
    validation: float = 0.1
    """share held out"""
    limit: int = 0
    """samples drawn by the seed of the run; 0: all"""
    workers: int = 0
    """loader processes; results do not depend on the number"""
    max_bad_share: float = 0.01
    """share of lines that may be unreadable before the run stops"""

    def __post_init__(self) -> None:
        expect(0 <= self.validation < 1, "data.validation", "a share in [0, 1)", self.validation)
        expect(0 <= self.max_bad_share <= 1, "data.max_bad_share", "a share in [0, 1]", self.max_bad_share)
        expect(self.limit >= 0, "data.limit", "0 or more", self.limit)
        expect(self.workers >= 0, "data.workers", "0 or more", self.workers)


@dataclass(frozen=True, kw_only=True)
class TextEncoderConfig:
    """The encoder that training leaves behind."""

    name: str = "tiny"
    """tiny: a small BERT with a WordPiece tokenizer of the corpus; else a folder or name of a transformers encoder"""
    start: str = ""
    """run folder of this plugin whose encoder, tokenizer included, training starts from; its shape replaces name's"""
    pooling: Pooling = "auto"
    """state of the first token; mean or maximum over tokens; mean of the first and last, or the last two, layers; auto:
    what the model's folder says for sentence-transformers, else mean of tiny and cls of others"""
    max_length: int = 32
    """tokens, special ones included; longer sentences are cut"""
    prefix: str = ""
    """put before every sentence, e.g. "query: " """
    layers: int = 2
    """of tiny"""
    dim: int = 128
    """width of tiny"""
    heads: int = 4
    """attention heads of tiny"""
    vocabulary: int = 4000
    """word pieces of tiny, at most"""
    dropout: float = 0.1
    """of tiny; a pretrained encoder keeps its own"""
    lora_rank: int = 0
    """train low-rank changes of the attention alone (peft); 0: all weights"""

    def __post_init__(self) -> None:
        for name in ("layers", "dim", "heads"):
            expect(getattr(self, name) >= 1, f"encoder.{name}", "1 or more", getattr(self, name))
        expect(self.max_length >= 4, "encoder.max_length", "4 tokens or more", self.max_length)
        expect(self.dim % self.heads == 0, "encoder.dim", "a multiple of encoder.heads", self.dim)
        expect(self.vocabulary >= 100, "encoder.vocabulary", "100 or more", self.vocabulary)
        expect(0 <= self.dropout < 1, "encoder.dropout", "a share in [0, 1)", self.dropout)
        expect(self.lora_rank >= 0, "encoder.lora_rank", "0 or more", self.lora_rank)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What is done to the words of a sentence's two views; see `nearfar_sentences.augment`."""

    first: tuple[Augmentation, ...] = ("delete_spans",)
    """of the first view, one after the other; () leaves it as it is"""
    second: tuple[Augmentation, ...] = ("delete_spans",)
    """of the second"""
    level: Literal["word", "token"] = "word"
    """act on words before they are tokenised, or on tokens after"""
    deleted: float = 0.7
    """of delete_words: share of words; one at least stays"""
    num_spans: int = 5
    """of delete_spans"""
    span: float = 0.05
    """length of each as a share of the sentence, one word at least"""
    num_swaps: int = 5
    """of reorder: pairs of spans that change places"""
    swap: float = 0.05
    """length of each as a share of the sentence, one word at least"""
    substituted: float = 0.3
    """of substitute: share of words"""
    substitutes: str = ""
    """of substitute: file with a word and its substitutes a line, tabs between; empty: neighbours by the company that
    words keep in the training sentences"""
    num_neighbours: int = 5
    """substitutes of a word where there is no file"""

    def __post_init__(self) -> None:
        for name in ("deleted", "span", "swap", "substituted"):
            value = getattr(self, name)
            expect(0 <= value <= 1, f"method.augment.{name}", "a share in [0, 1]", value)
        for name in ("num_spans", "num_swaps"):
            expect(getattr(self, name) >= 0, f"method.augment.{name}", "0 or more", getattr(self, name))
        expect(self.num_neighbours >= 1, "method.augment.num_neighbours", "1 or more", self.num_neighbours)
        word = self.level == "word" or not self.substitutes_words
        expect(word, "method.augment.level", "'word' with substitute", repr(self.level))
        read = self.substitutes_words or not self.substitutes
        expect(read, "method.augment.substitutes", "nothing without substitute", repr(self.substitutes))

    @property
    def substitutes_words(self) -> bool:
        """Whether a view substitutes words."""
        return "substitute" in (*self.first, *self.second)


@dataclass(frozen=True, kw_only=True)
class TextMethodConfig(MethodConfig):
    """What every system on sentences has: copies of a sentence, a head, and a temperature."""

    copies: int = 2
    """times a sentence is encoded, each with dropout of its own; a positive column takes the second's place"""
    head: Literal["tanh", "relu", "mlp", "none"] = "tanh"
    """between feature and embedding: one tanh layer; two layers with ReLU between; two layers with batch normalisation;
    nothing"""
    head_at_test: bool = False
    """users' features are the head's; else what it is given"""
    temperature: float = 0.05
    """divides cosines"""

    def __post_init__(self) -> None:
        expect(self.copies >= 2, "method.copies", "2 or more", self.copies)
        expect(self.temperature > 0, "method.temperature", "a number above 0", self.temperature)

    @property
    def reads_corpus(self) -> bool:
        """Whether the method's `read_corpus` wants the training sentences before training."""
        return False

    def own_encoder(self, config: TextEncoderConfig, texts: Sequence[str], description: bytes | None) -> Any:
        """The encoder of a system that brings its own, of the training sentences or of a checkpoint's description;
        None: what `config` describes."""
        return None


@dataclass(frozen=True, kw_only=True)
class TextRecipe(BaseRecipe):
    """Everything a training run on sentences needs."""

    data: TextDataConfig = field(default_factory=TextDataConfig)
    encoder: TextEncoderConfig = field(default_factory=TextEncoderConfig)
