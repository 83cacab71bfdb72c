"""One page that shows what a trained model counts: a self-contained HTML file made of the results that test.py writes.

    python -m utils.evaluation.report RESULTS                 one evaluation: RESULTS/report.html
    python -m utils.evaluation.report RESULTS OTHER [...]     the same images counted by several models: comparison.html

A results folder holds ``results.csv`` (one row an image), ``summary.json`` (totals and how they came about) and
``report_data.jsonl`` (one ``report_line`` an image). The page's markup, style and behaviour are the files in report_page/.
"""

from __future__ import annotations

import argparse
import base64
import csv
import functools
import hashlib
import html
import io
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from utils.cli import run_script
from utils.evaluation.scores import paired_difference
from utils.files import atomic_write

COLUMNS = ("image", "truth", "predicted", "error", "relative_error", "seconds", "width", "height")
PHOTO_SIDE, LEAST_PHOTO_SIDE = 640, 240  # pixels
PHOTO_QUALITY = 70
PHOTOGRAPHS_BYTES = 80_000_000  # all of a page: what a browser opens in a few seconds, and a phone at all
FIELDS = {
    "image": str,
    "photo": str,
    "density": str,
    "density_max": (int, float),
    "points": (list, type(None)),
    "heads": (list, type(None)),
}
DATA = "report_data.jsonl"
_PAGE = Path(__file__).with_name("report_page")
_SCRIPTS = ("script.js", "totals.js", "table.js", "plots.js", "viewer.js")
_AGAIN = "run test.py --out again"


class Row(NamedTuple):
    """One image of ``results.csv``; sizes in pixels, ``truth`` is None where nobody annotated it."""

    truth: float | None
    predicted: float
    width: int
    height: int


class Line(NamedTuple):
    """Where the line of an image begins in ``report_data.jsonl``, and the size of its encoded photograph."""

    start: int
    photo_bytes: int


class Results(NamedTuple):
    """One results folder."""

    folder: Path
    summary: dict[str, Any]
    rows: dict[str, Row]
    lines: dict[str, Line]


