"""What is known of the images of a folder beside their pixels: a table metadata.csv, and the folders they lie in."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nearfar.checks import expect

NAME, FILE = "metadata.csv", "file_name"


def folders(files: Sequence[str], depth: int, root: Path) -> np.ndarray:
    """Names of the folders at a depth (1: the outermost below the root) of every file, [N] of str.

    Raises:
        ValueError: a file that lies in fewer folders.
    """
    inside = [file.split("/")[:-1] for file in files]
    shallow = [file for file, parts in zip(files, inside, strict=True) if len(parts) < depth]
    expect(depth >= 1, "folder column", "folder1 or a larger number", f"folder{depth}")
    expect(not shallow, f"column folder{depth} of {root}", f"images in {depth} nested folders",
           f"{len(shallow)} that are not, e.g. {shallow[0] if shallow else ''}")  # fmt: skip
    return np.array([parts[depth - 1] for parts in inside], dtype=object)


def read_column(table: Path, name: str, files: Sequence[str]) -> np.ndarray | None:
    """A column of a CSV file whose column `file_name` holds paths relative to the table's folder.

    Args:
        table: in UTF-8, with names in its first row.
        name: of the column.
        files: of which rows are wanted, in this order; further rows are ignored.

    Returns:
        float64 [N] where every value is a number, else [N] of str; None: no table, or no such column.

    Raises:
        ValueError: a table without `file_name`, files without a row or a value, a file with two rows.
    """
    if not table.is_file():
        return None
    with open(table, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        header = list(reader.fieldnames or ())
        expect(FILE in header, str(table), f"a column {FILE}, paths relative to its folder", header)
        if name not in header or name == FILE:
            return None
        values: dict[str, str] = {}
        for row in reader:
            key = os.path.normpath(row[FILE] or "")
            expect(key not in values, str(table), "a row a file", f"two of {row[FILE]}")
            values[key] = (row[name] or "").strip()
    lacking = [file for file in files if not values.get(file)]
    expect(not lacking, f"column {name} of {table}", "a value for every image",
           f"none for {len(lacking)}, e.g. {lacking[0] if lacking else ''}")  # fmt: skip
    texts = [values[file] for file in files]
    try:
        return np.array([float(text) for text in texts], dtype=np.float64)
    except ValueError:  # a column of names
        return np.array(texts, dtype=object)
