"""One page that shows what a trained model counts: a self-contained HTML file made of the results that test.py writes.

    python -m utils.evaluation.report RESULTS                 one evaluation: RESULTS/report.html
    python -m utils.evaluation.report RESULTS OTHER [...]     the same images counted by several models: comparison.html

A results folder holds ``summary.json`` (totals and how they came about) and ``report_data.jsonl`` (one ``report_line`` an
image).
"""

from __future__ import annotations

import argparse
import base64
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from utils.cli import run_script
from utils.evaluation.page import plain, write_page
from utils.evaluation.report_sections import Image as Counted
from utils.evaluation.report_sections import Report, sections, subtitle
from utils.evaluation.scores import paired_difference

PHOTO_SIDE, LEAST_PHOTO_SIDE = 640, 240  # pixels
PHOTO_QUALITY = 70
PHOTOGRAPHS_BYTES = 80_000_000  # all of a page: what a browser opens in a few seconds, and a phone at all
FIELDS = {
    "image": str,
    "width": int,
    "height": int,
    "predicted": (int, float),
    "photo": str,
    "density": str,
    "density_max": (int, float),
    "points": (list, type(None)),
    "heads": (list, type(None)),
}
SUMMARY_FIELDS = {"failed": list, "bins": list, "localisation": dict, "model": dict, "weights_sha256": str}
DATA = "report_data.jsonl"
_AGAIN = "run test.py --out again"


class Line(NamedTuple):
    """What the line of an image in ``report_data.jsonl`` says, and where it begins; ``truth`` is None without annotation."""

    truth: int | None
    predicted: float
    width: int  # pixels
    height: int
    start: int


class Results(NamedTuple):
    """One results folder; its images in the order of evaluation."""

    folder: Path
    summary: dict[str, Any]
    lines: dict[str, Line]


def report_line(
    name: str,
    image: np.ndarray,
    density: np.ndarray,
    points: np.ndarray | None,
    heads: np.ndarray | None,
    predicted: float,
) -> str:
    """One line of ``report_data.jsonl``, without its newline.

    ``image`` uint8 [H, W, 3]; ``density`` [h, w], objects a cell; ``points`` (truth; None: nobody annotated the image) and
    ``heads`` (localised; None: nobody looked for them) [N, 2] or wider, (x, y) in pixels of the image; ``predicted``: the
    count. The photograph is stored as a JPEG of at most 640 pixels a side (a page of very many shrinks them further), the
    density in 256 steps of its largest value. Raises ``ValueError`` for arrays of another shape.
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
        "predicted": round(predicted, 4),
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
    labels = _labels(folders)
    images = []
    for index, name in enumerate(names):
        line, *_ = lines = [part.lines[name] for part in results]
        predicted = [other.predicted for other in lines]
        images.append(Counted(index, name, line.width, line.height, line.truth, predicted))
    paired = [_paired_difference(images, other) for other in range(1, len(results))]
    report = Report(labels, [part.summary for part in results], images, paired, left_out)
    # A photograph's bytes grow about with its area.
    side = int(PHOTO_SIDE * min(1, PHOTOGRAPHS_BYTES / max((results[0].folder / DATA).stat().st_size, 1)) ** 0.5)
    parts = sections(report, lambda image: _view(image, results, labels, max(side, LEAST_PHOTO_SIDE)))
    title = (" and " if len(labels) == 2 else ", ").join(labels)
    write_page(out, "report", title, subtitle(report), parts, script="report.js")


def _labels(folders: Sequence[Path]) -> list[str]:
    short = [Path(folder).resolve().name for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]


def _view(image: Counted, results: Sequence[Results], labels: Sequence[str], side: int) -> tuple[str, dict[str, Any]]:
    """The photograph of an image, and what is drawn on it and beside it."""
    lines = [_read_line(part.folder / DATA, part.lines[image.name].start) for part in results]
    per_result = [
        {"label": plain(label), **{key: line.get(key) for key in ("density", "density_max", "heads")}}
        for label, line in zip(labels, lines)
    ]
    photo = lines[0]["photo"]
    if side < PHOTO_SIDE:
        try:
            photo = _photograph(Image.open(io.BytesIO(base64.b64decode(photo))), side)
        except (ValueError, OSError) as error:
            path = results[0].folder / DATA
            raise ValueError(f"{path}: the photo of {image.name!r} is not readable ({error}); {_AGAIN}") from None
    size = {"width": image.width, "height": image.height}
    return photo, {**size, "points": lines[0].get("points"), "results": per_result}


def _read_results(folder: Path) -> Results:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; pass a folder that test.py --out wrote")
    return Results(folder, _read_json(folder / "summary.json"), _index_lines(folder / DATA))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        summary = _parse(_read(path, Path.read_bytes))
    except ValueError as error:
        raise ValueError(f"{path}: not readable as JSON ({error}); {_AGAIN}") from None
    if not isinstance(summary, dict):
        raise ValueError(f"{path}: holds no JSON object; {_AGAIN}")
    for key, kind in SUMMARY_FIELDS.items():
        if not isinstance(summary.get(key), kind | None):
            raise ValueError(f"{path}: {key} is of another type than test.py writes; {_AGAIN}")
    if not all(
        isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) for pair in summary.get("failed") or ()
    ):
        raise ValueError(f"{path}: failed must be a list of [name, reason]; {_AGAIN}")
    return summary


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
            truth = None if entry["points"] is None else len(entry["points"])
            lines[entry["image"]] = Line(truth, entry["predicted"], entry["width"], entry["height"], start)
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
        common = first.lines.keys() & other.lines.keys()
        only = [len(part.lines.keys() - common - failed) for part in (first, other)]
        if any(only) or not common:
            raise ValueError(
                f"{other.folder}: not the images of {first.folder}: {len(common)} in common, {only[0]} only in the first, "
                f"{only[1]} only in the other; compare evaluations of the same split"
            )
        for name in sorted(common):
            truths = first.lines[name].truth, other.lines[name].truth
            if truths[0] != truths[1]:
                raise ValueError(
                    f"{other.folder}: {name!r} has the truth {truths[1]}, in {first.folder} it is {truths[0]}; "
                    "compare evaluations of the same annotations"
                )
    names = [name for name in first.lines if all(name in part.lines for part in results)]
    return names, sorted({name for part in results for name in part.lines} - set(names))


def _paired_difference(images: Sequence[Counted], other: int) -> dict[str, Any]:
    """How much larger the other's errors are than the first's, over the annotated images."""
    errors = [[image.error(result) for result in (0, other)] for image in images if image.truth is not None]
    return paired_difference(np.array(errors)) if errors else {"images": 0}  # [images, 2]


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
