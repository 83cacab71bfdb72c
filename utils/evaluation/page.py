"""Pages of one file that fetch nothing: the report of what test.py counted, and the demo's walk through the method.

``page_files/`` holds their templates, which escape what they are given, their style and what answers to the reader.
"""

from __future__ import annotations

import base64
import hashlib
import html
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from utils.files import atomic_write

MINUS, NONE, PERCENT = "\N{MINUS SIGN}", "\N{EN DASH}", "\N{NARROW NO-BREAK SPACE}%"
FLOOR = 0.5  # a logarithmic axis has no zero
_FILES = Path(__file__).with_name("page_files")


def number(value: float | None, digits: int = 1, sign: bool = False) -> str:
    """A number as it is read; a dash for None and NaN."""
    if value is None or math.isnan(value):
        return NONE
    text = f"{abs(value):,.{digits}f}"
    if value < 0 and re.search("[1-9]", text):
        return MINUS + text
    return "+" + text if sign and value > 0 else text


def plural(amount: int, noun: str) -> str:
    return f"{amount:,} {noun}{'' if amount == 1 else 's'}"


def plain(text: str) -> str:
    """``text`` for Plotly, which reads some markup."""
    return html.escape(text, quote=False)


def figure(traces: Sequence[Mapping[str, Any]], xaxis: Mapping[str, Any], yaxis: Mapping[str, Any]) -> dict[str, Any]:
    """A figure of Plotly in the page's style, with a legend where it has several entries; colors may be var(--name)."""
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
    """A logarithmic axis around ``values``."""
    logarithms = [math.log10(max(value, FLOOR)) for value in values]
    low, high = min(logarithms), max(logarithms)
    margin = 0.06 * (high - low or 1)
    width = high - low + 2 * margin
    # Plotly's own ticks, but for spans in which it would number every digit.
    ticks = {"nticks": 5} if width < 0.9 else {"dtick": 1 if width > 1.6 else "D2"}
    return axis(title, type="log", range=[low - margin, high + margin], tickformat=",~r", zeroline=False, **ticks)


def write_page(
    path: Path, template: str, scripts: Sequence[str], filters: Mapping[str, Callable] = {}, **content: Any
) -> None:
    """Write a page from a template and the scripts that answer to its reader, which are names in page_files/."""
    from plotly.offline import get_plotlyjs  # here, since numbers are read where nothing is drawn

    # A carriage return would become a newline in the browser, and the script would no longer match its hash.
    plotly = re.sub(r"\r\n?", "\n", get_plotlyjs())
    code = "".join((_FILES / name).read_text(encoding="utf-8") for name in scripts)
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (plotly, code)]
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    # Only these two scripts may run and nothing may be fetched, whatever an image is called.
    content["policy"] = f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src {allowed}"
    loader = jinja2.FileSystemLoader(_FILES)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters |= {"number": number, "plural": plural, **filters}
    with atomic_write(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as page:
        page.writelines(environment.get_template(template).generate(plotly=plotly, code=code, **content))
