"""A recipe names everything a run needs; it becomes flags, a JSON file, and a run again.

A recipe is a frozen dataclass made by a function; a variant calls another recipe and replaces fields. A file holds a
recipe's registered name and the values of its fields, never code.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from nearfar.config import (
    DataConfig,
    EncoderConfig,
    EvaluateConfig,
    ImageViewConfig,
    MethodConfig,
    OptimiserConfig,
    SamplerConfig,
    TrainerConfig,
)

SCHEMA = 1
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class BaseRecipe:
    """What runs of every modality need, as values; a subclass adds its data, its views and its encoder."""

    name: str
    """registered name, "plugin/recipe"; the plugin's catalogue finds the recipe's function by it"""
    method: MethodConfig
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    optimiser: OptimiserConfig = field(default_factory=OptimiserConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)


@dataclass(frozen=True, kw_only=True)
class Recipe(BaseRecipe):
    """Everything a training run on images needs."""

    data: DataConfig = field(default_factory=DataConfig)
    views: ImageViewConfig = field(default_factory=ImageViewConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)


def to_dict(recipe: BaseRecipe) -> dict[str, Any]:
    """The JSON form: schema, registered name, and every field's value."""
    values = dataclasses.asdict(recipe)
    name = values.pop("name")
    return {"schema": SCHEMA, "recipe": name, "values": json.loads(json.dumps(values))}


def fingerprint(recipe: BaseRecipe) -> str:
    """Hash of what decides a run's results; where it is written and how it is shown are left out."""
    data = to_dict(recipe)
    for key in ("output", "progress", "keep", "report", "trackers", "checkpoint_every"):
        data["values"]["trainer"].pop(key)
    for key in ("workers", "memory_gb", "cache"):
        data["values"]["data"].pop(key, None)
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def save(recipe: BaseRecipe, path: Path) -> None:
    path.write_text(json.dumps(to_dict(recipe), indent=2) + "\n")


def read(path: Path) -> tuple[str, dict[str, Any]]:
    """Name and values of a recipe file, its form checked; nothing is resolved or run yet."""
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"recipe file: {path} does not exist") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"recipe file {path}: expected JSON, received text that does not parse: {error}") from None
    if (
        not isinstance(data, dict)
        or not isinstance(data.get("recipe"), str)
        or not isinstance(data.get("values"), dict)
    ):
        raise ValueError(f"recipe file {path}: expected the keys 'schema', 'recipe' and 'values'")
    if data.get("schema") != SCHEMA:
        raise ValueError(f"recipe file {path}: expected schema {SCHEMA}, received {data.get('schema')!r}")
    return data["recipe"], data["values"]


def update(config: T, values: dict[str, Any], where: str = "") -> T:
    """A copy of a config with fields replaced by JSON values; unknown keys and wrong types are refused by name."""
    hints = typing.get_type_hints(type(config))
    known = [f.name for f in dataclasses.fields(config)]  # type: ignore[arg-type]
    changes = {}
    for key, value in values.items():
        name = f"{where}{key}"
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{name}: expected one of {', '.join(known)}, received an unknown key{hint}")
        current = getattr(config, key)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, dict):
                raise TypeError(f"{name}: expected an object of fields, received {value!r}")
            changes[key] = update(current, value, f"{name}.")
        else:
            changes[key] = _coerce(value, hints[key], name)
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def _coerce(value: Any, hint: Any, name: str) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value not in args:
            raise ValueError(f"{name}: expected one of {', '.join(map(repr, args))}, received {value!r}")
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _coerce(value, next(a for a in args if a is not type(None)), name)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise TypeError(f"{name}: expected a list, received {value!r}")
        if args[-1] is Ellipsis:
            return tuple(_coerce(v, args[0], name) for v in value)
        if len(value) != len(args):
            raise ValueError(f"{name}: expected {len(args)} values, received {value!r}")
        return tuple(_coerce(v, a, name) for v, a in zip(value, args, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and (not isinstance(value, hint) or (hint is not bool and isinstance(value, bool))):
        raise TypeError(f"{name}: expected {hint.__name__}, received {value!r}")
    return value
