"""Sentence encoders: a transformers model with its tokenizer and a way to make one vector of its states.

Legend: N sentences, L tokens, D width, H attention heads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from nearfar.checks import expect, expect_choice
from nearfar_sentences.config import TextEncoderConfig
from nearfar_sentences.tokens import DELETE, Tokenizer, load_tokenizer, restore_tokenizer, train_tokenizer

Tokens = dict[str, Tensor]
"""input_ids, attention_mask int64 [N, L], whatever else the model's tokenizer makes"""
POOLINGS = ("cls", "mean", "max", "avg_first_last", "avg_top2")


class States(NamedTuple):
    """What a pass through the model leaves: every layer's states [N, L, D] and attention maps [N, H, L, L]."""

    hidden: tuple[Tensor, ...]
    attention: tuple[Tensor, ...]


class TextEncoder(nn.Module):
    """From sentences, or their tokens, to features [N, D].

    Args:
        backbone: a transformers encoder.
        tokenizer: its tokenizer.
        pooling: see `pool`.
        max_length: tokens that a sentence is cut to.
        prefix: put before every sentence.

    Notes:
        Tokenizer, shape of the model and pooling travel in the module's state as bytes, so that a checkpoint stands
        alone.
    """

    description: Tensor

    def __init__(
        self, backbone: nn.Module, tokenizer: Tokenizer, *, pooling: str = "cls", max_length: int = 32, prefix: str = ""
    ) -> None:
        super().__init__()
        expect_choice("encoder.pooling", pooling, POOLINGS)
        self.backbone, self.tokenizer = backbone, tokenizer
        self.pooling, self.max_length, self.prefix = pooling, max_length, prefix
        self.feature_dim = int(backbone.config.hidden_size)  # type: ignore[union-attr, arg-type]
        self.describe()

    def describe(self) -> None:
        """Writes tokenizer, shape of the model and pooling into the state, anew where one of them has changed."""
        shape = self.backbone.config.to_dict()  # type: ignore[union-attr, operator]
        text = json.dumps({"tokenizer": self.tokenizer.to_json(), "model": shape, "pooling": self.pooling})
        self.register_buffer("description", torch.from_numpy(np.frombuffer(text.encode(), dtype=np.uint8).copy()))

    def tokenise(self, texts: Sequence[str], length: int = 0) -> Tokens:
        """Tokens of sentences, padded to the longest of them.

        Args:
            texts: sentences; none may be empty.
            length: tokens to cut at instead of `max_length`.
        """
        for number, text in enumerate(texts):
            expect(bool(text.strip()), f"text {number}", "a sentence", repr(text))
        return self.tokenizer([self.prefix + text for text in texts], length or self.max_length)

    def states(self, tokens: Tokens, *, attention: bool = False) -> States:
        """States of all layers, of the embedding first, and attention maps where asked for.

        Once maps were asked for the model attends without fused kernels, which do not give any.

        Raises:
            ValueError: attention maps are asked for and the model does not give them.
        """
        if attention and self.backbone.config._attn_implementation != "eager":  # type: ignore[union-attr]
            self.backbone.set_attn_implementation("eager")  # type: ignore[operator]
        found = self.backbone(**tokens, output_hidden_states=True, output_attentions=attention)
        maps = tuple(found.attentions or ()) if attention else ()
        expect(
            not attention or (len(maps) > 0 and all(one is not None for one in maps)),
            "encoder: attention", "a model that gives maps of every layer", type(self.backbone).__name__,
        )  # fmt: skip
        return States(tuple(found.hidden_states), maps)

    def forward(self, tokens: Tokens) -> Tensor:
        """Features [N, D] of tokens."""
        if self.pooling in ("avg_first_last", "avg_top2"):
            return pool(self.states(tokens).hidden, tokens["attention_mask"], self.pooling)
        return pool((self.backbone(**tokens).last_hidden_state,), tokens["attention_mask"], self.pooling)

    @torch.no_grad()
    def embed(self, texts: Sequence[str], *, batch_size: int = 64, normalise: bool = False) -> Tensor:
        """Features [N, D] float32 of sentences in evaluation mode, on the CPU; sorted by length within, so that little
        is padded."""
        training = self.training
        self.eval()
        device = next(self.parameters()).device
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        out = torch.empty(len(texts), self.feature_dim)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            tokens = {k: v.to(device) for k, v in self.tokenise([texts[i] for i in rows]).items()}
            out[rows] = self(tokens).float().cpu()
        self.train(training)
        return nn.functional.normalize(out, dim=1) if normalise else out


def pool(hidden: Sequence[Tensor], mask: Tensor, pooling: str) -> Tensor:
    """One vector a sentence [N, D].

    Args:
        hidden: states [N, L, D] of the embedding and of every layer; the last alone suffices for cls, mean and max.
        mask: [N, L], 0 at padding.
        pooling: cls: the first token's last state; mean, max: over tokens; avg_first_last: mean over tokens of the mean
            of the first layer's and the last layer's states; avg_top2: the same of the last two layers.

    Raises:
        ValueError: a sentence without tokens.
    """
    last = hidden[-1]
    if pooling == "cls":
        return last[:, 0]
    count = mask.sum(1, keepdim=True)
    expect(bool((count > 0).all()), "attention_mask", "a token or more of every sentence", "a row of zeros")
    if pooling == "max":
        return last.masked_fill(mask.unsqueeze(-1) == 0, float("-inf")).amax(1)
    if pooling == "avg_first_last":
        last = (hidden[1] + last) / 2
    elif pooling == "avg_top2":
        last = (hidden[-2] + last) / 2
    weight = mask.to(last.dtype).unsqueeze(-1)
    return (last * weight).sum(1) / count.to(last.dtype)


