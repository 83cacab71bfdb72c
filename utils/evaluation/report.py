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
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from utils.cli import run_script
from utils.evaluation.page import plain, write_page
from utils.evaluation.report_sections import FILTERS, Report, content

PHOTO_SIDE, LEAST_PHOTO_SIDE = 640, 240  # pixels
PHOTOGRAPHS_BYTES = 80_000_000  # all of a page: what a browser opens in a few seconds, and a phone at all
DATA = "report_data.jsonl"
FIELDS = {"image": str, "width": int, "height": int, "predicted": (int, float), "photo": str, "density": str}
FIELDS |= {"density_max": (int, float), "points": (list, type(None)), "heads": (list, type(None))}


class Line(NamedTuple):
    """What the line of an image in ``report_data.jsonl`` says; ``truth`` is NaN without annotation."""

    truth: float
    predicted: float
    size: tuple[int, int]  # width and height, pixels
    text: bytes  # all of it, which is much: photograph and density


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
        "density": _encoded(Image.fromarray(grey), "PNG"),
        "density_max": highest,
        "points": _pairs(points),
        "heads": _pairs(heads),
    }
    return json.dumps(line, separators=(",", ":"), allow_nan=False)


def _photograph(photo: Image.Image, longest_side: int) -> str:
    photo.thumbnail((longest_side, longest_side), Image.Resampling.BILINEAR)
    return _encoded(photo, "JPEG", quality=70)


def _encoded(picture: Image.Image, form: str, **options: Any) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, form, optimize=True, **options)
    return base64.b64encode(buffer.getvalue()).decode()


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
    sizes, truth = (
        np.array([line.size for line in lines[0]]).reshape(-1, 2),
        np.array([line.truth for line in lines[0]]),
    )
    predicted = np.array([[line.predicted for line in some] for some in lines])
    # A photograph's bytes grow about with its area.
    share = PHOTOGRAPHS_BYTES / max((results[0].folder / DATA).stat().st_size, 1)
    side = max(int(PHOTO_SIDE * min(1, share) ** 0.5), LEAST_PHOTO_SIDE)
    report = Report(labels, [part.summary for part in results], names, sizes, truth, predicted, left_out)
    views = (_view(labels, [json.loads(line.text) for line in some], side) for some in zip(*lines))
    title = (" and " if len(labels) == 2 else ", ").join(labels)
    write_page(out, "report.html", ("page.js", "report.js"), FILTERS, title=title, views=views, **content(report))


def _view(labels: Sequence[str], lines: Sequence[dict[str, Any]], side: int) -> tuple[str, dict[str, Any]]:
    """The photograph of an image, and what is drawn on it and beside it."""
    results = [
        {"label": plain(label), **{key: line[key] for key in ("density", "density_max", "heads")}}
        for label, line in zip(labels, lines)
    ]
    photo = lines[0]["photo"]
    if side < PHOTO_SIDE:
        photo = _photograph(Image.open(io.BytesIO(base64.b64decode(photo))), side)
    return photo, {**{key: lines[0][key] for key in ("width", "height", "points")}, "results": results}


def _read_results(folder: Path) -> Results:
    """What a folder holds. Raises ``ValueError`` where a file is not as ``test.py`` writes it."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; pass a folder that test.py --out wrote")
    place, lines = folder / "summary.json", {}
    try:
        summary = _summary(json.loads(place.read_bytes()))
        with (folder / DATA).open("rb") as data:
            for number, text in enumerate(data, 1):
                place = f"{folder / DATA}, line {number}"
                line = json.loads(text)
                if wrong := [key for key, kind in FIELDS.items() if not isinstance(line[key], kind)]:
                    raise TypeError(f"{', '.join(wrong)}: of another type")
                truth = math.nan if line["points"] is None else len(line["points"])
                lines[line["image"]] = Line(truth, line["predicted"], (line["width"], line["height"]), text)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error.filename}: no such file; run test.py --out again") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{place}: not as test.py writes it ({reason}); run test.py --out again") from None
    return Results(folder, summary, lines)


def _summary(said: dict[str, Any]) -> dict[str, Any]:
    """What the page shows of a ``summary.json`` beside the counts' errors, which it computes itself."""
    model, weights, card = said["model"] or {}, said["weights_sha256"], said.get("model_card")
    details = {"Model": {**model, "weights_sha256": weights}, "Configuration": said["configuration"]}
    return {
        "failed": [(str(name), str(reason)) for name, reason in said["failed"]],
        "places": {
            "mean, 1 to 100 px" if key == "qnrf" else f"within {key} px": {**shares}
            for key, shares in (said.get("localisation") or {}).items()
        },
        "model": f"{model.get('name') or model.get('model_name')}, weights {weights[:8]}",
        # A path beside the page, and no address of a script: what a summary says is not to be trusted.
        "card": card if isinstance(card, str) and re.fullmatch(r"[^:]+\.md", card) else None,
        "speed": float(said.get("images_per_second") or 0),
        "details": {title: _leaves(part) for title, part in {**details, "Versions": said["versions"]}.items()},
    }


def _leaves(value: Any, prefix: str = "") -> dict[str, str]:
    """The leaves of JSON by the names that lead to them."""
    if not isinstance(value, dict):
        return {prefix: value if isinstance(value, str) else json.dumps(value)}
    parts = [_leaves(part, f"{prefix}.{key}" if prefix else key) for key, part in value.items()]
    return {name: text for part in parts for name, text in part.items()}


def _common_images(results: Sequence[Results]) -> tuple[list[str], list[str]]:
    """The images of all results in the first one's order, and those that are left out since they failed somewhere."""
    failed = {name for part in results for name, _ in part.summary["failed"]}
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
            if not np.array_equal(*truths, equal_nan=True):
                raise ValueError(
                    f"{other.folder}: {name!r} has the truth {truths[1]}, in {first.folder} it is {truths[0]}; "
                    "compare evaluations of the same annotations"
                )
    names = [name for name in first.lines if all(name in part.lines for part in results)]
    return names, sorted({name for part in results for name in part.lines} - set(names))


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
