"""Samples to a batch, checked in one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nearfar.checks import expect
from nearfar.ragged import Ragged


def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Samples -> batch; int becomes int64, float float32, bool bool, str list[str], arrays and tensors stack.

    Arrays and tensors of one field share dtype and number of dimensions; where their shapes differ the field is Ragged.
    A tuple of texts is a constant of all samples and stays one.

    Args:
        samples: dicts with the same fields, `index` among them; `image` is uint8 [C, H, W].

    Raises:
        ValueError: a field is missing, added, or does not fit; names sample, field and fault.
        TypeError: a value is none of the above.
    """
    expect(len(samples) > 0, "samples", "at least one", "none")
    expect("index" in samples[0], "sample 0", "a field 'index'", sorted(samples[0]))
    for number, sample in enumerate(samples):
        missing, added = samples[0].keys() - sample.keys(), sample.keys() - samples[0].keys()
        if missing:
            raise ValueError(f"sample {number} (index {sample.get('index')}): field {min(missing)!r} is missing")
        if added:
            raise ValueError(f"sample {number} (index {sample['index']}): field {min(added)!r} is not in sample 0")
    return {name: _column(name, [sample[name] for sample in samples], samples) for name in samples[0]}


def _column(name: str, values: list[Any], samples: Sequence[Mapping[str, Any]]) -> Any:
    def fault(number: int, expected: object, received: object, error: type[Exception] = ValueError) -> Exception:
        where = f"sample {number} (index {samples[number]['index']}), field {name!r}"
        return error(f"{where}: expected {expected}, received {received}")

    kinds = [_kind(value) for value in values]
    for number, kind in enumerate(kinds):
        if kind is None:
            kinds_known = "a tensor, an array, int, float, bool, str or a tuple of str"
            raise fault(number, kinds_known, type(values[number]).__name__, TypeError)
        if kind != kinds[0]:
            raise fault(number, f"{kinds[0]} as in sample 0", kind)
    kind = kinds[0]
    if kind == "str":
        return values
    if kind == "constant":
        for number, value in enumerate(values):
            if value != values[0]:
                raise fault(number, f"the constant {values[0]} as in sample 0", value)
        return values[0]
    if kind in _SCALARS:
        return torch.tensor(values, dtype=_SCALARS[kind])
    dims = 3 if name == "image" else values[0].ndim
    for number, value in enumerate(values):
        if name == "image" and kind != "uint8":
            raise fault(number, "uint8", kind)
        if value.ndim != dims:
            raise fault(number, "shape [C, H, W]" if name == "image" else f"{dims} dimensions", tuple(value.shape))
        if name == "image" and value.shape[0] != values[0].shape[0]:
            raise fault(number, f"{values[0].shape[0]} channels as in sample 0", value.shape[0])
    same = all(value.shape == values[0].shape for value in values)
    if same and all(isinstance(value, np.ndarray) for value in values):
        return torch.from_numpy(np.stack(values))
    tensors = [torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value for value in values]
    return torch.stack(tensors) if same else Ragged.of(tensors)


_SCALARS = {"int": torch.int64, "float": torch.float32, "bool": torch.bool}


def _kind(value: object) -> str | None:
    """The name of a type or dtype, equal for NumPy and torch; None for what cannot stand in a batch."""
    if isinstance(value, str):
        return "str"
    if isinstance(value, tuple) and all(isinstance(text, str) for text in value):
        return "constant"
    if isinstance(value, (bool, np.bool_)):
        return "bool"
    if isinstance(value, (int, np.integer)):
        return "int"
    if isinstance(value, (float, np.floating)):
        return "float"
    if isinstance(value, np.ndarray):
        return str(value.dtype) if value.dtype.kind in "biuf" else None
    if isinstance(value, Tensor):
        return str(value.dtype).removeprefix("torch.")
    return None
