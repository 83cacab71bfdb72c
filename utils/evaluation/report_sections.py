"""What a report shows: totals or their comparison, plots, tables, failures, the list of images, how the numbers came about."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import quote

from utils.evaluation import page
from utils.evaluation.page import NONE, PERCENT, Markup, fill, number, panel, plural, signed, table, tile

METRICS = {
    "mae": ("MAE", "mean absolute error"),
    "mse": ("MSE (root)", "root mean squared error"),
    "nae": ("NAE", "mean of error / truth"),
}
DETAILS = {"Model": ("model", "weights_sha256"), "Configuration": ("configuration",), "Versions": ("versions",)}


class Image(NamedTuple):
    """One image and its counts, one a result; ``truth`` is None where nobody annotated it."""

    index: int
    name: str
    width: int  # pixels
    height: int
    truth: float | None
    predicted: list[float]

    def error(self, result: int = 0) -> float | None:
        return None if self.truth is None else self.predicted[result] - self.truth

    def relative(self) -> float | None:
        return self.error() / self.truth if self.truth else None

    def density(self) -> float:
        """Annotated objects per megapixel."""
        return self.truth / (self.width * self.height / 1e6)

    def ahead(self) -> float | None:
        """By how much the first result is nearer than the best of the others."""
        errors = self.errors()
        return min(errors[1:]) - errors[0] if errors[1:] else None

    def errors(self) -> list[float]:
        """Absolute errors, one a result; empty without truth."""
        return [] if self.truth is None else [abs(value - self.truth) for value in self.predicted]


class Report(NamedTuple):
    """What one or several results say of the same images."""

    labels: list[str]
    summaries: list[dict[str, Any]]
    images: list[Image]
    paired: list[dict[str, Any]]  # of each result but the first, ``scores.paired_difference`` to the first
    left_out: list[str]

    @property
    def comparing(self) -> bool:
        return len(self.labels) > 1

    @property
    def scored(self) -> list[Image]:
        return [image for image in self.images if image.truth is not None]


def number_of(content: Any, *keys: str) -> float | None:
    """The number under ``keys`` in the JSON of a summary; None where they lead to none."""
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content if isinstance(content, int | float) else None


def metric(value: Any, name: str = "") -> str:
    return number(value, digits_of(value, name))


def digits_of(value: Any, name: str = "") -> int:
    return 3 if name == "nae" else 2 if isinstance(value, int | float) and abs(value) < 10 else 1


def count(value: float | None) -> str:
    return number(value, 0 if value is not None and value == int(value) else 1)


def percent(value: float | None) -> str:
    return NONE if value is None else signed(100 * value, 1 if abs(value) < 0.1 else 0) + PERCENT


def color_of(result: int) -> str:
    return f"var(--series-{result % 6 + 1})"


def labelled(report: Report, result: int, text: str = "{}") -> Markup:
    """The label of a result beside its color."""
    color = fill('<i class="swatch" style="background:{}" aria-hidden="true"></i>', color_of(result))
    return fill('<span class="label">{}{}</span>', color, text.format(report.labels[result]))


def colored(text: str, error: float | None) -> Markup:
    side = "over" if error and error > 0 else "under" if error else ""
    return fill('<span class="{}">{}</span>', side, text)


def subtitle(report: Report) -> Markup:
    """Numbers of images; of one result also its model and the address of its model's card."""
    if report.comparing:
        return fill("{} counted by {} models", plural(len(report.images), "image"), len(report.labels))
    summary = report.summaries[0]
    failed = len(summary.get("failed") or ())
    parts = [
        ("images", summary.get("images", len(report.images)), " images"),
        ("scored", len(report.scored), " scored"),
    ]
    totals = [fill('<b data-total="{}">{}</b>{}, ', key, number(value, 0), unit) for key, value, unit in parts]
    totals.append(fill('<b data-total="failed"{}>{}</b> failed', Markup(' class="bad"' if failed else ""), failed))
    model, weights = summary.get("model") or {}, summary.get("weights_sha256")
    model = model.get("name") or model.get("model_name")
    names = [text for text in (model, weights and f"weights {weights[:8]}") if text]
    if names:
        totals.append(fill('<span class="dot"></span>{}', ", ".join(names)))
    # A path beside the page, and no address of a script: what a summary says is not to be trusted.
    card = summary.get("model_card")
    if isinstance(card, str) and re.fullmatch(r"[^:]+\.md", card):
        totals.append(fill('<span class="dot"></span><a href="{}">model card</a>', quote(card)))
    return fill("{}", totals)


