"""An encoder as files that other programs read: safetensors under its own library's key names, ONNX, and a card."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nearfar import __version__
from nearfar.checks import expect, expect_choice
from nearfar.config import EncoderConfig
from nearfar.recipe import Recipe, fingerprint

if TYPE_CHECKING:
    from nearfar_images.encoders import Encoder

FORMATS = ("safetensors", "onnx")
TOLERANCE = 1e-4
"""Largest difference between ONNX runtime and torch that is accepted, relative to the largest feature."""


@dataclass(frozen=True)
class Exported:
    """What `export` wrote.

    Args:
        files: the files, the card last.
        onnx_difference: largest absolute difference of ONNX runtime's features from torch's, None without ONNX.
    """

    files: tuple[Path, ...]
    onnx_difference: float | None


def export(
    encoder: Encoder,
    config: EncoderConfig,
    shape: tuple[int, ...],
    folder: str | Path,
    formats: Sequence[str] = FORMATS,
    *,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    recipe: Recipe | None = None,
) -> Exported:
    """Writes encoder.safetensors, encoder.onnx and encoder.json into a folder.

    The safetensors load with `timm.create_model(NAME, num_classes=0, ...)` and strict keys, or into torchvision's model
    with only the classifier missing; the card holds the arguments. The ONNX model takes any number of images and is
    compared with torch on two batch sizes before this returns.

    Args:
        encoder: what `encoders.build` returned; copied to the CPU in evaluation mode, itself left as it is.
        config: how it was built.
        shape: (C, H, W) of the normalised images it takes.
        folder: made when absent; files of the same names are replaced.
        formats: "safetensors", "onnx".
        mean, std: of the normalisation per channel in [0, 1] units; default: those of the recipe's views.
        recipe: the run's recipe; its name and fingerprint go into the card.

    Raises:
        ValueError: an unknown format, or an ONNX model whose features differ from torch's by more than 1e-4 of the
            largest.
        ModuleNotFoundError: the ONNX libraries are not installed.
    """
    expect(bool(formats), "formats", "at least one", tuple(formats))
    for name in formats:
        expect_choice("formats", name, FORMATS)
    if recipe is not None and not mean:
        mean, std = recipe.views.mean, recipe.views.std
    expect(
        len(mean) == len(std) and len(mean) in (0, 1, shape[0]), "mean, std", f"none or {shape[0]} values", (mean, std)
    )
    if "onnx" in formats:
        _need_onnx()
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    fixed = copy.deepcopy(encoder).cpu().float().eval().requires_grad_(False)
    files, difference = [], None
    if "safetensors" in formats:
        files.append(place / "encoder.safetensors")
        _save_safetensors(fixed, files[-1])
    if "onnx" in formats:
        files.append(place / "encoder.onnx")
        difference = _save_onnx(fixed, shape, files[-1])
    card = _card(fixed, config, shape, mean, std, recipe) | {"files": [f.name for f in files]}
    if difference is not None:
        card["onnx_difference"] = difference
    files.append(place / "encoder.json")
    files[-1].write_text(json.dumps(card, indent=2) + "\n")
    return Exported(tuple(files), difference)


def _card(
    encoder: Encoder, config: EncoderConfig, shape: tuple[int, ...], mean: Sequence[float], std: Sequence[float],
    recipe: Recipe | None,
) -> dict[str, Any]:  # fmt: skip
    return {
        "encoder": encoder.name,
        "config": asdict(config),
        "shape": list(shape),
        "layout": "float32 [batch, channels, height, width], values in [0, 1], then (x - mean) / std",
        "mean": list(mean) or [0.0],
        "std": list(std) or [1.0],
        "feature_dim": encoder.feature_dim,
        "parameters": sum(p.numel() for p in encoder.parameters()),
        "reload": _reload(encoder, shape),
        "nearfar": __version__,
        "recipe": recipe.name if recipe else None,
        "fingerprint": fingerprint(recipe) if recipe else None,
    }


def _reload(encoder: Encoder, shape: tuple[int, ...]) -> str:
    """The Python line that makes the module which the safetensors load into."""
    library, _, name = encoder.name.partition("/")
    arguments = "".join(f", {key}={value!r}" for key, value in encoder.arguments.items())
    if library == "timm" and "+" not in name:
        return f"timm.create_model({name!r}{arguments})"
    if library == "torchvision" and "+" not in name and shape[0] == 3:
        loading = "load_state_dict(..., strict=False), since the classifier is missing"
        return f"torchvision.models.get_model({name!r}{arguments})  # {loading}"
    return f"nearfar_images.encoders.build(EncoderConfig(name={encoder.name!r}), {tuple(shape)}).model"


def _save_safetensors(encoder: Encoder, path: Path) -> None:
    from safetensors.torch import save_file

    # Clones, since safetensors refuses tensors that share storage.
    tensors = {key: value.detach().clone().contiguous() for key, value in encoder.model.state_dict().items()}
    save_file(tensors, path, metadata={"format": "pt"})


def _need_onnx() -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(name)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"formats: 'onnx' needs {name}; install it with: pip install nearfar-images[export]", name=name
            ) from error


def _save_onnx(encoder: Encoder, shape: tuple[int, ...], path: Path) -> float:
    """Writes the model with a free batch size and returns its largest difference from torch."""
    example = torch.zeros(2, *shape)
    program = torch.onnx.export(
        encoder, (example,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=["image"], output_names=["feature"], verbose=False,
    )  # fmt: skip
    program.save(path)  # type: ignore[union-attr]
    return compare_onnx(encoder, shape, path)


def compare_onnx(encoder: Encoder, shape: tuple[int, ...], path: Path, num_images: Sequence[int] = (1, 5)) -> float:
    """Largest absolute difference between ONNX runtime's features and torch's on random images.

    Raises:
        ValueError: it exceeds 1e-4 of the largest feature.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    largest = 0.0
    for number in num_images:
        image: Tensor = torch.randn(number, *shape, generator=generator)
        with torch.inference_mode():
            expected = encoder(image)
        received = torch.from_numpy(session.run(None, {"image": image.numpy()})[0])
        difference = float((received - expected).abs().max())
        limit = TOLERANCE * max(float(expected.abs().max()), 1e-6)
        expect(
            difference <= limit, f"ONNX model {path} at {number} images", f"a difference up to {limit:.2e}", difference
        )
        largest = max(largest, difference)
    return largest
