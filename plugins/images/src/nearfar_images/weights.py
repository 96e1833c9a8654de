"""Weights of an encoder from a local file, whoever saved it: prefixes are found, classifiers ignored, misfits named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nearfar.checks import expect, expect_choice

SUFFIXES = (".safetensors", ".pt", ".pth")
WRAPPERS = ("state_dict", "model", "model_state_dict", "student", "teacher")
# Of several copies in one file the trained one is meant, not the one that follows it.
FOLLOWERS = ("teacher", "momentum", "ema", "target", "encoder_k", "key_encoder")


def load_weights(model: nn.Module, path: str | Path, classifier: tuple[str, ...] = ()) -> None:
    """Copies a file's weights into a model.

    The file may hold the model alone or within others ("backbone.", "module.encoder_q.", ...): the prefix under which
    most of the model's keys are found is taken, and what lies outside it is another part's.

    Args:
        model: takes the weights.
        path: .safetensors, or a .pt or .pth that loads with `weights_only=True`.
        classifier: key prefixes that may be in the file and not in the model.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a file of weights, or keys or shapes that do not fit; the message counts and names them.
    """
    found = read_weights(path)
    wanted = model.state_dict()
    prefix = _prefix(found, set(wanted))
    expect(prefix is not None, f"weights {path}", _some(wanted, "keys such as"), _some(found, "keys such as"))
    inside = {key.removeprefix(prefix): value for key, value in found.items() if key.startswith(prefix)}  # type: ignore[arg-type]
    faults = [f"{key} is missing" for key in wanted if key not in inside and not key.endswith("num_batches_tracked")]
    faults += [
        f"{key} has shape {tuple(value.shape)}, expected {tuple(wanted[key].shape)}"
        for key, value in inside.items()
        if key in wanted and value.shape != wanted[key].shape
    ]
    faults += [
        f"{key} is not in the encoder"
        for key in inside
        if key not in wanted and not any(key == c or key.startswith(f"{c}.") for c in classifier)
    ]
    if faults:
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        under = f" (under the prefix {prefix!r})" if prefix else ""
        raise ValueError(f"weights {path}{under}: {len(faults)} keys do not fit: {'; '.join(faults[:5])}{more}")
    model.load_state_dict({key: inside.get(key, value) for key, value in wanted.items()})


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Every tensor of a file by key; nothing in it is executed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file does not hold tensors by name.
    """
    place = Path(path)
    expect_choice("encoder.weights: suffix", place.suffix, SUFFIXES)
    expect(place.is_file(), "encoder.weights", "an existing file", str(path), FileNotFoundError)
    if place.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(place)
        except SafetensorError as error:
            raise ValueError(
                f"weights {path}: expected a safetensors file, received one that does not read: {error}"
            ) from None
    try:
        data: Any = torch.load(place, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds here; all mean that the file is not plain weights
        raise ValueError(f"weights {path}: expected a state dict that loads with weights_only=True: {error}") from error
    while isinstance(data, dict) and (inner := next((w for w in WRAPPERS if isinstance(data.get(w), dict)), None)):
        data = data[inner]
    tensors = {k: v for k, v in data.items() if isinstance(v, Tensor)} if isinstance(data, dict) else {}
    expect(bool(tensors), f"weights {path}", "tensors by name", type(data).__name__)
    return tensors


def _prefix(found: dict[str, Tensor], wanted: set[str]) -> str | None:
    """The prefix under which most wanted keys lie; of equals the trained copy, then the shortest."""
    hits: dict[str, int] = {}
    for key in found:
        start = 0
        while True:
            if key[start:] in wanted:
                hits[key[:start]] = hits.get(key[:start], 0) + 1
            dot = key.find(".", start)
            if dot < 0:
                break
            start = dot + 1
    if not hits:
        return None
    return min(hits, key=lambda p: (-hits[p], any(part.startswith(FOLLOWERS) for part in p.split(".")), len(p), p))


def _some(keys: dict[str, Tensor], text: str) -> str:
    return f"{text} {', '.join(list(keys)[:3])}"