def interval(entry: Any, name: str) -> str:
    low, high = number_of(entry, "low"), number_of(entry, "high")
    digits = digits_of(number_of(entry, "value"), name)
    return "" if low is None or high is None else f"{number(low, digits)} to {number(high, digits)}"


def totals(report: Report) -> Markup:
    """The figures of one result."""
    summary, tiles = report.summaries[0], []
    for name, (title, explained) in METRICS.items():
        if entry := summary.get(name):
            between = interval(entry, name)
            note = f"{explained}\n{between} (95{PERCENT})" if between else explained
            tiles.append(tile(title, metric(number_of(entry, "value"), name), note, key=name))
    scored = report.scored
    predicted = sum(image.predicted[0] for image in scored or report.images)
    note = "predicted in total"
    if scored:
        truth = sum(image.truth for image in scored)
        note = f"predicted, of {number(truth, 0)} annotated\n" + (
            truth and f"{percent(predicted / truth - 1)} in total" or ""
        )
    tiles.append(tile("Objects", number(predicted, 0), note))
    if speed := number_of(summary, "images_per_second"):
        tiles.append(tile("Speed", metric(speed), "images per second"))
    return fill('<div class="tiles">{}</div>', tiles)


def compared_totals(report: Report) -> Markup:
    """Each result's value with its interval as a whisker on an axis that all of them share, and who is better."""
    tiles = []
    for name, (title, explained) in METRICS.items():
        entries = [summary.get(name) for summary in report.summaries]
        if any(entries):
            lines = compared_lines(report, name, entries)
            template = '<div class="tile"><h3>{}</h3><p class="quiet">{}, 95{} intervals</p>{}</div>'
            tiles.append(fill(template, title, explained, PERCENT, lines))
    left_out = None
    if report.left_out:
        names = ", ".join(report.left_out)
        text = f"Failed in one of the results and left out of every comparison: {names}"
        left_out = fill('<p class="quiet">{}</p>', text)
    verdicts = [verdict(report, other, pair) for other, pair in enumerate(report.paired, 1)]
    return fill('<div class="tiles wide">{}</div>{}{}', tiles, verdicts, left_out)


def compared_lines(report: Report, name: str, entries: Sequence[Any]) -> list[Markup]:
    """A line for each result below one figure: its value, and where that and its interval lie among those of the others."""
    values = [[number_of(entry, key) for key in ("low", "value", "high")] for entry in entries]
    numbers = [value for triple in values for value in triple if value is not None]
    least, width = min(numbers, default=0), max(numbers, default=0) - min(numbers, default=0) or 1
    lines = []
    for result, (entry, (low, value, high)) in enumerate(zip(entries, values)):
        left, at, right = (None if v is None else 4 + 92 * (v - least) / width for v in (low, value, high))
        drawn = []
        if left is not None and right is not None:
            drawn.append(fill('<i style="left:{:.2f}%;right:{:.2f}%"></i>'.format(left, 100 - right)))
        if at is not None:
            drawn.append(fill('<b style="left:{}%;background:{}"></b>', f"{at:.2f}", color_of(result)))
        template = (
            '<div class="versus">{}<span class="value" data-total="{}-{}">{}</span>'
            '<span class="whisker" aria-hidden="true">{}</span><span class="quiet">{}</span></div>'
        )
        shown = metric(value, name), drawn, interval(entry, name)
        lines.append(fill(template, labelled(report, result), name, result, *shown))
    return lines


def verdict(report: Report, other: int, pair: dict[str, Any]) -> Markup:
    """What the paired interval of the errors of two results says."""
    if not pair["images"]:
        return fill('<p class="quiet">No image is annotated: the errors cannot be compared.</p>')
    first, second = report.labels[0], report.labels[other]
    said, where = "No clear difference", "on both sides of"
    if pair["mae"]["low"] > 0:
        said, where = f"{first} is better", "above"
    elif pair["mae"]["high"] < 0:
        said, where = f"{second} is better", "below"
    differences = []
    for name in ("mae", "mse"):
        digits = digits_of(pair[name]["value"])
        change, low, high = (signed(pair[name][key], digits) for key in ("value", "low", "high"))
        template = '{} <b data-paired="{}-{}">{}</b><span class="quiet"> ({} to {})</span>'
        differences.append(fill(template, METRICS[name][0], name, other, change, low, high))
    template = (
        '<div class="verdict"><p class="head">{}</p><p>{} minus {}, same images: {}; {}</p>'
        '<p class="quiet">The paired 95{} interval of the MAE lies {} zero ({}, bootstrap).</p></div>'
    )
    return fill(template, said, second, first, *differences, PERCENT, where, plural(pair["images"], "image"))


