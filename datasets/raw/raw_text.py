"""Reading the text files of raw data sets strictly: what is not clear is an error that names file and line."""

from __future__ import annotations

import json
import math
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np


class DamagedError(ValueError):
    """A file that is not what its kind of file must be, whatever it was meant to say."""


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


def read_json(path: Path) -> Any:
    """The contents of a JSON file. A key that is there twice in one object is refused: one of the two would be lost."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise ValueError(f"the key {key!r} is there twice in one object")
            found[key] = value
        return found

    text = read_text(path)
    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        reason = f"line {error.lineno}: not valid JSON ({error.msg}, column {error.colno})"
        raise DamagedError(f"{path}: {reason}; get the file again, or export it anew") from None
    except RecursionError:
        raise DamagedError(
            f"{path}: not valid JSON (nested too deeply); get the file again, or export it anew"
        ) from None
    except ValueError as error:
        raise DamagedError(f"{path}: not usable JSON ({error}); correct the file") from None


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
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            if math.isfinite(value):
                return float(value)
        except OverflowError:
            pass
    raise ValueError(f"{where}: {value!r:.40} is no finite number; correct the file")


def json_points(value: Any, where: str) -> np.ndarray:
    """A JSON list of pairs [x, y] as float64 [N, 2], or a ``ValueError`` that starts with ``where``."""
    if not isinstance(value, list):
        raise ValueError(
            f"{where}: {type(value).__name__} in place of the list of points [[x, y], ...]; correct the file"
        )
    rows = []
    for i, pair in enumerate(value, start=1):
        if not isinstance(pair, list) or len(pair) != 2:
            raise ValueError(f"{where}: point {i} is {pair!r:.40}; store each point as [x, y]")
        rows.append([json_number(coordinate, f"{where}: point {i}") for coordinate in pair])
    return np.array(rows, np.float64).reshape(-1, 2)
