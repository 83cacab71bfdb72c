"""What ``dataset_report.json`` says of a prepared folder, for those who go on with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from utils.files import read_json

REPORT = "dataset_report.json"
OWN = "own"  # in the place of a published data set's name
DATASETS = ("qnrf", "jhu", "nwpu", "sha", "shb", "ucf50", OWN)


def read_report(root: Path) -> dict[str, Any]:
    """The report, of which ``dataset``, one of ``DATASETS``, and ``crop_size`` matter to others; empty without one."""
    return read_json(root / REPORT, {})


def data_name(dataset: str, root: Path | str) -> str:
    """What data are called: a published data set by its name, one's own by their folder's."""
    return Path(root).resolve().name or OWN if dataset == OWN else dataset
