"""One page that shows what a trained model counts: a self-contained HTML file made of the results that test.py writes.

    python -m utils.evaluation.report RESULTS                 one evaluation: RESULTS/report.html
    python -m utils.evaluation.report RESULTS OTHER [...]     the same images counted by several models: comparison.html

A results folder holds ``summary.json`` (totals and how they came about) and ``report_data.jsonl`` (one ``report_line`` an
image). Python reckons what needs statistics; plots, list and views are drawn by ``page_files/report.js`` from the lines.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from utils.cli import run_script
from utils.evaluation.page import NONE, encoded, number, write_page
from utils.evaluation.scores import count_scores, paired_difference
from utils.evaluation.windows import Result

PHOTO_SIDE = 640  # pixels
MANY, SMALL_SIDE = 1000, 320  # a page of more images has smaller photographs: at 100 MB browsers become slow
BAR = 84  # pixels
METRICS = {
    "mae": ("MAE", "mean absolute error"),
    "mse": ("MSE (root)", "root mean squared error"),
    "nae": ("NAE", "mean of error / truth"),
}


class Results(NamedTuple):
    """One results folder."""

    folder: Path
    summary: dict[str, Any]
    lines: dict[
        str, dict[str, Any]
    ]  # of report_data.jsonl by image, in the order of evaluation, with the ``truth`` or None


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
    density in 256 steps of its largest value.
    """
    highest = max(float(density.max()), 0.0)
    grey = np.rint(np.clip(density, 0, None) * (255 / highest if highest else 0)).astype(np.uint8)
    line = {
        "image": name,
        "width": image.shape[1],
        "height": image.shape[0],
        "predicted": round(predicted, 4),
        "photo": _photograph(Image.fromarray(image), PHOTO_SIDE),
        "density": encoded(Image.fromarray(grey), "PNG"),
        "density_max": highest,
        "points": _pairs(points),
        "heads": _pairs(heads),
    }
    return json.dumps(line, separators=(",", ":"), allow_nan=False)


def _photograph(photo: Image.Image, longest_side: int) -> str:
    photo.thumbnail((longest_side, longest_side), Image.Resampling.BILINEAR)
    return encoded(photo, "JPEG", quality=70)


def _pairs(positions: np.ndarray | None) -> list[list[float]] | None:
    if positions is None:
        return None
    return np.asarray(positions, np.float64)[:, :2].round(1).tolist() if len(positions) else []


def write_report(folders: Sequence[Path], out: Path) -> None:
    """Write the page for one results folder, or one that compares several, to ``out``; the same input gives the same bytes.

    Several folders must hold the same images with the same truth; an image that failed in one of them is left out. Raises
    ``FileNotFoundError`` or ``ValueError`` with the file's name for input that is missing or broken.
    """
    results = [_read_results(Path(folder)) for folder in folders]
    names, left_out = _common_images(results)
    labels = [part.folder.resolve().name for part in results]
    labels = labels if len(set(labels)) == len(labels) else [str(part.folder) for part in results]
    lines = [[part.lines[name] for name in names] for part in results]
    truth = np.array([line["truth"] for line in lines[0]], np.float64)  # NaN: not annotated
    predicted = np.array([[line["predicted"] for line in some] for some in lines])
    scored = ~np.isnan(truth)
    errors = (predicted - truth)[:, scored]
    scores = [count_scores(list(map(Result, names, truth, some))) for some in predicted]
    summaries = [part.summary for part in results]
    write_page(
        out,
        "report.html",
        "report.js",
        title=(" and " if len(labels) == 2 else ", ").join(labels),
        labels=labels,
        names=names,
        left_out=left_out,
        summaries=summaries,
        metrics=METRICS,
        scores=scores,
        scored=scored.any(),
        predicted=predicted[0, scored | ~scored.any()].sum(),
        truth=truth[scored].sum(),
        compared=_comparison(labels, scores, errors),
        tables=[_errors_by_count(labels, scores), _localisation(labels, summaries)],
        failures=[(*failure, label) for label, part in zip(labels, summaries) for failure in part["failed"]],
        images=_images(lines),
        details=_details(summaries),
    )


def _read_results(folder: Path) -> Results:
    """What a folder holds. Raises ``ValueError`` where a file is not as ``test.py`` writes it."""
    place, lines = folder / "summary.json", {}
    try:
        summary = json.loads(place.read_bytes())
        summary["failed"] = [(name, reason) for name, reason in summary["failed"]]
        summary["weights"] = summary["weights_sha256"][:8]
        summary["details"] = {key: dict(_leaves(summary[key])) for key in ("model", "configuration", "versions")}
        place = folder / "report_data.jsonl"
        with place.open("rb") as data:
            for text in data:
                line = json.loads(text)
                line["truth"] = None if line["points"] is None else len(line["points"])
                lines[line["image"]] = line
    except FileNotFoundError:
        raise FileNotFoundError(f"{place}: no such file; pass a folder that test.py --out wrote") from None
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{place}: not as test.py writes it ({reason}); run test.py --out again") from None
    return Results(folder, summary, lines)