def report_line(
    name: str, image: np.ndarray, density: np.ndarray, points: np.ndarray | None, heads: np.ndarray | None
) -> str:
    """One line of ``report_data.jsonl``, without its newline.

    ``image`` uint8 [H, W, 3]; ``density`` [h, w], objects a cell; ``points`` (truth; None: nobody annotated the image) and
    ``heads`` (localised; None: nobody looked for them) [N, 2] or wider, (x, y) in pixels of the image. The photograph is
    stored as a JPEG of at most 640 pixels a side (a page of very many shrinks them further), the density in 256 steps of
    its largest value. Raises ``ValueError`` for arrays of another shape.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(f"{name}: image is {image.dtype} {list(image.shape)}, must be uint8 [H, W, 3]")
    if density.ndim != 2 or density.size == 0 or not np.isfinite(density).all():
        raise ValueError(f"{name}: density has shape {list(density.shape)}, must be [h, w] of finite numbers")
    highest = max(float(density.max()), 0.0)
    grey = np.rint(np.clip(density, 0, None) * (255 / highest if highest else 0)).astype(np.uint8)
    line = {
        "image": name,
        "width": image.shape[1],
        "height": image.shape[0],
        "photo": _photograph(Image.fromarray(image), PHOTO_SIDE),
        "density": _encoded(Image.fromarray(grey), "PNG", optimize=True),
        "density_max": highest,
        "points": _pairs(name, "points", points),
        "heads": _pairs(name, "heads", heads),
    }
    return json.dumps(line, separators=(",", ":"), allow_nan=False)


def _photograph(photo: Image.Image, longest_side: int) -> str:
    photo.thumbnail((longest_side, longest_side), Image.Resampling.BILINEAR)
    return _encoded(photo, "JPEG", quality=PHOTO_QUALITY, optimize=True)


def _encoded(picture: Image.Image, form: str, **options) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return base64.b64encode(buffer.getvalue()).decode()


def _pairs(name: str, what: str, positions: np.ndarray | None) -> list[list[float]] | None:
    if positions is None:
        return None
    positions = np.asarray(positions, np.float64)
    if positions.size == 0:
        return []
    if positions.ndim != 2 or positions.shape[1] < 2 or not np.isfinite(positions).all():
        raise ValueError(f"{name}: {what} have shape {list(positions.shape)}, must be [N, 2] of finite numbers")
    return positions[:, :2].round(1).tolist()


def write_report(folders: Sequence[Path], out: Path) -> None:
    """Write the page for one results folder, or one that compares several, to ``out``; the same input gives the same bytes.

    Several folders must hold the same images with the same truth; an image that failed in one of them is left out. Raises
    ``FileNotFoundError`` or ``ValueError`` with the file's name for input that is missing or broken.
    """
    results = [_read_results(Path(folder)) for folder in folders]
    names, left_out = _common_images(results)
    report = {
        "results": [
            {"label": label, "summary": part.summary} for label, part in zip(_labels(folders), results, strict=True)
        ],
        "images": [_index_row(name, results) for name in names],
        "paired": [_paired_difference(names, results[0], other) for other in results[1:]],
        "left_out": left_out,
    }
    # A photograph's bytes grow about with its area.
    photo_bytes = sum(results[0].lines[name].photo_bytes for name in names)
    photo_side = int(PHOTO_SIDE * min(1, PHOTOGRAPHS_BYTES / max(photo_bytes, 1)) ** 0.5)
    head, tail = _page(" and ".join(entry["label"] for entry in report["results"]), report)
    with atomic_write(out) as partial, partial.open("w", encoding="utf-8", newline="\n") as page:
        page.write(head)
        for index, name in enumerate(names):
            data = _embed(_image(name, results, photo_side))
            page.write(f'<script type="application/json" id="image-{index}">{data}</script>\n')
        page.write(tail)


def _labels(folders: Sequence[Path]) -> list[str]:
    short = [Path(folder).resolve().name for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]


def _index_row(name: str, results: Sequence[Results]) -> list[Any]:
    row = results[0].rows[name]
    return [name, row.width, row.height, row.truth, [part.rows[name].predicted for part in results]]


def _image(name: str, results: Sequence[Results], photo_side: int) -> dict[str, Any]:
    lines = [_read_line(part.folder / DATA, part.lines[name].start) for part in results]
    per_result = [{key: line.get(key) for key in ("density", "density_max", "heads")} for line in lines]
    photo = lines[0]["photo"]
    if photo_side < PHOTO_SIDE:
        try:
            photo = _photograph(Image.open(io.BytesIO(base64.b64decode(photo))), max(photo_side, LEAST_PHOTO_SIDE))
        except (ValueError, OSError) as error:
            path = results[0].folder / DATA
            raise ValueError(f"{path}: the photo of {name!r} is not readable ({error}); {_AGAIN}") from None
    return {"photo": photo, "points": lines[0].get("points"), "results": per_result}


def _page(title: str, report: Mapping[str, Any]) -> list[str]:
    """What stands before and after the images."""
    from plotly.offline import get_plotlyjs  # here, since report_line must work where nothing is drawn

    # A carriage return would become a newline in the browser, and the script would no longer match its hash.
    plotly = re.sub(r"\r\n?", "\n", get_plotlyjs())
    script = '(() => {\n"use strict";\n' + "".join(_source(name) for name in _SCRIPTS) + "})();\n"
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (plotly, script)]
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    parts = {
        "title": html.escape(title),
        # Only these two scripts may run and nothing may be fetched, whatever an image is called.
        "policy": f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src {allowed}",
        "style": _source("style.css"),
        "plotly": plotly,
        "script": script,
        "report": _embed(report),
    }
    halves = _source("template.html").split("%%images%%")
    return [re.sub(r"%%(\w+)%%", lambda marker: parts[marker[1]], half) for half in halves]


@functools.cache
def _source(name: str) -> str:
    return (_PAGE / name).read_text(encoding="utf-8")


def _embed(value: Any) -> str:
    """JSON for a script element: without "<" neither an end tag nor a comment can begin in it."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _read_results(folder: Path) -> Results:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; pass a folder that test.py --out wrote")
    summary = _read_json(folder / "summary.json")
    rows = _read_rows(folder / "results.csv")
    lines = _index_lines(folder / DATA)
    lost = rows.keys() - lines.keys()
    if lost:
        missing = f"{len(lost)} of the {len(rows)} images of results.csv, {min(lost)!r} for one"
        raise ValueError(f"{folder / 'report_data.jsonl'}: lacks {missing}; {_AGAIN}")
    return Results(folder, summary, rows, lines)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        summary = _parse(_read(path, Path.read_bytes))
    except ValueError as error:
        raise ValueError(f"{path}: not readable as JSON ({error}); {_AGAIN}") from None
    if not isinstance(summary, dict):
        raise ValueError(f"{path}: holds no JSON object; {_AGAIN}")
    failed = summary.get("failed") or []
    if not isinstance(failed, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) for pair in failed
    ):
        raise ValueError(f"{path}: failed must be a list of [name, reason]; {_AGAIN}")
    return summary


