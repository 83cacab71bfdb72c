"""Pages of one file that fetch nothing: the report of what test.py counted, and the demo's walk through the method.

What a page shows is written into its markup; page_files/ holds its frame, its style and what answers to the reader.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.files import atomic_write

MINUS, NONE, PERCENT = "\N{MINUS SIGN}", "\N{EN DASH}", "\N{NARROW NO-BREAK SPACE}%"
FLOOR = 0.5  # a logarithmic axis has no zero
_FILES = Path(__file__).with_name("page_files")


class Markup(str):
    """HTML as it is; ``fill`` escapes any other text."""


def fill(template: str, *values: Any) -> Markup:
    """HTML with ``values`` in the places of ``{}``: escaped unless they are ``Markup``, lists joined, None as nothing."""
    return Markup(template.format(*map(_escaped, values)))


def _escaped(value: Any) -> str:
    if isinstance(value, list):
        return "".join(map(_escaped, value))
    return value if isinstance(value, Markup) else html.escape("" if value is None else str(value))


def number(value: Any, digits: int = 1) -> str:
    """A number as it is read; a dash for what is none."""
    if not isinstance(value, int | float):
        return NONE
    text = f"{abs(value):,.{digits}f}"
    return (MINUS if value < 0 and re.search("[1-9]", text) else "") + text


def signed(value: Any, digits: int = 1) -> str:
    return ("+" if isinstance(value, int | float) and value > 0 else "") + number(value, digits)


def plural(amount: int, noun: str) -> str:
    return f"{amount:,} {noun}{'' if amount == 1 else 's'}"


def tile(title: str, value: str, note: str, kind: str = "value", key: str | None = None) -> Markup:
    """A figure in large letters; ``key`` names it for whoever reads the page by program."""
    named = fill(' data-total="{}"', key) if key else None
    template = '<div class="tile"><h3>{}</h3><p class="{}"{}>{}</p><p class="quiet">{}</p></div>'
    return fill(template, title, kind, named, value, note)


def panel(title: str, note: str, content: Markup) -> Markup:
    return fill('<div class="panel"><h2>{}</h2><p class="quiet">{}</p>{}</div>', title, note, content)


def table(heads: Sequence[Any], rows: Iterable[Sequence[Any]]) -> Markup:
    """A table whose rows begin with what they are about."""
    lines = [
        fill('<tr><th scope="row">{}</th>{}</tr>', first, [fill("<td>{}</td>", value) for value in rest])
        for first, *rest in rows
    ]
    template = '<div class="scroll"><table class="grid"><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>'
    return fill(template, [fill('<th scope="col">{}</th>', head) for head in heads], lines)


def plot(title: str, variants: Mapping[str, dict[str, Any]]) -> Markup:
    """A plot of Plotly, or by name several in the same place, of which the reader chooses one; colors may be var(--name)."""
    names = [fill("<option>{}</option>", name) for name in variants]
    choice = fill('<select aria-label="Variant of the plot">{}</select>', names) if len(names) > 1 else None
    template = '{}<div class="plot" role="img" aria-label="{}"></div><script type="application/json">{}</script>'
    return fill(template, choice, title, embedded(list(variants.values())))


def figure(traces: Sequence[Mapping[str, Any]], xaxis: Mapping[str, Any], yaxis: Mapping[str, Any]) -> dict[str, Any]:
    """A figure of Plotly in the page's style, with a legend where it has several entries."""
    layout = {
        "xaxis": xaxis,
        "yaxis": yaxis,
        "margin": {"l": 8, "r": 12, "t": 8, "b": 8},
        "hovermode": "closest",
        "hoverdistance": 14,
        "showlegend": sum(trace.get("showlegend", True) for trace in traces) > 1,
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 12}},
    }
    return {"data": list(traces), "layout": layout}


def axis(title: str, **options: Any) -> dict[str, Any]:
    """An axis of Plotly in the page's style."""
    colors = {"gridcolor": "var(--line)", "zerolinecolor": "var(--quiet)", "linecolor": "var(--line)"}
    fonts = {"title": {"text": plain(title), "font": {"size": 12.5}, "standoff": 10}, "tickfont": {"size": 11.5}}
    return {**colors, **fonts, "ticklabelstandoff": 4, "automargin": True, "tickformat": ",", **options}


def log_axis(title: str, values: Iterable[float]) -> dict[str, Any]:
    """A logarithmic axis around ``values``, with numbers at decades, at 1, 2 and 5 of each, or in about five even steps."""
    logarithms = [math.log10(max(value, FLOOR)) for value in values]
    low, high = min(logarithms), max(logarithms)
    room = 0.06 * (high - low or 1)
    low, high = low - room, high + room
    if high - low > 0.9:
        ticks: dict[str, Any] = {"dtick": 1 if high - low > 1.6 else "D2"}
    else:
        width = (10**high - 10**low) / 5
        magnitude = 10 ** math.floor(math.log10(width))
        step = magnitude * next(factor for factor in (1, 2, 5, 10) if factor * magnitude >= width)
        first, last = math.ceil(10**low / step), math.floor(10**high / step)
        ticks = {"tickmode": "array", "tickvals": [i * step for i in range(first, last + 1)]}
    return axis(title, type="log", range=[low, high], tickformat=",~r", zeroline=False, **ticks)


def plain(text: str) -> str:
    """``text`` for Plotly, which reads some markup."""
    return html.escape(text, quote=False)


def embedded(value: Any) -> Markup:
    """JSON for a script element: without "<" neither an end tag nor a comment can begin in it."""
    return Markup(json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))


def write_page(path: Path, kind: str, title: str, subtitle: str, parts: Iterable[Markup], script: str = "") -> None:
    """Write a page with ``parts`` under its head; ``kind``: its class in page.css, ``script``: a file beside page.js."""
    from plotly.offline import get_plotlyjs  # here, since numbers are read where nothing is drawn

    # A carriage return would become a newline in the browser, and the script would no longer match its hash.
    plotly = re.sub(r"\r\n?", "\n", get_plotlyjs())
    code = '(() => {\n"use strict";\n' + "".join(_source(name) for name in ("page.js", script) if name) + "})();\n"
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (plotly, code)]
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    # Only these two scripts may run and nothing may be fetched, whatever an image is called.
    policy = f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src {allowed}"
    head, tail = _source("page.html").split("{main}")
    with atomic_write(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as page:
        page.write(fill(head, Markup(policy), title, _source("page.css"), kind, title, subtitle))
        page.writelines(parts)
        page.write(fill(tail, Markup(plotly), Markup(code)))


def _source(name: str) -> Markup:
    return Markup((_FILES / name).read_text(encoding="utf-8"))
