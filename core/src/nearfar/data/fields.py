"""Fields of samples that are no images of folders: bytes to values, values to labels and columns."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nearfar.checks import expect
from nearfar.data.decode import EXTENSIONS, decode
from nearfar.data.folder import natural
from nearfar.data.source import Fault

log = logging.getLogger(__name__)

TEXTS = ("txt", "text", "transcript")
NUMBERS = ("cls", "cls2", "class", "index", "inx", "id", "count")
PICKLES = ("pyd", "pickle", "pkl", "pth", "pt")
"""of which reading one may run any code"""


@dataclass(frozen=True)
class Labels:
    """Class numbers of all samples, 0 where one has none, which `bad` then explains."""

    labels: np.ndarray | None
    class_names: tuple[str, ...]
    num_classes: int
    bad: dict[int, str]


def locate(column: str, extensions: Sequence[str]) -> tuple[str, str] | None:
    """The extension that holds a column, and the path of its field in a JSON file; None: no such extension."""
    if column in extensions:
        return column, ""
    whole = [name for name in extensions if kind(name) == "json" and column.startswith(f"{name}.")]
    return (whole[0], column[len(whole[0]) + 1 :]) if whole else None


def kind(extension: str) -> str:
    """The last part of an extension, which says what the content is."""
    return extension.rsplit(".", 1)[-1]


def read(extension: str, field: str, raw: bytes, channels: int, shorter: int) -> Any:
    """The value of a member: text, a class number or name, a field of JSON, an array without objects, an image.

    Raises:
        ValueError: content of another kind, pickles among them, or no such field.
    """
    what = kind(extension)
    if what in TEXTS:
        return raw.decode()
    if what in NUMBERS:
        text = raw.decode().strip()
        return int(text) if text.removeprefix("-").isdecimal() else text
    if what == "json":
        value = json.loads(raw)
        for name in field.split(".") if field else ():
            expect(isinstance(value, dict) and name in value, extension, f"a field {field!r}", "none")
            value = value[name]
        return value
    if what == "npy":
        return np.load(io.BytesIO(raw), allow_pickle=False)
    if f".{what}" in EXTENSIONS:
        return decode(io.BytesIO(raw), channels=channels, shorter=shorter)
    known = f"one of {', '.join((*TEXTS, *NUMBERS, 'json', 'npy'))}, or an image"
    raise ValueError(f"{extension}: expected {known}, received .{what}{danger(extension)}")


def readable(extension: str) -> bool:
    """Whether `read` knows content of this extension."""
    return kind(extension) in (*TEXTS, *NUMBERS, "json", "npy") or f".{kind(extension)}" in EXTENSIONS


def danger(extension: str) -> str:
    """What to say of a pickle, empty for others."""
    return ", a pickle, which may run any code when it is read" if kind(extension) in PICKLES else ""


def read_labels(values: Sequence[Any], name: str, class_names: tuple[str, ...] = ()) -> Labels:
    """Labels of values: integers are class numbers, texts are class names.

    Args:
        values: one a sample; None, -1 or {"fault": why} where there is none.
        name: of the column.
        class_names: classes known beforehand; empty: those of the texts, in natural order.

    Returns:
        Labels; none at all where every sample lacks one.
    """
    good = [value for value in values if isinstance(value, (int, str)) and not isinstance(value, bool) and value != -1]
    if not good:
        faulty = next((value["fault"] for value in values if isinstance(value, dict)), "")
        if faulty:
            log.warning("no labels: %s of every sample cannot be read, e.g. %s", name, faulty)
        return Labels(None, class_names, len(class_names), {})
    texts = 2 * sum(isinstance(value, str) for value in good) > len(good)
    if texts and not class_names:
        class_names = tuple(sorted({value for value in good if isinstance(value, str)}, key=natural))
    known: dict[Any, int] = {text: i for i, text in enumerate(class_names)} if texts else {}
    bad: dict[int, str] = {}
    labels = np.zeros(len(values), dtype=np.int64)
    for i, value in enumerate(values):
        number = known.get(value, -1) if texts and isinstance(value, str) else value
        whole = isinstance(number, int) and not isinstance(number, bool)
        if whole and 0 <= number < (len(class_names) or 2**31) and isinstance(value, str) == texts:
            labels[i] = number
        elif value is None or value == -1:
            bad[i] = f"no label ({name})"
        elif isinstance(value, dict):
            bad[i] = f"no label: {value['fault']}"
        else:
            wanted = "a class name of the training data" if texts else "a class number from 0"
            below = f" below {len(class_names)}" if class_names and not texts else ""
            bad[i] = f"label {name}: expected {wanted}{below}, received {value!r}"
    return Labels(labels, class_names, len(class_names) or int(labels.max()) + 1, bad)


def as_column(values: Sequence[Any], name: str, source: str) -> np.ndarray:
    """Values as int64, float64 or an array of str objects.

    Raises:
        ValueError: samples without a value, or values of several types.
    """
    lacking = [i for i, value in enumerate(values) if value is None or isinstance(value, dict)]
    if lacking:
        first = values[lacking[0]]
        why = f" ({first['fault']})" if isinstance(first, dict) else ""
        raise ValueError(
            f"column {name} of {source}: expected a value for each of {len(values)} samples, "
            f"received none for {len(lacking)}, the first of which is {lacking[0]}{why}"
        )
    types = {type(value) for value in values}
    if types <= {bool, int}:
        return np.array(values, dtype=np.int64)
    if types <= {bool, int, float}:
        return np.array(values, dtype=np.float64)
    kinds = sorted(one.__name__ for one in types)
    expect(types == {str}, f"column {name} of {source}", "numbers or texts", " and ".join(kinds))
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def warn_skipped(source: str, skipped: Sequence[Fault]) -> None:
    """Says what was left out."""
    if skipped:
        log.warning("%s: left out %d members or files, e.g. %s (%s)", source, len(skipped), skipped[0].path,
                    skipped[0].reason)  # fmt: skip
