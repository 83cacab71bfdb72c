"""The record of preprocessing, ``preprocess.jsonl``: one line an image, what was made of it and from what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RECORD = "preprocess.jsonl"


def read_record(root: Path) -> dict[str, dict[str, Any]]:
    """The entries of ``root/preprocess.jsonl`` by image; lines that cannot be read are left out, a later one wins."""
    record: dict[str, dict[str, Any]] = {}
    path = root / RECORD
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("image"), str):
            record[entry["image"]] = entry
    return record
