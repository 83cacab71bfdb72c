"""What ``dataset_report.json`` says of a prepared folder, for those who go on with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from utils.files import read_json

REPORT = "dataset_report.json"
OWN = "own"  # in the place of a published data set's name
DATASETS = ("qnrf", "jhu", "nwpu", "sha", "shb", "ucf50", OWN)


def read_report(root: Path) -> dict[str, Any]:
    """``dataset``, one of ``DATASETS``, and ``crop_size`` of a report, each None where it is not said; empty without one."""
    said = read_json(root / REPORT)
    if not isinstance(said, dict):
        return {}
    dataset, crop_size = said.get("dataset"), said.get("crop_size")
    known = dataset in DATASETS, isinstance(crop_size, int) and crop_size > 0
    return {"dataset": dataset if known[0] else None, "crop_size": crop_size if known[1] else None}


def data_name(dataset: str, root: Path | str) -> str:
    """What data are called: a published data set by its name, one's own by their folder's."""
    return Path(root).resolve().name or OWN if dataset == OWN else dataset