def add_delete_token(encoder: TextEncoder) -> None:
    """Gives the tokenizer a token [DEL] for deleted words, and the model a row for it, in place."""
    tokenizer = encoder.tokenizer
    expect(tokenizer.delete < 0, "tokenizer", "one without a token for deleted words", tokenizer.delete)
    trains = not hasattr(encoder.backbone, "peft_config")
    expect(trains, "encoder.lora_rank", "0 where the tokenizer gets a new token, whose row has to be learnt", "more")
    tokenizer.fast.add_special_tokens([DELETE])
    encoder.tokenizer = Tokenizer(tokenizer.fast, special={**tokenizer.names, "delete": DELETE}, types=tokenizer.types)
    rows = encoder.backbone.get_input_embeddings().num_embeddings  # type: ignore[operator]
    if rows < encoder.tokenizer.size:
        encoder.backbone.resize_token_embeddings(encoder.tokenizer.size, mean_resizing=False)  # type: ignore[operator]
    encoder.describe()


def tiny_bert(config: TextEncoderConfig, tokenizer: Tokenizer) -> nn.Module:
    """A small BERT without pooler."""
    from transformers import BertConfig, BertModel

    return BertModel(
        BertConfig(
            vocab_size=tokenizer.size,
            hidden_size=config.dim,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=4 * config.dim,
            max_position_embeddings=max(64, config.max_length),
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
            pad_token_id=tokenizer.pad,
        ),
        add_pooling_layer=False,
    )


def build_encoder(
    config: TextEncoderConfig, texts: Sequence[str] = (), *, description: bytes | None = None
) -> TextEncoder:
    """The encoder that a config describes.

    Args:
        config: tiny, or a folder or name of transformers'.
        texts: what the tokenizer of tiny is trained on.
        description: of a checkpoint whose weights are loaded next: its tokenizer and the shape of its model, instead of
            what `config.name` says.

    Raises:
        ValueError, OSError: no such model, or a folder without tokenizer; the message says which.
    """
    pooling = config.pooling
    if description is not None:
        found = json.loads(description)
        tokenizer, pooling = restore_tokenizer(found["tokenizer"]), found["pooling"]
        backbone = _from_shape(found["model"]) if config.name != "tiny" else tiny_bert(config, tokenizer)
    elif config.name == "tiny":
        tokenizer = train_tokenizer(texts, config.vocabulary)
        backbone = tiny_bert(config, tokenizer)
        pooling = "mean" if pooling == "auto" else pooling
    else:
        tokenizer, backbone = load_tokenizer(config.name), _pretrained(config)
        pooling = _pooling_of(config.name) if pooling == "auto" else pooling
    if config.lora_rank:
        expect(config.name != "tiny", "encoder.lora_rank", "0 with encoder.name 'tiny'", config.lora_rank)
        backbone = _lora(backbone, config.lora_rank)
    return TextEncoder(backbone, tokenizer, pooling=pooling, max_length=config.max_length, prefix=config.prefix)


def _pretrained(config: TextEncoderConfig) -> nn.Module:
    from transformers import AutoModel
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        backbone = AutoModel.from_pretrained(config.name)
    finally:
        if shown:
            logging.enable_progress_bar()
    limit = getattr(backbone.config, "max_position_embeddings", config.max_length)
    expect(config.max_length <= limit, "encoder.max_length", f"at most the {limit} of {config.name}", config.max_length)
    return _without_pooler(backbone)


def _from_shape(shape: dict[str, Any]) -> nn.Module:
    """A model of that shape, with random weights."""
    from transformers import AutoConfig, AutoModel

    rest = {name: value for name, value in shape.items() if name != "model_type"}
    made = AutoModel.from_config(AutoConfig.for_model(shape["model_type"], **rest))
    return _without_pooler(made)


def _without_pooler(backbone: nn.Module) -> nn.Module:
    """The model without BERT's own pooler, which nothing here reads, and whose weights would get no gradient."""
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = None  # type: ignore[assignment]
    return backbone


def _pooling_of(name: str) -> str:
    """What a folder for sentence-transformers says of its pooling; cls where it says nothing."""
    file = Path(name, "1_Pooling", "config.json")
    if not file.is_file():
        return "cls"
    found = json.loads(file.read_text())
    modes = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens"}
    chosen = [ours for ours, theirs in modes.items() if found.get(f"pooling_mode_{theirs}")]
    if not chosen and found.get("pooling_mode") in modes:
        chosen = [found["pooling_mode"]]
    expect(len(chosen) == 1, f"{file}", f"one of {', '.join(modes)}; else give --encoder.pooling", chosen)
    return chosen[0]


def _lora(backbone: nn.Module, rank: int) -> nn.Module:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError("encoder.lora_rank needs peft: pip install nearfar-sentences[lora]") from error
    names = {name.rpartition(".")[2] for name, part in backbone.named_modules() if isinstance(part, nn.Linear)}
    kinds = [("query", "value"), ("q_lin", "v_lin"), ("q_proj", "v_proj"), ("Wqkv",), ("q", "v")]
    targets = next((kind for kind in kinds if set(kind) <= names), None)
    expect(targets is not None, "encoder.lora_rank", "a model with query and value projections", sorted(names))
    return get_peft_model(backbone, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(targets or ())))  # type: ignore[arg-type, return-value]
