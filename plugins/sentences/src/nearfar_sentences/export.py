"""A trained encoder for use elsewhere: a folder that transformers and sentence-transformers load, and ONNX."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nearfar.checks import expect
from nearfar_sentences.encoder import TextEncoder, pool
from nearfar_sentences.pipeline import LoadedRun

SAMPLE = ("A sentence.", "Another one, which is a little longer than the first.")
KINDS = {"cls": "cls", "mean": "mean", "max": "max"}


@dataclass(frozen=True)
class Exported:
    """Files written, and how far ONNX runtime is from torch where both were asked."""

    files: list[Path]
    onnx_difference: float | None = None


def export(loaded: LoadedRun, out: str | Path, *, onnx: bool = False) -> Exported:
    """Writes the encoder of a run.

    The folder has the model (config.json, model.safetensors), its tokenizer, and modules.json with what
    sentence-transformers needs to pool as the run does.

    Raises:
        ValueError: the folder holds something else; the pooling is one that sentence-transformers has no name for; the
            run's features are its head's.
    """
    folder = Path(out)
    empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    expect(
        empty or (folder / "modules.json").is_file(), "out", "an empty folder, or one of an earlier export", str(out)
    )
    encoder = loaded.encoder
    whole = isinstance(encoder, TextEncoder)
    expect(whole, "run", "one of a sentence encoder, to be exported", f"one of {type(encoder).__name__}", TypeError)
    expect(encoder.pooling in KINDS, "encoder.pooling", f"one of {', '.join(KINDS)}, to be exported", encoder.pooling)
    head_at_test = getattr(loaded.method.config, "head_at_test", False)
    folder.mkdir(parents=True, exist_ok=True)
    backbone = encoder.backbone
    if hasattr(backbone, "merge_and_unload"):
        backbone = backbone.merge_and_unload()
    backbone.save_pretrained(folder)  # type: ignore[operator]
    _tokenizer(encoder, folder)
    _modules(encoder, folder, head=loaded.method.head if head_at_test else None)  # type: ignore[arg-type]
    difference = _onnx(encoder, folder / "encoder.onnx") if onnx else None
    return Exported(sorted(path for path in folder.rglob("*") if path.is_file()), difference)


def _tokenizer(encoder: TextEncoder, folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    kinds = ("pad", "unk", "cls", "sep", "mask")
    names = {f"{kind}_token": encoder.tokenizer.names[kind] for kind in kinds if kind in encoder.tokenizer.names}
    encoder.tokenizer.to_json()  # leaves truncation and padding out of what is written
    made = PreTrainedTokenizerFast(
        tokenizer_object=encoder.tokenizer.fast, model_max_length=encoder.max_length,
        model_input_names=["input_ids", *(["token_type_ids"] if encoder.tokenizer.types else []), "attention_mask"],
        **names,
    )  # fmt: skip
    made.save_pretrained(folder)


def _modules(encoder: TextEncoder, folder: Path, head: nn.Module | None) -> None:
    """What sentence-transformers reads beside the model."""
    parts = [
        ("0", "", "sentence_transformers.models.Transformer"),
        ("1", "1_Pooling", "sentence_transformers.models.Pooling"),
    ]
    _write(folder / "sentence_bert_config.json", {"max_seq_length": encoder.max_length, "do_lower_case": False})
    _write(folder / "1_Pooling" / "config.json", {
        "word_embedding_dimension": encoder.feature_dim,
        "pooling_mode_cls_token": encoder.pooling == "cls",
        "pooling_mode_mean_tokens": encoder.pooling == "mean",
        "pooling_mode_max_tokens": encoder.pooling == "max",
    })  # fmt: skip
    if head is not None:
        layers = list(head.children())
        tanh = len(layers) == 2 and isinstance(layers[0], nn.Linear) and isinstance(layers[1], nn.Tanh)
        expect(tanh, "method.head", "'tanh', to be exported with the encoder", type(head).__name__)
        from safetensors.torch import save_file

        parts.append(("2", "2_Dense", "sentence_transformers.models.Dense"))
        _write(folder / "2_Dense" / "config.json", {
            "in_features": encoder.feature_dim, "out_features": encoder.feature_dim, "bias": True,
            "activation_function": "torch.nn.modules.activation.Tanh",
        })  # fmt: skip
        linear: Any = layers[0]
        save_file(
            {"linear.weight": linear.weight.detach().contiguous(), "linear.bias": linear.bias.detach()},
            folder / "2_Dense" / "model.safetensors",
        )
    listed = [{"idx": n, "name": name, "path": path, "type": kind} for n, (name, path, kind) in enumerate(parts)]
    _write(folder / "modules.json", listed)
    prompt = {"prompts": {"default": encoder.prefix}, "default_prompt_name": "default"} if encoder.prefix else {}
    _write(folder / "config_sentence_transformers.json", prompt)


def _write(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values, indent=2) + "\n")


class _Features(nn.Module):
    """Features of token ids and mask alone."""

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__()
        self.backbone, self.pooling = encoder.backbone, encoder.pooling

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        last = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.pooling == "mean":  # without the check of `pool`, which a graph cannot hold
            weight = attention_mask.to(last.dtype).unsqueeze(-1)
            return (last * weight).sum(1) / weight.sum(1)
        return pool((last,), attention_mask, self.pooling)


def _onnx(encoder: TextEncoder, path: Path) -> float:
    """Writes ONNX with free batch and length, and returns the largest difference of ONNX runtime on two sentences."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("formats: onnx needs onnx, onnxruntime and onnxscript") from error
    model = _Features(encoder).eval()
    tokens = encoder.tokenise(SAMPLE)
    inputs = (tokens["input_ids"], tokens["attention_mask"])
    free = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("length", min=2, max=encoder.max_length)}
    torch.onnx.export(
        model, inputs, str(path), input_names=["input_ids", "attention_mask"], output_names=["features"],
        dynamic_shapes=(free, free), dynamo=True, external_data=False, verbose=False,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(None, {"input_ids": inputs[0].numpy(), "attention_mask": inputs[1].numpy()})[0]
    with torch.no_grad():
        return float((torch.as_tensor(found) - model(*inputs)).abs().max())
