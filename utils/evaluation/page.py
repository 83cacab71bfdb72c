"""Pages of one file that fetch nothing: the report of what test.py counted, and the demo's walk through the method.

``page_files/`` holds their templates, which escape what they are given, their style and the report's script.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from utils.files import atomic_write

NONE = "\N{EN DASH}"
_FILES = Path(__file__).with_name("page_files")


def number(value: float | None, digits: int | None = None, sign: bool = False) -> str:
    """A number as it is read, with three significant digits but at least one decimal; a dash for None and NaN."""
    if value is None or math.isnan(value):
        return NONE
    if digits is None:
        digits = 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:{'+' if sign else ''}z,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def encoded(picture: Image.Image, form: str, **options: Any) -> str:
    """A picture as a file in base64."""
    buffer = io.BytesIO()
    picture.save(buffer, form, optimize=True, **options)
    return base64.b64encode(buffer.getvalue()).decode()


def write_page(path: Path, template: str, script: str | None = None, **content: Any) -> None:
    """Write a page from a template and, where one answers to its reader with Plotly, a script; both lie in page_files/."""
    scripts = []
    if script:
        from plotly.offline import get_plotlyjs  # here, since numbers are read where nothing is drawn

        scripts = [get_plotlyjs(), (_FILES / script).read_text(encoding="utf-8")]
    # A carriage return would become a newline in the browser, and the script would no longer match its hash.
    scripts = [re.sub(r"\r\n?", "\n", text) for text in scripts]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    allowed = " ".join(f"'sha256-{value}'" for value in hashes) or "'none'"
    # Only these scripts may run and nothing may be fetched, whatever an image is called.
    policy = f"default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src {allowed}"
    loader = jinja2.FileSystemLoader(_FILES)
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    environment.filters["number"] = number
    with atomic_write(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as page:
        page.writelines(environment.get_template(template).generate(policy=policy, scripts=scripts, **content))