def plots(report: Report) -> list[Markup]:
    """Errors against each other, counts against truths, errors against density; without truths the counts in their order."""
    scored, results = report.scored, range(len(report.labels))
    if not scored:
        traces = series(report, report.images, lambda image: image.index + 1, lambda image, i: image.predicted[i])
        traces = [trace | {"mode": "lines+markers", "line": {"width": 1.2}} for trace in traces]
        axes = (
            page.axis("image, in the order of evaluation", zeroline=False),
            page.axis("predicted", rangemode="tozero"),
        )
        note = "Nobody annotated these images: there are no errors to show."
        return [plot_panel("Predicted counts", note, {"": page.figure(traces, *axes)})]

    values = [value for image in scored for value in (image.truth, *image.predicted)]
    axes = page.log_axis("annotated", values), page.log_axis("predicted", values)
    traces = series(report, scored, lambda image: lifted(image.truth), lambda image, i: lifted(image.predicted[i]))
    note = "On the dashed line the count is right. Drag to zoom, double-click to go back."
    counts = plot_panel("Predicted against annotated", note, {"": page.figure([identity(axes[0]), *traces], *axes)})

    dense = [image for image in scored if image.truth]
    xaxis = page.log_axis("annotated objects per megapixel", [image.density() for image in dense] or [1])
    figures = {}
    for unit, title in (("objects", "error, objects"), ("in %", "error, % of the truth")):

        def error(image: Image, i: int, relative: bool = unit == "in %") -> float:
            return image.error(i) * (100 / image.truth if relative else 1)

        traces = series(report, dense, lambda image: lifted(image.density()), error)
        figures[unit] = page.figure(traces, xaxis, page.axis(title, zeroline=True))
    densities = plot_panel("Error against density", "Above zero too many were counted, below too few.", figures)
    if not report.comparing:
        return [counts, densities]
    others = {report.labels[other]: compared_errors(report, other) for other in results[1:]}
    return [plot_panel("Absolute errors", "Under the dashed line the second is nearer.", others), counts, densities]


def plot_panel(title: str, note: str, figures: dict[str, Any]) -> Markup:
    return panel(title, note, page.plot(f"{title}. {note} The list below holds the same images.", figures))


def series(
    report: Report, images: list[Image], x: Callable[[Image], float], y: Callable[[Image, int], float]
) -> list[dict[str, Any]]:
    """Markers of each of several results in its color; of one, where there is truth, over and under in two colors."""
    if report.comparing or not report.scored:
        parts = [(label, color_of(i), images, i) for i, label in enumerate(report.labels)]
    else:
        over, under = ([image for image in images if (image.error() > 0) is more] for more in (True, False))
        parts = [("too many", "var(--over)", over, 0), ("too few", "var(--under)", under, 0)]
    return [markers(report, name, color, some, x, lambda image: y(image, i)) for name, color, some, i in parts]


def compared_errors(report: Report, other: int) -> dict[str, Any]:
    """The first result's absolute errors against another's."""
    errors = {image.index: [lifted(image.errors()[i]) for i in (0, other)] for image in report.scored}
    values = [value for pair in errors.values() for value in pair]
    axes = [page.log_axis(f"error of {report.labels[i]}", values) for i in (0, other)]
    traces = [identity(axes[0])]
    for result, is_nearer in ((0, True), (other, False)):
        some = [image for image in report.scored if (image.errors()[0] < image.errors()[other]) is is_nearer]
        x, y = (lambda image, at=at: errors[image.index][at] for at in (0, 1))
        traces.append(markers(report, f"{report.labels[result]} nearer", color_of(result), some, x, y))
    return page.figure(traces, *axes)


