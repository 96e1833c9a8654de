"""Tokenizers: that of a transformers model, or WordPiece trained on the corpus at hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer as Fast
from tokenizers import models, normalizers, pre_tokenizers, processors
from torch import Tensor

from nearfar.checks import expect
from nearfar_sentences.pieces import learn_pieces

LONGEST = 100
"""letters of a word that is cut into pieces; longer ones are unknown"""
DELETE = "[DEL]"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", DELETE)


class Tokenizer:
    """Sentences to padded token ids, by a tokenizer of the library `tokenizers`.

    Attributes:
        size: of the vocabulary.
        pad, cls, sep, mask: ids of special tokens; -1 where there is none.
        special: ids of all special tokens.
        types: whether the model is given token_type_ids.
    """

    def __init__(self, fast: Fast, *, special: dict[str, str], types: bool = False) -> None:
        self.fast, self.names, self.types = fast, special, types
        self.size = fast.get_vocab_size(with_added_tokens=True)
        found = {kind: fast.token_to_id(token) for kind, token in special.items()}
        self.pad, self.cls, self.sep, self.mask, self.delete = (
            -1 if found.get(kind) is None else int(found[kind]) for kind in ("pad", "cls", "sep", "mask", "delete")
        )
        expect(self.pad >= 0, "tokenizer", "one with a padding token", special)
        self.special = sorted({number for number in found.values() if number is not None})

    def __call__(self, texts: Sequence[str], max_length: int) -> dict[str, Tensor]:
        """input_ids and attention_mask [N, L], padded to the longest."""
        self.fast.enable_truncation(max_length)
        self.fast.enable_padding(pad_id=self.pad, pad_token=self.names["pad"])
        found = self.fast.encode_batch(list(texts))
        tokens = {
            "input_ids": torch.tensor([row.ids for row in found], dtype=torch.int64),
            "attention_mask": torch.tensor([row.attention_mask for row in found], dtype=torch.int64),
        }
        if self.types:
            tokens["token_type_ids"] = torch.zeros_like(tokens["input_ids"])
        return tokens

    def to_json(self) -> str:
        """Everything, as text."""
        import json

        self.fast.no_truncation()
        self.fast.no_padding()
        return json.dumps({"tokenizer": self.fast.to_str(), "special": self.names, "types": self.types})


def restore_tokenizer(text: str | bytes) -> Tokenizer:
    """The tokenizer of `to_json`."""
    import json

    found = json.loads(text)
    return Tokenizer(Fast.from_str(found["tokenizer"]), special=found["special"], types=found["types"])


def train_tokenizer(texts: Sequence[str], vocabulary: int) -> Tokenizer:
    """WordPiece of lower-case words, as BERT's, learnt from sentences; the same for the same sentences in any order.

    Raises:
        ValueError: no sentences.
    """
    expect(len(texts) > 0, "texts", "sentences to train a tokenizer on", "none")
    normal, cut = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words = (word for text in texts for word, _ in cut.pre_tokenize_str(normal.normalize_str(text)))
    pieces = learn_pieces((word for word in words if len(word) <= LONGEST), vocabulary, SPECIAL)
    number = {piece: place for place, piece in enumerate(pieces)}
    fast = Fast(models.WordPiece(number, unk_token="[UNK]", max_input_chars_per_word=LONGEST))  # type: ignore[call-arg]
    fast.normalizer, fast.pre_tokenizer = normal, cut  # type: ignore[assignment]
    fast.add_special_tokens(list(SPECIAL))
    ids = [("[CLS]", number["[CLS]"]), ("[SEP]", number["[SEP]"])]
    fast.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)  # type: ignore[assignment]
    kinds = ("pad", "unk", "cls", "sep", "mask", "delete")
    return Tokenizer(fast, special=dict(zip(kinds, SPECIAL, strict=True)))


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer of a transformers model.

    Raises:
        ValueError: a folder without tokenizer, or one that the library `tokenizers` does not know.
    """
    from transformers import AutoTokenizer

    folder = Path(name)
    if folder.is_dir():
        files = ("tokenizer.json", "vocab.txt", "tokenizer.model", "sentencepiece.bpe.model", "vocab.json")
        has = any((folder / file).is_file() for file in files)
        expect(has, f"encoder.name: {name}", f"a folder with a tokenizer ({', '.join(files)})", "none of them")
    wrapped = AutoTokenizer.from_pretrained(name, use_fast=True)
    fast = getattr(wrapped, "backend_tokenizer", None)
    expect(isinstance(fast, Fast), f"encoder.name: {name}", "a fast tokenizer", type(wrapped).__name__)
    kinds = {"pad": wrapped.pad_token, "unk": wrapped.unk_token, "cls": wrapped.cls_token, "sep": wrapped.sep_token,
             "mask": wrapped.mask_token}  # fmt: skip
    if kinds["pad"] is None:
        kinds["pad"] = wrapped.eos_token
    special = {kind: str(token) for kind, token in kinds.items() if token is not None}
    return Tokenizer(fast, special=special, types="token_type_ids" in wrapped.model_input_names)
