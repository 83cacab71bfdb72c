"""Reading the text files of raw data sets strictly: what is not clear is an error that names file and line."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_AGAIN = "check --format, or export the file again"
_KINDS = {list: "list", dict: "object", str: "text"}


class DamagedError(ValueError):
    """A file that is not what its kind of file must be, whatever it was meant to say."""


class OtherFormatError(ValueError):
    """A file that lacks what every file of this format has: it is of another."""


def one_form(text: str) -> str:
    """``text`` as labels and names are compared: file systems and tools differ in how they compose accents."""
    return unicodedata.normalize("NFC", text)


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark.

    Raises ``FileNotFoundError`` or another ``OSError``, and ``ValueError`` for bytes that are not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DamagedError(f"{path}: not a UTF-8 text file (byte {error.start + 1}); save it as UTF-8") from None


def read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a text file that are not blank, without the blanks around them, each with the place where it stands."""
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if line.strip():
            yield line.strip(), f"{path}: line {number}"


def read_rows(path: Path) -> Iterator[tuple[list[str], str]]:
    """The rows of a table that are not empty, by its commas, semicolons or tabs, each with the place where it stands.

    Raises ``DamagedError`` for what is no CSV, and for a row of another length than the first.
    """
    text, width = read_text(path), 0
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = next((character for character in "\t;" if character in first), ",")
    rows = csv.reader(io.StringIO(text, newline=None), delimiter=delimiter, strict=True)
    try:
        for row in rows:
            fields, where = [field.strip() for field in row], f"{path}: line {rows.line_num}"
            if any(fields):
                width = width or len(fields)
                if len(fields) != width:
                    what = f"{len(fields)} columns instead of {width}; write numbers with decimal points"
                    raise DamagedError(f"{where}: {what}")
                yield fields, where
    except csv.Error as error:
        raise DamagedError(f"{path}: line {rows.line_num}: not valid CSV ({error}); correct this line") from None


def read_json(path: Path) -> Any:
    """The contents of a JSON file. A key that is there twice in one object is refused: one of the two would be lost."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        contents = dict(pairs)
        if len(contents) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"the key {twice!r} is there twice in one object")
        return contents

    text = read_text(path)
    try:
        return json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise DamagedError(f"{path}: not valid JSON ({reason}); correct the file, or export it again") from None


def member(contents: Any, key: str, kind: type, where: str) -> Any:
    """The value of ``key`` in a JSON object; ``ValueError`` that starts with ``where`` if it is not of that kind."""
    value = contents.get(key) if isinstance(contents, dict) else None
    if not isinstance(value, kind):
        raise OtherFormatError(f"{where}: no {_KINDS[kind]} {key!r}; {_AGAIN}")
    return value


def entries(contents: Any, key: str, where: str) -> list[dict[str, Any]]:
    """The list of objects under ``key``."""
    values = member(contents, key, list, where)
    if not all(isinstance(value, dict) for value in values):
        raise OtherFormatError(f"{where}: no list {key!r} of objects; {_AGAIN}")
    return values


def parse_number(text: str, where: str) -> float:
    """A finite number with a decimal point, or a ``ValueError`` that starts with ``where``."""
    try:
        # float() also takes 1_000 and digits of other scripts.
        value = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where}: {text[:40]!r} is no finite number; write numbers like 12.5, with a decimal point")
    return value


def json_number(value: Any, where: str) -> float:
    """A finite JSON number as a float, or a ``ValueError`` that starts with ``where``."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max:
        return float(value)
    raise ValueError(f"{where}: {value!r:.40} is no finite number; correct the file")


def json_numbers(contents: dict[str, Any], keys: tuple[str, ...], where: str) -> list[float]:
    """The finite numbers under these keys."""
    return [json_number(contents.get(key), f"{where}: {key}") for key in keys]


def json_points(value: Any, where: str) -> np.ndarray:
    """A JSON list of pairs [x, y] as float64 [N, 2], or a ``ValueError`` that starts with ``where``."""
    if not isinstance(value, list):
        kind = type(value).__name__
        raise ValueError(f"{where}: {kind} in place of the list of points [[x, y], ...]; correct the file")
    rows = []
    for i, pair in enumerate(value, start=1):
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"{where}: point {i} is {pair!r:.40}; store each point as [x, y]")
        rows.append([json_number(coordinate, f"{where}: point {i}") for coordinate in pair])
    return np.array(rows, np.float64).reshape(-1, 2)
