"""Puts a page together: the template, the styles and scripts, the packed chart library and the packed numbers."""

from __future__ import annotations

import base64
import gzip
import json
import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import fsspec
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from gradwatch.reporting.html.verdict import state_of
from gradwatch.reporting.record_files import local_path, remote_url
from gradwatch.reporting.text import number

# npm's plotly.js-cartesian-dist-min 4.1.1, compressed and else unchanged: lines, heat maps and no more. The whole
# library is three times as large, and took a browser a second longer to start.
PLOTLY = "plotly-cartesian.min.js.gz"
_FOLDER = Path(__file__).parent
_QUOTED = re.compile(r"`([^`]+)`")


def render(template: str, scripts: Sequence[str], numbers: Mapping[str, Any], **values: Any) -> str:
    """Return a page of HTML that holds all it needs.

    Every text of the run is escaped, or in the packed numbers, which the page's script reads as JSON.

    Args:
        template: name of the template.
        scripts: names of the scripts, in order.
        numbers: what the scripts draw, as plain values.
        values: of the template; ``title`` and ``sections`` are for every page.
    """
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"code": _with_code, "number": _number, "state": state_of}
    return environment.get_template(template).render(
        **values,
        style=_text_of("page.css"),
        scripts=[_text_of(name) for name in scripts],
        plotly=_packed_plotly(),
        data=_packed(json.dumps(numbers, separators=(",", ":"), allow_nan=False)),
    )


def write_page(path: str | Path, page: str) -> str | Path:
    """Write a page to a path on this machine or a URL that fsspec knows; missing folders are made.

    Raises:
        OSError: when the file cannot be written.
    """
    if url := remote_url(path):
        with fsspec.open(url, "w", encoding="utf-8") as file:
            file.write(page)
        return url
    local = local_path(path)
    local.parent.mkdir(parents=True, exist_ok=True)
    local.write_text(page, encoding="utf-8")
    return local


def _with_code(text: str) -> Markup:
    """Return a text as HTML, with what stands between backticks as code.

    Example:
        >>> print(_with_code("at `<b>` & so on"))
        at <code>&lt;b&gt;</code> &amp; so on
    """
    return Markup(_QUOTED.sub(r"<code>\1</code>", str(escape(text))))


def _number(value: float) -> str:
    return "NaN/Inf" if math.isinf(value) else number(value)


@lru_cache(maxsize=1)
def _packed_plotly() -> str:
    return base64.b64encode((_FOLDER / PLOTLY).read_bytes()).decode()


def _packed(text: str) -> str:
    # Without a time in it, so that the same run gives the same file.
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=9, mtime=0)).decode()


@lru_cache
def _text_of(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")
