"""Arrays that analyses read, and the folder they write. Loads no torch."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nearfar.checks import expect
from nearfar.report.style import LIGHT, SHEET


def fields(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name; the one of an .npy file is called "features".

    Raises:
        FileNotFoundError: no such file.
        ValueError: another suffix, or a file that is not what its suffix says, or one that holds Python objects.
    """
    place = Path(path)
    expect(place.is_file(), "file", "an .npz or .npy file", str(path), FileNotFoundError)
    expect(place.suffix in (".npz", ".npy"), f"file {path}: suffix", "'.npz' or '.npy'", repr(place.suffix))
    try:
        loaded = np.load(place, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {"features": loaded}
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"file {path}: expected arrays without Python objects, received {error}") from error


def matrix(path: str | Path, arrays: Mapping[str, np.ndarray], name: str, *, least: int = 1) -> np.ndarray:
    """A field as finite float64 rows [N, D].

    Raises:
        ValueError: the field is missing, has another shape or too few rows, or is not finite (the row is told).
    """
    expect(name in arrays, f"file {path}: field {name!r}", "rows [N, D]", f"the fields {', '.join(sorted(arrays))}")
    x = arrays[name]
    where = f"file {path}: field {name!r}"
    expect(x.dtype.kind in "fiu", where, "numbers", x.dtype)
    expect(x.ndim == 2 and len(x) >= least and x.shape[1] >= 1, where, f"rows [N, D], N >= {least}", f"shape {x.shape}")
    x = x.astype(np.float64)
    bad = np.flatnonzero(~np.isfinite(x).all(1))
    expect(len(bad) == 0, where, "finite numbers", f"nan or inf in {len(bad)} rows, the first {bad[:1]}")
    return x


def classes(path: str | Path, arrays: Mapping[str, np.ndarray], name: str, num: int) -> np.ndarray:
    """A field as class numbers 0 .. C - 1, [N], whatever integers or words it holds.

    Raises:
        ValueError: the field is missing, is no list of `num` integers or words, or names a single class.
    """
    where = f"file {path}: field {name!r}"
    expect(name in arrays, where, f"{num} labels", f"the fields {', '.join(sorted(arrays))}")
    found = arrays[name]
    expect(found.dtype.kind in "iubU", where, "integers or words", found.dtype)
    expect(found.shape == (num,), where, f"shape ({num},), one label a row", found.shape)
    ids, index = np.unique(found, return_inverse=True)
    expect(len(ids) >= 2, where, "labels of at least 2 classes", f"only {ids.tolist()}")
    return index.astype(np.int64)


def write(folder: str | Path, report: Mapping[str, Any], plot: str) -> None:
    """Writes report.json and plot.svg, which needs no style sheet beside it.

    Args:
        folder: made where it is not there.
        report: plain values.
        plot: a chart of `nearfar.report.svg`.
    """
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    (place / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    (place / "plot.svg").write_text(standalone(plot) + "\n")


def standalone(svg: str) -> str:
    """A chart of the run's page as a picture of its own: with name space, colours and background."""
    head, rest = svg.split(">", 1)
    head = head.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    colours = "".join(f"--{name}:{colour};" for name, colour in LIGHT.items())
    keep = "\n".join(
        line for line in SHEET.splitlines() if line.startswith((".grid", ".tick", ".line", ".band", ".hit"))
    )
    fills = "".join(f".f{k}{{fill:var(--c{k})}}.l{k}{{stroke:var(--c{k})}}" for k in range(10))
    style = f"<style>:root,svg{{{colours}font-family:sans-serif;background:var(--card)}}{fills}{keep}</style>"
    return f"{head}>{style}{rest}"
