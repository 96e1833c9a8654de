"""Checkpoints that are either whole or absent: written aside, flushed, renamed, and verified when read.

A checkpoint is a folder `step-N` with the model (safetensors), the trainer's state (tensors and plain values only) and
a manifest of sizes and hashes. A broken newest one is passed over, with a warning, for the one before.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

SCHEMA = 1
MODEL, STATE, MANIFEST = "model.safetensors", "state.pt", "manifest.json"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says which and why."""


def save(folder: Path, step: int, model: dict[str, Tensor], state: dict[str, Any], meta: dict[str, Any]) -> Path:
    """Writes `folder/step-N`; on any failure the partial folder is removed and earlier checkpoints stay as they are.

    Raises:
        OSError: the disk is full or not writable; the message names the place and the size that was needed.
    """
    final, partial = folder / name(step), folder / f".{name(step)}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    tensors = _unshared(model)
    needed = sum(t.numel() * t.element_size() for t in tensors.values())
    try:
        partial.mkdir(parents=True)
        save_file(tensors, partial / MODEL)
        torch.save(state, partial / STATE)
        files = {f: {"bytes": (partial / f).stat().st_size, "sha256": file_hash(partial / f)} for f in (MODEL, STATE)}
        (partial / MANIFEST).write_text(json.dumps({"schema": SCHEMA, "step": step, "files": files, **meta}, indent=2))
        for file in (MODEL, STATE, MANIFEST):
            _flush(partial / file)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        _flush(folder)
    except (OSError, SafetensorError, RuntimeError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, RuntimeError) and not _is_write_failure(error):
            raise
        free = shutil.disk_usage(folder if folder.exists() else folder.parent).free
        code = getattr(error, "errno", None) or errno.EIO
        raise OSError(
            code,
            f"checkpoint {final} could not be written ({error}); its model alone needs {needed / 1e6:.0f} MB, "
            f"{free / 1e6:.0f} MB are free. Earlier checkpoints are intact: free some space and resume",
        ) from error
    return final


def name(step: int) -> str:
    return f"step-{step:09d}"


def step_of(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def found(folder: Path) -> list[Path]:
    """Checkpoints of a folder, oldest first; partial ones are none."""
    return sorted(p for p in folder.glob("step-*") if p.is_dir())


def verify(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose files are all there, whole and unchanged.

    Raises:
        CheckpointError: a file is missing, half-written or changed, or the schema is unknown.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        files = manifest["files"]
        schema = manifest["schema"]
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint {path}: {MANIFEST} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"checkpoint {path}: {MANIFEST} does not read ({error})") from None
    if schema != SCHEMA:
        raise CheckpointError(f"checkpoint {path}: expected schema {SCHEMA}, received {schema!r}")
    for file in (MODEL, STATE):
        expected, place = files.get(file, {}), path / file
        if not place.is_file():
            raise CheckpointError(f"checkpoint {path}: {file} is missing")
        size = place.stat().st_size
        if size != expected.get("bytes"):
            raise CheckpointError(f"checkpoint {path}: {file}: expected {expected.get('bytes')} bytes, received {size}")
        if file_hash(place) != expected.get("sha256"):
            raise CheckpointError(f"checkpoint {path}: {file} was changed after it was written")
    return manifest


def load(path: Path, device: str | torch.device = "cpu") -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """Model, state and manifest of one verified checkpoint."""
    manifest = verify(path)
    model = load_file(path / MODEL, device=str(device))
    state = torch.load(path / STATE, map_location="cpu", weights_only=True)
    return model, state, manifest


def newest(folder: Path) -> Path | None:
    """The newest whole checkpoint; broken ones are passed over with a warning. None when there is none at all.

    Raises:
        CheckpointError: there are checkpoints and every one is broken.
    """
    places, faults = found(folder), []
    for path in reversed(places):
        try:
            verify(path)
        except CheckpointError as error:
            faults.append(str(error))
            continue
        for fault in faults:
            warnings.warn(f"{fault}; going on from {path.name} instead", stacklevel=2)
        return path
    if faults:
        raise CheckpointError("no usable checkpoint: " + "; ".join(faults))
    return None


def prune(folder: Path, keep: int, also: set[int]) -> None:
    """Removes all but the newest `keep` checkpoints and those of the steps in `also`."""
    for path in found(folder)[:-keep]:
        if step_of(path) not in also:
            shutil.rmtree(path, ignore_errors=True)


def _unshared(model: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors that share no storage, as safetensors asks."""
    seen: set[int] = set()
    result = {}
    for key, value in model.items():
        tensor = value.detach().contiguous()
        place = tensor.untyped_storage().data_ptr()
        whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        result[key] = tensor.clone() if place in seen or not whole else tensor
        seen.add(place)
    return result


def _is_write_failure(error: RuntimeError) -> bool:
    """torch.save reports a failed write as a RuntimeError of its zip writer."""
    return any(word in str(error) for word in ("PytorchStreamWriter", "iostream", "unexpected pos", "write"))


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
