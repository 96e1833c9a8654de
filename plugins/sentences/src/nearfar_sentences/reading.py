"""Files of sentences as tables: plain text, CSV, TSV, JSON lines and Parquet, with line numbers in every complaint."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nearfar.checks import expect, expect_choice
from nearfar.data.source import Fault, TooManyFaults, allowed_faults

FORMATS = (".txt", ".csv", ".tsv", ".jsonl", ".parquet")


@dataclass(frozen=True)
class Table:
    """Columns of a file and the line that each row stands on."""

    name: str
    columns: dict[str, list[Any]]
    lines: list[int]
    skipped: tuple[Fault, ...] = ()

    def texts(self, column: str) -> list[str]:
        """A column of sentences.

        Raises:
            ValueError: an empty or missing sentence; names the line.
        """
        found = []
        for line, value in zip(self.lines, self.columns[column], strict=True):
            given = isinstance(value, str) and bool(value.strip())
            expect(given, f"{self.name} line {line}: {column}", "a sentence", repr(value))
            found.append(" ".join(value.split()))
        return found


def read_table(path: Path, max_bad_share: float = 0.01) -> Table:
    """The table of a file; blank lines are passed over, unreadable ones counted.

    Args:
        path: .txt (column "text"), .csv, .tsv (with a header), .jsonl (an object a line), .parquet.
        max_bad_share: share of lines that may be unreadable.

    Raises:
        FileNotFoundError: no such file.
        ValueError: nothing in it, another format, a row that does not fit the header.
        TooManyFaults: more lines are unreadable; the first are named.
    """
    expect(path.is_file(), "data.root", "a file of sentences", str(path), FileNotFoundError)
    expect_choice("data.root: format", path.suffix.lower(), FORMATS)
    if path.suffix.lower() == ".parquet":
        return _parquet(path)
    faults: list[Fault] = []
    lines = list(_lines(path, faults))
    expect(bool(lines) or bool(faults), str(path), "at least one sentence", "an empty file")
    read = {".txt": _plain, ".jsonl": _objects}.get(path.suffix.lower(), _separated)
    columns, numbers = read(path, lines, faults)
    total = len(numbers) + len(faults)
    if len(faults) > allowed_faults(max_bad_share, total):
        raise TooManyFaults(faults, total, max_bad_share)
    expect(bool(numbers), str(path), "at least one sentence", "none")
    return Table(str(path), columns, numbers, tuple(faults))


def _lines(path: Path, faults: list[Fault]) -> Iterator[tuple[int, str]]:
    """Number and text of every line that is not blank; bytes that are no UTF-8 become a fault."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                faults.append(Fault(number, f"{path} line {number}", f"not UTF-8 at byte {error.start + 1}"))
                continue
            if line.strip():
                yield number, line.rstrip("\r\n")


def _plain(path: Path, lines: list[tuple[int, str]], faults: list[Fault]) -> tuple[dict[str, list[Any]], list[int]]:
    return {"text": [line for _, line in lines]}, [number for number, _ in lines]


def _separated(path: Path, lines: list[tuple[int, str]], faults: list[Fault]) -> tuple[dict[str, list[Any]], list[int]]:
    """Rows under a header; a quoted field may hold line breaks."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    csv.field_size_limit(1 << 30)
    rows = csv.reader(io.StringIO("\n".join(line for _, line in lines)), delimiter=delimiter, quoting=quoting)
    header = next(rows)
    expect(len(set(header)) == len(header), f"{path} line {lines[0][0]}", "a header with each column once", header)
    numbers, values, before = [], [], 1
    for row in rows:
        number = lines[min(before, len(lines) - 1)][0]
        before = rows.line_num
        if len(row) == len(header):
            numbers.append(number)
            values.append(row)
        else:
            what = f"expected {len(header)} fields as in the header, received {len(row)}"
            faults.append(Fault(number, f"{path} line {number}", what))
    return {name: [row[place] for row in values] for place, name in enumerate(header)}, numbers


def _objects(path: Path, lines: list[tuple[int, str]], faults: list[Fault]) -> tuple[dict[str, list[Any]], list[int]]:
    numbers, values = [], []
    for number, line in lines:
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            faults.append(Fault(number, f"{path} line {number}", f"not JSON: {error.msg}"))
            continue
        if isinstance(value, dict):
            numbers.append(number)
            values.append(value)
        else:
            faults.append(
                Fault(number, f"{path} line {number}", f"expected an object, received {type(value).__name__}")
            )
    names = list(dict.fromkeys(name for value in values for name in value))
    return {name: [value.get(name) for value in values] for name in names}, numbers


def _parquet(path: Path) -> Table:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ImportError("data.root: .parquet needs pyarrow: pip install nearfar-sentences[parquet]") from error
    found = parquet.read_table(path)
    columns = {name: found.column(name).to_pylist() for name in found.column_names}
    expect(len(found) > 0, str(path), "at least one sentence", "an empty table")
    return Table(str(path), columns, list(range(1, len(found) + 1)))