def markers(
    report: Report, name: str, color: str, images: list[Image], x: Callable[..., float], y: Callable[..., float]
) -> dict[str, Any]:
    """One marker an image, which says its name and counts under the pointer and opens it when clicked."""
    many = len(images) > 500
    texts = []
    for image in images:
        truth = "" if image.truth is None else f"truth {count(image.truth)}, "
        labels = report.labels if report.comparing else ["predicted"]
        counts = ", ".join(f"{label} {number(value)}" for label, value in zip(labels, image.predicted))
        texts.append(f"<b>{page.plain(image.name)}</b><br>{page.plain(truth + counts)}")
    return {
        "type": "scatter",
        "mode": "markers",
        "name": page.plain(name),
        "x": [round(x(image), 4) for image in images],
        "y": [round(y(image), 4) for image in images],
        "customdata": [image.index for image in images],
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


def lifted(value: float) -> float:
    return max(value, page.FLOOR)


def bins(report: Report) -> Markup | None:
    """Errors by count."""
    columns = [summary.get("bins") or [] for summary in report.summaries]
    if not any(number_of(entry, "images") for entry in columns[0]):
        return None
    most = max((number_of(entry, "mae") or 0 for column in columns for entry in column), default=0) or 1

    def bar(value: float | None, result: int) -> Markup | str:
        if len(columns) > 2:
            return metric(value)
        color = color_of(result) if report.comparing else "var(--accent)"
        drawn = fill('<i style="width:{}%;background:{}"></i>', f"{100 * (value or 0) / most:.2f}", color)
        return fill('<span class="bar-cell">{}<span>{}</span></span>', drawn, metric(value))

    rows = []
    for entries in zip(*columns):
        first, to = entries[0], number_of(entries[0], "to")
        between = number(number_of(first, "from"), 0) + (" +" if to is None else f"\N{EN DASH}{number(to, 0)}")
        bars = [bar(number_of(entry, "mae"), result) for result, entry in enumerate(entries)]
        rest = [] if report.comparing else [metric(number_of(first, "mse"))]
        rows.append(
            [fill('<span class="whole">{}</span>', between), number(number_of(first, "images"), 0), *bars, *rest]
        )
    heads = ["MAE", "MSE (root)"]
    if report.comparing:
        heads = [labelled(report, result, "MAE, {}") for result in range(len(columns))]
    note = "Images grouped by how many objects are annotated."
    return panel("Errors by count", note, table(["Count", "Images", *heads], rows))


def localisation(report: Report) -> Markup | None:
    """How many heads were found, at each radius and over QNRF's radii."""
    tables = [summary.get("localisation") or {} for summary in report.summaries]
    rows = []
    for key in dict.fromkeys(key for entries in tables for key in entries):
        place = f"within {key} px" if key.isdigit() else {"qnrf": "mean, 1 to 100 px"}.get(key, key.upper())
        for result, entries in enumerate(tables):
            shares = [number_of(entries, key, name) for name in ("precision", "recall", "f1", "auc")]
            name = labelled(report, result, f"{{}}, {place}") if report.comparing else place
            rows.append([name, *(NONE if share is None else number(100 * share) for share in shares)])
    if not rows:
        return None
    heads = ["", "Precision", "Recall", "F1", "AUC"]
    used = [not at or any(row[at] != NONE for row in rows) for at in range(len(heads))]
    heads, *rows = ([value for value, shown in zip(row, used) if shown] for row in (heads, *rows))
    return panel("Localisation", "Heads found one to one, in per cent.", table(heads, rows))


def failures(report: Report) -> Markup | None:
    """What could not be counted; the same failure of several results is one."""
    labels: dict[tuple[str, str], list[str]] = {}
    for label, summary in zip(report.labels, report.summaries):
        for name, reason in summary.get("failed") or ():
            labels.setdefault((name, str(reason)), []).append(label)
    if not labels:
        return None
    lines = []
    for (name, reason), some in labels.items():
        where = fill(' <span class="quiet">({})</span>', ", ".join(some)) if report.comparing else None
        lines.append(fill("<li><b>{}</b> {}{}</li>", name, reason, where))
    template = '<section id="failures" class="panel"><h2>{} failed</h2><ul>{}</ul></section>'
    return fill(template, plural(len(labels), "image"), lines)


class Column(NamedTuple):
    """A column of the list of images: what it is sorted by, and what it shows."""

    order: str
    heading: str
    kind: str  # its class in page.css
    key: Callable[[Image], Any]
    content: Callable[[Image], Any]


def columns(report: Report) -> list[Column]:
    """The columns of the list of images behind the photograph; those of errors where something is annotated."""

    def error(result: int, image: Image) -> Any:
        return None if image.truth is None else image.errors()[result]

    def share(image: Image) -> float | None:
        return None if image.relative() is None else abs(image.relative())

    def counted(result: int, image: Image) -> Markup:
        shown = "" if image.truth is None else signed(image.error(result))
        template = '<span class="tag">{}</span>{}<small>{}</small>'
        return fill(
            template, labelled(report, result), number(image.predicted[result]), colored(shown, image.error(result))
        )

    name = Column(
        "name", "Image", "name", lambda i: i.name, lambda i: fill('<button type="button">{}</button>', i.name)
    )
    truth = Column("truth", "Truth", "n truth", lambda i: i.truth, lambda i: count(i.truth))
    ahead = Column("change", "Difference", "n change", Image.ahead, lambda i: signed(i.ahead()))
    predicted = Column(
        "predicted", "Predicted", "n predicted", lambda i: i.predicted[0], lambda i: number(i.predicted[0])
    )
    errors = [
        Column("error", "Error", "n error", partial(error, 0), lambda i: colored(signed(i.error()), i.error())),
        Column("relative", "Relative", "n relative", share, lambda i: colored(percent(i.relative()), i.error())),
    ]
    pixels = Column(
        "size",
        "Size",
        "n size",
        lambda i: i.width * i.height,
        lambda i: f"{i.width} \N{MULTIPLICATION SIGN} {i.height}",
    )
    if report.comparing:
        results = [
            Column(f"error-{i}", label, "n result", partial(error, i), partial(counted, i))
            for i, label in enumerate(report.labels)
        ]
        return [name, truth, *results, ahead, pixels] if report.scored else [name, *results, pixels]
    return [name, truth, predicted, *errors, pixels] if report.scored else [name, predicted, pixels]


def filters(report: Report) -> dict[str, tuple[str, set[int]]]:
    """Groups of images by their names, each with its heading and its images' indices."""
    scored = report.scored
    worst = sorted(scored, key=lambda image: -max(image.errors()))[: math.ceil(len(scored) / 10)]
    groups = {"all": ("All", report.images), "worst": (f"Worst 10{PERCENT}", worst)}
    if report.comparing:
        for i, label in enumerate(report.labels):
            nearer = [image for image in scored if sorted(image.errors())[1] > image.errors()[i] == min(image.errors())]
            groups[f"nearer-{i}"] = f"{label} nearer", nearer
    else:
        groups["over"] = "Over", [image for image in scored if image.error() > 0]
        groups["under"] = "Under", [image for image in scored if image.error() < 0]
    return {name: (heading, {image.index for image in images}) for name, (heading, images) in groups.items()}


def image_list(report: Report, embed: Callable[[Image], tuple[str, Any]]) -> Iterator[Markup]:
    """The list of images; ``embed`` gives an image's photograph (JPEG, base64) and what else its view needs, as JSON."""
    groups, cells = filters(report), columns(report)
    buttons = [
        fill('<button type="button" data-filter="{}">{}</button>', name, heading)
        for name, (heading, _) in groups.items()
    ]
    there = {column.order for column in cells}
    first = next(order for order in ("change", "error", "predicted", "error-0") if order in there)
    options = []
    for column in cells:
        for direction, name in (("down", "descending"), ("up", "ascending")):
            chosen = Markup(" selected" if (column.order, direction) == (first, "down") else "")
            order = f"{column.order}:{direction}"
            options.append(fill('<option value="{}"{}>{}, {}</option>', order, chosen, column.heading, name))
    heads = [
        fill(
            '<th scope="col" role="columnheader" class="{}" data-order="{}"><button type="button">{}</button></th>',
            *(column.kind, column.order, column.heading),
        )
        for column in cells
    ]
    hidden = Markup("" if report.scored else " hidden")
    yield fill(LIST_HEAD, plural(len(report.images), "image"), hidden, buttons, options, heads)
    for image in report.images:
        photo, data = embed(image)
        some = " ".join(name for name, (_, indices) in groups.items() if image.index in indices)
        row = [
            fill(
                '<td class="{}" role="cell" data-label="{}" data-key="{}">{}</td>',
                *(column.kind, column.heading, column.key(image), column.content(image)),
            )
            for column in cells
        ]
        yield fill(LIST_ROW, some, image.index, photo, page.embedded(data), row)
    yield Markup(LIST_TAIL)


LIST_HEAD = """<section id="images" aria-labelledby="images-title">
<div class="bar">
  <h2 id="images-title">Images</h2>
  <p id="shown" class="quiet" role="status">{}</p>
  <div id="filters" class="segments" role="group" aria-label="Filter"{}>{}</div>
  <label class="field"><span class="hidden">Order</span>
    <select id="order">{}<option value="file:up">As evaluated</option></select></label>
  <label class="field search"><span class="hidden">Search by name</span>
    <input id="search" type="search" placeholder="Search by name" autocomplete="off" spellcheck="false"></label>
</div>
<table id="list" role="table"><thead role="rowgroup"><tr role="row">
<th scope="col" role="columnheader" class="thumb" data-order="file"><span class="hidden">Photograph</span></th>{}
</tr></thead><tbody role="rowgroup">
"""
LIST_ROW = """<tr role="row" data-groups="{}"><td class="thumb" role="cell" data-key="{}">\
<img alt="" width="76" height="54" loading="lazy" decoding="async" src="data:image/jpeg;base64,{}">\
<script type="application/json">{}</script></td>{}</tr>
"""
LIST_TAIL = """</tbody></table>
<p id="nothing" class="quiet" hidden>No image matches.</p>
</section>
"""
VIEWER = """<dialog id="viewer" aria-labelledby="viewer-title">
<div class="viewer-head">
  <h2 id="viewer-title"></h2>
  <span id="viewer-position" class="quiet"></span>
  <button id="previous" type="button" class="icon" aria-label="Previous image" aria-keyshortcuts="ArrowLeft">
    <svg viewBox="0 0 24 24" aria-hidden="true"><path d="M14.5 5.5 8 12l6.5 6.5"/></svg></button>
  <button id="next" type="button" class="icon" aria-label="Next image" aria-keyshortcuts="ArrowRight">
    <svg viewBox="0 0 24 24" aria-hidden="true"><path d="M9.5 5.5 16 12l-6.5 6.5"/></svg></button>
  <button id="close" type="button" class="icon" aria-label="Close" aria-keyshortcuts="Escape">
    <svg viewBox="0 0 24 24" aria-hidden="true"><path d="m6 6 12 12M18 6 6 18"/></svg></button>
</div>
<table><tbody><tr id="facts"></tr></tbody></table>
<div id="stage"></div>
<p class="quiet">Scroll to zoom and drag to move all of them; what the legend names is shown and hidden by a click.
<kbd>\N{LEFTWARDS ARROW}</kbd> <kbd>\N{RIGHTWARDS ARROW}</kbd> image, <kbd>Esc</kbd> close</p>
</dialog>
"""


def leaves(value: Any, prefix: str = "") -> dict[str, str]:
    """The leaves of JSON by the names that lead to them."""
    if not isinstance(value, dict):
        return {prefix: NONE if value is None else value if isinstance(value, str) else json.dumps(value)}
    parts = [leaves(part, f"{prefix}.{key}" if prefix else key) for key, part in value.items()]
    return {name: text for part in parts for name, text in part.items()}


def details(report: Report) -> Markup:
    """Folded away: how the numbers came about. What differs between the results is marked."""
    folded = []
    for title, keys in DETAILS.items():
        parts = [leaves({key: summary.get(key) for key in keys}) for summary in report.summaries]
        rows = []
        for name in dict.fromkeys(name for part in parts for name in part):
            values = [part.get(name, NONE) for part in parts]
            kind = "differs" if len(set(values)) > 1 else ""
            rows.append(
                [name.removeprefix(f"{keys[0]}."), *(fill('<span class="{}">{}</span>', kind, v) for v in values)]
            )
        content = table(["", *report.labels], rows)
        folded.append(fill('<details class="panel"><summary>{}</summary>{}</details>', title, content))
    return fill('<section id="details" aria-label="How these numbers came about">{}</section>', folded)


def sections(report: Report, embed: Callable[[Image], tuple[str, Any]]) -> Iterator[Markup]:
    """The page from its top to its end; ``embed`` as in ``image_list``."""
    numbers = compared_totals(report) if report.comparing else totals(report)
    yield fill('<section id="numbers" aria-label="Totals">{}</section>\n', numbers)
    yield fill('<section id="plots" aria-label="Plots">{}</section>\n', plots(report))
    tables = [bins(report), localisation(report)]
    if any(tables):
        yield fill('<section id="tables" aria-label="Errors by count and localisation">{}</section>\n', tables)
    yield fill("{}", failures(report))
    yield from image_list(report, embed)
    yield details(report)
    yield Markup(VIEWER)