def _read_rows(path: Path) -> dict[str, Row]:
    rows: dict[str, Row] = {}
    try:
        text = _read(path, Path.read_bytes).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error}); {_AGAIN}") from None
    table = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        if missing := [name for name in COLUMNS if name not in (table.fieldnames or ())]:
            raise ValueError(f"{path}: lacks the columns {', '.join(missing)}; {_AGAIN}")
        for entry in table:
            row = _row(f"{path}, line {table.line_num}", entry)
            if entry["image"] in rows:
                raise ValueError(f"{path}, line {table.line_num}: {entry['image']!r} stands there twice; {_AGAIN}")
            rows[entry["image"]] = row
    except csv.Error as error:
        raise ValueError(f"{path}, line {table.line_num}: not readable as CSV ({error}); {_AGAIN}") from None
    return rows


def _row(where: str, entry: Mapping[str, str | None]) -> Row:
    def number(column: str) -> float:
        try:
            value = float(entry[column] or "")
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(f"{where}: {column} is {entry[column]!r}, must be a number; {_AGAIN}")
        return value

    truth = number("truth") if entry["truth"] else None
    return Row(truth, number("predicted"), int(number("width")), int(number("height")))


def _index_lines(path: Path) -> dict[str, Line]:
    lines: dict[str, Line] = {}
    with _read(path, lambda file: file.open("rb")) as data:
        start = 0
        for number, line in enumerate(data, 1):
            where = f"{path}, line {number}"
            try:
                entry = _parse(line)
            except ValueError:
                raise ValueError(f"{where}: not readable as JSON; {_AGAIN}") from None
            wrong = [
                key
                for key, kind in FIELDS.items()
                if not isinstance(entry, dict) or not isinstance(entry.get(key), kind)
            ]
            if wrong:
                raise ValueError(f"{where}: {', '.join(wrong)}: missing or of another type; {_AGAIN}")
            lines[entry["image"]] = Line(start, len(entry["photo"]))
            start += len(line)
    return lines


def _read_line(path: Path, start: int) -> dict[str, Any]:
    with path.open("rb") as data:
        data.seek(start)
        return _parse(data.readline())


def _parse(text: bytes) -> Any:
    # Browsers know no NaN and no infinity: such a number counts as absent.
    return json.loads(text, parse_constant=lambda _: None)


def _read(path: Path, reader: Callable[[Path], Any]) -> Any:
    try:
        return reader(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file; {_AGAIN}") from None


def _common_images(results: Sequence[Results]) -> tuple[list[str], list[str]]:
    """The images of all results in the first one's order, and those that are left out since they failed somewhere."""
    failed = {name for part in results for name, _ in part.summary.get("failed") or ()}
    first = results[0]
    for other in results[1:]:
        common = first.rows.keys() & other.rows.keys()
        only = [len(part.rows.keys() - common - failed) for part in (first, other)]
        if any(only) or not common:
            raise ValueError(
                f"{other.folder}: not the images of {first.folder}: {len(common)} in common, {only[0]} only in the first, "
                f"{only[1]} only in the other; compare evaluations of the same split"
            )
        for name in sorted(common):
            truths = first.rows[name].truth, other.rows[name].truth
            if truths[0] != truths[1]:
                raise ValueError(
                    f"{other.folder}: {name!r} has the truth {truths[1]}, in {first.folder} it is {truths[0]}; "
                    "compare evaluations of the same annotations"
                )
    names = [name for name in first.rows if all(name in part.rows for part in results)]
    return names, sorted({name for part in results for name in part.rows} - set(names))


def _paired_difference(names: Sequence[str], first: Results, other: Results) -> dict[str, Any]:
    """How much larger the other's errors are, over the annotated images."""
    scored = [(first.rows[name], other.rows[name]) for name in names if first.rows[name].truth is not None]
    errors = np.array([[row.predicted - row.truth for row in pair] for pair in scored])  # [images, 2]
    return paired_difference(errors) if scored else {"images": 0}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m utils.evaluation.report", description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULTS", help="folder that test.py --out wrote")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the page (RESULTS/report.html; several: comparison.html)"
    )
    args = parser.parse_args()
    out = args.out or (args.results[0] / "report.html" if len(args.results) == 1 else Path("comparison.html"))
    write_report(args.results, out)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB; open it in a browser")


if __name__ == "__main__":
    run_script(main)