def _common_images(results: Sequence[Results]) -> tuple[list[str], list[str]]:
    """The images of all results in the first one's order, and those that are left out since they failed somewhere."""
    failed = {name for part in results for name, _ in part.summary["failed"]}
    truths = [{name: line["truth"] for name, line in part.lines.items() if name not in failed} for part in results]
    for part, truth in zip(results, truths):
        if different := sorted(name for name, _ in truth.items() ^ truths[0].items()):
            raise ValueError(
                f"{part.folder}: {different[0]!r} is only in it or only in {results[0].folder}, or has another number of "
                "annotations there; compare evaluations of the same images and annotations"
            )
    return list(truths[0]), sorted(failed.intersection(name for part in results for name in part.lines))


def _comparison(labels: Sequence[str], scores: Sequence[dict[str, Any]], errors: np.ndarray) -> list[list[str]]:
    """Rows of a table: the metrics of each result and, from errors [R, N], how much worse it is than the first."""

    def interval(entry: dict[str, float], sign: bool = False) -> str:
        value, low, high = (number(entry[key], sign=sign) for key in ("value", "low", "high"))
        return f"{value} ({low} to {high})"

    if not errors.size:
        return []
    rows = []
    for label, score, own in zip(labels, scores, errors):
        pair = paired_difference(np.stack([errors[0], own], axis=1))
        better = labels[0] if pair["mae"]["low"] > 0 else label if pair["mae"]["high"] < 0 else "no clear difference"
        metrics = [interval(score[name]) if score[name] else NONE for name in METRICS]
        rows.append([label, *metrics, interval(pair["mae"], sign=True), interval(pair["mse"], sign=True), better])
    rows[0][-3:] = NONE, NONE, NONE  # compared with itself
    return rows


def _errors_by_count(labels: Sequence[str], scores: Sequence[dict[str, Any]]) -> tuple[str, str, list[str], list[list]]:
    """Title, note, head and rows of a table; the MAE with a bar."""
    single, levels = len(labels) == 1, list(zip(*(score["bins"] for score in scores)))
    highest = max(part["mae"] or 0 for level in levels for part in level) or 1
    rows = []
    for level in levels:
        start, end, images = (level[0][key] for key in ("from", "to", "images"))
        span = f"{start:,} +" if end is None else f"{start:,}{NONE}{end:,}"
        bars = [(number(part["mae"]), round(BAR * (part["mae"] or 0) / highest)) for part in level]
        rows.append([span, f"{images:,}", *bars, *([number(level[0]["mse"])] if single else [])])
    head = ["Count", "Images", *(["MAE", "MSE (root)"] if single else [f"MAE, {label}" for label in labels])]
    shown = rows if scores[0]["scored"] else []
    return "Errors by count", "Images grouped by how many objects are annotated.", head, shown


def _localisation(
    labels: Sequence[str], summaries: Sequence[dict[str, Any]]
) -> tuple[str, str, list[str], list[list[str]]]:
    """Title, note, head and rows of a table."""
    rows = []
    for radius in filter(
        str.isdecimal, summaries[0].get("localisation") or {}
    ):  # older files hold another protocol too
        place = f"within {radius} px"
        for label, summary in zip(labels, summaries):
            shares = (summary.get("localisation") or {}).get(radius, {})
            values = [shares.get(name) for name in ("precision", "recall", "f1")]
            cells = [number(None if value is None else 100 * value, 1) for value in values]
            rows.append([place if len(labels) == 1 else f"{label}, {place}", *cells])
    return "Localisation", "Heads found one to one, in per cent.", ["", "Precision", "Recall", "F1"], rows


def _details(summaries: Sequence[dict[str, Any]]) -> dict[str, list[list[str]]]:
    """By title the rows of a table: a name and what each summary has there."""
    tables = {}
    for title in summaries[0]["details"]:
        columns = [summary["details"][title] for summary in summaries]
        names = dict.fromkeys(name for column in columns for name in column)
        tables[title] = [[name, *(column.get(name, NONE) for column in columns)] for name in names]
    return tables


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of JSON by the names that lead to them."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _leaves(part, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, value if isinstance(value, str) else json.dumps(value)


def _images(lines: Sequence[Sequence[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """What the page's script draws of each image: the line of the first of the results, and of all what the network found."""
    for first, *others in zip(*lines):
        if len(lines[0]) > MANY:
            first["photo"] = _photograph(Image.open(io.BytesIO(base64.b64decode(first["photo"]))), SMALL_SIDE)
        found = [
            {key: line[key] for key in ("predicted", "density", "density_max", "heads")} for line in (first, *others)
        ]
        yield {**{key: first[key] for key in ("image", "width", "height", "photo", "points")}, "results": found}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m utils.evaluation.report", description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", type=Path, metavar="RESULTS", help="folder that test.py --out wrote")
    help = "the page (RESULTS/report.html; several: comparison.html)"
    parser.add_argument("--out", type=Path, metavar="FILE", help=help)
    args = parser.parse_args()
    out = args.out or (args.results[0] / "report.html" if len(args.results) == 1 else Path("comparison.html"))
    write_report(args.results, out)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB; open it in a browser")


if __name__ == "__main__":
    run_script(main)
