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
from utils.evaluation.page import FLOOR, NONE, PERCENT, axis, figure, log_axis, number, plain, write_page
from utils.evaluation.scores import count_scores, paired_difference
from utils.evaluation.windows import Result

PHOTO_SIDE, LEAST_PHOTO_SIDE = 640, 240  # pixels
PHOTOGRAPHS_BYTES = 80_000_000  # all of a page: what a browser opens in a few seconds, and a phone at all
DATA = "report_data.jsonl"
METRICS = {
    "mae": ("MAE", "mean absolute error"),
    "mse": ("MSE (root)", "root mean squared error"),
    "nae": ("NAE", "mean of error / truth"),
}
ENDS = ("low", "value", "high")


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
    sizes = np.array([line.size for line in lines[0]]).reshape(-1, 2)
    truth = np.array([line.truth for line in lines[0]])
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
                truth = math.nan if line["points"] is None else len(line["points"])
                lines[line["image"]] = Line(truth, line["predicted"], (line["width"], line["height"]), text)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error.filename}: no such file; run test.py --out again") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{place}: not as test.py writes it ({reason}); run test.py --out again") from None
    return Results(folder, summary, lines)


def _summary(summary: dict[str, Any]) -> dict[str, Any]:
    """What the page shows of a ``summary.json`` beside the counts' errors, which it computes itself."""
    model, weights, card = summary["model"] or {}, summary["weights_sha256"], summary.get("model_card")
    details = {"Model": {**model, "weights_sha256": weights}, "Configuration": summary["configuration"]}
    return {
        "failed": [(name, reason) for name, reason in summary["failed"]],
        "places": {
            "mean, 1 to 100 px" if key == "qnrf" else f"within {key} px": {**shares}
            for key, shares in (summary.get("localisation") or {}).items()
        },
        "model": f"{model.get('name') or model.get('model_name')}, weights {weights[:8]}",
        # A path beside the page, and no address of a script: what a summary says is not to be trusted.
        "card": card if isinstance(card, str) and re.fullmatch(r"[^:]+\.md", card) else None,
        "speed": float(summary.get("images_per_second") or 0),
        "details": {title: _leaves(part) for title, part in {**details, "Versions": summary["versions"]}.items()},
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


class Report(NamedTuple):
    """What R results say of the same N images; the truth is NaN where nobody annotated an image."""

    labels: list[str]
    summaries: list[dict[str, Any]]
    names: list[str]
    sizes: np.ndarray  # [N, 2]: width and height, pixels
    truth: np.ndarray  # [N]
    predicted: np.ndarray  # [R, N]
    left_out: list[str]

    @property
    def comparing(self) -> bool:
        return len(self.labels) > 1

    @property
    def errors(self) -> np.ndarray:
        return self.predicted - self.truth

    @property
    def scored(self) -> np.ndarray:
        """Whether each image is annotated."""
        return ~np.isnan(self.truth)


class Column(NamedTuple):
    """A column of the list of images: what its rows are sorted by, and what they show."""

    order: str
    heading: str
    kind: str  # its class in page.css
    keys: Sequence[Any]
    texts: Sequence[str]
    changes: Sequence[str] = ()  # beside the texts, in the color of ``errors``
    errors: Sequence[float] = ()


def metric(value: float | None, name: str = "", sign: bool = False) -> str:
    return number(value, digits_of(value, name), sign)


def digits_of(value: float | None, name: str = "") -> int:
    return 3 if name == "nae" else 2 if value is not None and abs(value) < 10 else 1


def interval(entry: dict[str, float], name: str = "", sign: bool = False) -> str:
    low, high = (number(entry[end], digits_of(entry["value"], name), sign) for end in ("low", "high"))
    return f"{low} to {high}"


def percent(share: float) -> str:
    return number(100 * share, 1 if abs(share) < 0.1 else 0, sign=True) + ("" if math.isnan(share) else PERCENT)


def color_of(result: int) -> str:
    return f"var(--series-{result % 6 + 1})"


def whiskers(entries: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """Where values and their intervals lie on an axis that all of them share, per cent."""
    ends = [entry[end] for entry in entries for end in ENDS]
    width = max(ends) - min(ends) or 1
    return [{end: round(4 + 92 * (entry[end] - min(ends)) / width, 2) for end in ENDS} for entry in entries]


def verdict(report: Report, other: int) -> dict[str, Any]:
    """The paired difference of the errors of two results, and what it says."""
    pair = paired_difference(report.errors[[0, other]][:, report.scored].T)
    if pair["mae"]["low"] > 0:
        return {**pair, "verdict": f"{report.labels[0]} is better", "where": "above"}
    if pair["mae"]["high"] < 0:
        return {**pair, "verdict": f"{report.labels[other]} is better", "where": "below"}
    return {**pair, "verdict": "No clear difference", "where": "on both sides of"}


def plots(report: Report) -> list[tuple[str, str, dict[str, Any]]]:
    """(Title, note, figures by name): errors against each other, counts against truths, errors against density.

    Without truths: the counts in their order.
    """
    truth, predicted, errors, scored = report.truth, report.predicted, report.errors, report.scored
    if not scored.any():
        traces = series(report, ~scored, np.arange(len(truth)) + 1, predicted)
        traces = [trace | {"mode": "lines+markers", "line": {"width": 1.2}} for trace in traces]
        axes = axis("image, in the order of evaluation", zeroline=False), axis("predicted", rangemode="tozero")
        note = "Nobody annotated these images: there are no errors to show."
        return [("Predicted counts", note, {"": figure(traces, *axes)})]

    values = [*truth[scored], *predicted[:, scored].flat]
    axes = log_axis("annotated", values), log_axis("predicted", values)
    traces = [identity(axes[0]), *series(report, scored, truth.clip(FLOOR), predicted.clip(FLOOR))]
    note = "On the dashed line the count is right. Drag to zoom, double-click to go back."
    counts = "Predicted against annotated", note, {"": figure(traces, *axes)}

    crowded, density = truth > 0, (truth / report.sizes.prod(axis=1) * 1e6).clip(FLOOR)  # objects a megapixel
    xaxis = log_axis("annotated objects per megapixel", [*density[crowded]] or [1])
    shares = 100 * errors / np.where(crowded, truth, np.nan)
    variants = {
        name: figure(series(report, crowded, density, values), xaxis, axis(title, zeroline=True))
        for name, title, values in (("objects", "error, objects", errors), ("in %", "error, % of the truth", shares))
    }
    densities = "Error against density", "Above zero too many were counted, below too few.", variants
    if not report.comparing:
        return [counts, densities]
    others = {label: compared_errors(report, other) for other, label in enumerate(report.labels) if other}
    return [("Absolute errors", "Under the dashed line the second is nearer.", others), counts, densities]


def series(report: Report, shown: np.ndarray, x: np.ndarray, y: np.ndarray) -> list[dict[str, Any]]:
    """Markers at x [N], y [R, N] of each of several results in its color; of one over and under the truth in two colors."""
    if report.comparing or not report.scored.any():
        return [markers(report, label, color_of(i), shown, x, y[i]) for i, label in enumerate(report.labels)]
    over = report.errors[0] > 0
    parts = ("too many", "var(--over)", shown & over), ("too few", "var(--under)", shown & ~over)
    return [markers(report, *part, x, y[0]) for part in parts]


def compared_errors(report: Report, other: int) -> dict[str, Any]:
    """The first result's absolute errors against another's."""
    x, y = np.abs(report.errors[[0, other]]).clip(FLOOR)
    axes = [log_axis(f"error of {report.labels[i]}", [*x[report.scored], *y[report.scored]]) for i in (0, other)]
    nearer = np.less(*np.abs(report.errors[[0, other]]))
    traces = [
        markers(report, f"{report.labels[i]} nearer", color_of(i), report.scored & some, x, y)
        for i, some in ((0, nearer), (other, ~nearer))
    ]
    return figure([identity(axes[0]), *traces], *axes)


def markers(report: Report, name: str, color: str, shown: np.ndarray, x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """One marker an image, which says its name and counts under the pointer and opens it when clicked."""
    indices = np.flatnonzero(shown).tolist()
    labels = report.labels if report.comparing else ["predicted"]
    texts = []
    for i in indices:
        counts = [f"truth {report.truth[i]:,.0f}"] if report.scored[i] else []
        counts += [f"{label} {number(value)}" for label, value in zip(labels, report.predicted[:, i])]
        texts.append(f"<b>{plain(report.names[i])}</b><br>{plain(', '.join(counts))}")
    many = len(indices) > 500
    return {
        "type": "scatter",
        "mode": "markers",
        "name": plain(name),
        "x": x[indices].round(4).tolist(),
        "y": y[indices].round(4).tolist(),
        "customdata": indices,
        "text": texts,
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {
            "color": color,
            "size": 6 if many else 8,
            "opacity": 0.55 if many else 0.75,
            "line": {"width": 0 if many else 1, "color": "var(--surface)"},
        },
    }


def identity(axis: dict[str, Any]) -> dict[str, Any]:
    """The dashed line on which both axes say the same."""
    ends = [10**end for end in axis["range"]]
    line = {"color": "var(--quiet)", "width": 1.2, "dash": "4px,4px"}
    return {"mode": "lines", "x": ends, "y": ends, "hoverinfo": "skip", "showlegend": False, "line": line}


def columns(report: Report) -> list[Column]:
    """The columns of the list of images behind the photograph; those of errors where something is annotated."""
    errors, predicted = report.errors, [list(map(number, counts)) for counts in report.predicted]
    signed = [[number(error, sign=True) for error in some] for some in errors]
    shown = [Column("name", "Image", "name", report.names, report.names)]
    if report.scored.any():
        shown.append(Column("truth", "Truth", "n truth", report.truth, [number(count, 0) for count in report.truth]))
    if not report.comparing:
        shown.append(Column("predicted", "Predicted", "n predicted", report.predicted[0], predicted[0]))
    for i, label in enumerate(report.labels if report.comparing else ()):
        kind = f"error-{i}", label, "n result"
        shown.append(Column(*kind, np.abs(errors[i]), predicted[i], signed[i], errors[i]))
    if report.comparing and report.scored.any():
        first, *others = np.abs(errors)
        ahead = np.min(others, axis=0) - first  # by how much the first is nearer than the best of the others
        shown.append(Column("change", "Difference", "n change", ahead, [number(value, sign=True) for value in ahead]))
    if not report.comparing and report.scored.any():
        nothing = [""] * len(report.names)
        relative = errors[0] / np.where(report.truth > 0, report.truth, np.nan)
        shares = list(map(percent, relative))
        shown.append(Column("error", "Error", "n error", np.abs(errors[0]), nothing, signed[0], errors[0]))
        shown.append(Column("relative", "Relative", "n relative", np.abs(relative), nothing, shares, errors[0]))
    texts = [f"{width} \N{MULTIPLICATION SIGN} {height}" for width, height in report.sizes]
    return [*shown, Column("size", "Size", "n size", report.sizes.prod(axis=1), texts)]


def groups(report: Report) -> dict[str, tuple[str, np.ndarray]]:
    """What the filters show: by name a heading and which images."""
    distances, worst = np.abs(report.errors), np.zeros(len(report.names), bool)
    order = np.argsort(-distances.max(axis=0), kind="stable")  # NaN comes last
    worst[order[: math.ceil(report.scored.sum() / 10)]] = True
    shown = {"all": ("All", ~report.scored | report.scored), "worst": (f"Worst 10{PERCENT}", worst)}
    if not report.comparing:
        return shown | {"over": ("Over", report.errors[0] > 0), "under": ("Under", report.errors[0] < 0)}
    for i, label in enumerate(report.labels):
        shown[f"nearer-{i}"] = f"{label} nearer", distances[i] < np.delete(distances, i, axis=0).min(axis=0)
    return shown


def content(report: Report) -> dict[str, Any]:
    """What the template report.html shows, but for the images' photographs and views."""
    scores = [count_scores(list(map(Result, report.names, report.truth, some))) for some in report.predicted]
    scored = report.scored.any()
    counted = report.scored if scored else ~report.scored
    bins = list(zip(*(score["bins"] for score in scores)))
    failures: dict[tuple[str, str], list[str]] = {}  # the same failure of several results is one
    details: dict[str, dict[str, list[str]]] = {}
    for i, (label, summary) in enumerate(zip(report.labels, report.summaries)):
        for failure in summary["failed"]:
            failures.setdefault(failure, []).append(label)
        for title, leaves in summary["details"].items():
            for name, value in leaves.items():
                details.setdefault(title, {}).setdefault(name, [NONE] * len(report.labels))[i] = value
    return {
        "report": report,
        "scores": scores,
        "metrics": {name: METRICS[name] for name in METRICS if scored and scores[0][name]},
        "predicted": report.predicted[0, counted].sum(),
        "truth": np.nansum(report.truth),
        "pairs": [verdict(report, other) for other in range(1, len(report.labels)) if scored],
        "plots": plots(report),
        "bins": bins,
        "highest": max(level["mae"] or 0 for levels in bins for level in levels) or 1,
        "failures": failures,
        "columns": columns(report),
        "first": ("change" if scored else "error-0") if report.comparing else "error" if scored else "predicted",
        "groups": groups(report),
        "details": details,
    }


FILTERS = {
    "metric": metric,
    "interval": interval,
    "percent": percent,
    "whiskers": whiskers,
    "key": lambda value: "" if value != value else value,  # NaN: unknown
    "color": color_of,
    "side": lambda error: "over" if error > 0 else "under" if error < 0 else "",
}


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
