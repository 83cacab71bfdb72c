"""What a report shows, for its template: totals or their comparison, plots, tables and the list of images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from utils.evaluation.page import FLOOR, NONE, PERCENT, axis, figure, log_axis, number, plain
from utils.evaluation.scores import count_scores, paired_difference
from utils.evaluation.windows import Result

METRICS = {
    "mae": ("MAE", "mean absolute error"),
    "mse": ("MSE (root)", "root mean squared error"),
    "nae": ("NAE", "mean of error / truth"),
}
ENDS = ("low", "value", "high")


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
    found = {"all": ("All", ~report.scored | report.scored), "worst": (f"Worst 10{PERCENT}", worst)}
    if not report.comparing:
        return found | {"over": ("Over", report.errors[0] > 0), "under": ("Under", report.errors[0] < 0)}
    for i, label in enumerate(report.labels):
        found[f"nearer-{i}"] = f"{label} nearer", distances[i] < np.delete(distances, i, axis=0).min(axis=0)
    return found


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
    "side": lambda error: "over" if error > 0 else "under" if error < 0 else "",
}
