"""Which annotation formats there are: what their files are called, and who reads them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from datasets.raw import exports
from datasets.raw.grids import STORED, UPRIGHT
from datasets.raw.lines import read_xy, read_yolo
from datasets.raw.marks import Annotated, Request
from datasets.raw.mat_file import read_points_mat
from datasets.raw.tables import read_csv
from datasets.raw.via import read_via


class Format(NamedTuple):
    """One format; ``files`` are "each" (one an image), "all" (one for many) or "both"."""

    suffixes: tuple[str, ...]
    files: str
    read: Callable[[Path, Request], dict[str, Annotated]]
    grid: str = UPRIGHT  # in which annotations are taken as made where nothing tells


FORMATS = {
    "csv": Format((".csv", ".tsv"), "both", read_csv),
    "json": Format((".json",), "both", exports.read_points_json),
    "coco": Format((".json",), "all", exports.read_coco),
    "yolo": Format((".txt",), "each", read_yolo),
    "labelme": Format((".json",), "each", exports.read_labelme),
    "via": Format((".json", ".csv"), "all", read_via),
    "cvat": Format((".xml",), "all", exports.read_cvat),
    "labelstudio": Format((".json",), "all", exports.read_labelstudio),
    "xy": Format((".txt",), "each", read_xy),
    "pnt": Format((".pnt",), "all", exports.read_pnt),
    "mat": Format((".mat",), "each", read_points_mat, STORED),
}
