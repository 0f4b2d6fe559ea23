# ruff: noqa: RUF001
"""Turn what docstrings have of reStructuredText into Markdown, for the pages under docs/reference/.

``help()`` shows docstrings as they are, so tables and formulas are written to be read there. Formulas become plain
text: the site then needs no script from elsewhere.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_SIGNS = {
    "leftarrow": "←", "cdot": "·", "lVert": "‖", "rVert": "‖", "mu": "μ", "sigma": "σ", "epsilon": "ε", "eta": "η",
    "gamma": "γ", "lambda": "λ", "sum": "Σ", "dots": "…", "quad": " ", "qquad": "  ", "min": "min", "max": "max",
    "Bigl": "", "Bigr": "", "bigl": "", "bigr": "", "left": "", "right": "", "le": "≤", "ge": "≥", "sqrt": "√",
}  # fmt: skip
_GROUP = r"\{((?:[^{}]|\{[^{}]*\})*)\}"
_MATH = re.compile(r"^\.\. math:: *(.*(?:\n[ ]+.*)*)", re.MULTILINE)
_TABLE = re.compile(r"^(=+(?: +=+)+)\n(.*)\n\1\n((?:.*\n)+?)\1$", re.MULTILINE)
_ROLE = re.compile(r":(?:class|func|meth|attr|mod|exc):`~?([^`]+)`")
_REMARK = re.compile(r"^(Non-finite (?:gradients|entries)|Cost|Shapes|State): ", re.MULTILINE)


def plain_formula(latex: str) -> str:
    """A formula of LaTeX as plain text."""
    text = " ".join(latex.split())
    text = re.sub(r"\\(?:operatorname|mathcal|mathrm|text)" + _GROUP, r"\1", text)
    text = re.sub(r"\\frac" + _GROUP + " *" + _GROUP, lambda found: f"{_factor(found[1])} / {_factor(found[2])}", text)
    text = re.sub(r"\\[,;:! ]", " ", text)
    text = re.sub(r"\\sqrt" + _GROUP, r"√(\1)", text)
    text = re.sub(r"\\([A-Za-z]+)", lambda found: _SIGNS.get(found[1], found[1]), text)
    text = re.sub("‖ (.*?) ‖", r"‖\1‖", text)
    text = re.sub(r"([_^])\{(\w+)\}", r"\1\2", text)  # one word needs no brackets
    return re.sub(r"([_^])\{([^{}]*)\}", r"\1(\2)", text)


def _factor(text: str) -> str:
    return f"({text})" if " " in text.strip() and not re.fullmatch(r"\\lVert.*?\\rVert", text.strip()) else text


def markdown_table(found: re.Match[str]) -> str:
    """A simple table of reStructuredText as one of Markdown."""
    columns = [part.span() for part in re.finditer("=+", found[1])]
    ends = [start for start, _ in columns[1:]] + [None]
    cells = [
        [line[start:end].strip() for (start, _), end in zip(columns, ends, strict=True)]
        for line in (found[2], *found[3].rstrip("\n").split("\n"))
    ]
    rows = [f"| {' | '.join(row).replace('``', '`')} |" for row in cells if set("".join(row)) - set("-─—")]
    return "\n".join([rows[0], f"|{' --- |' * len(columns)}", *rows[1:]])


def as_markdown(docstring: str) -> str:
    """A docstring as Markdown."""
    text = _TABLE.sub(markdown_table, docstring)
    text = _MATH.sub(lambda found: f"```text\n{plain_formula(found[1])}\n```", text)
    text = re.sub("::$", ":", text, flags=re.MULTILINE)  # an indented block follows
    text = _ROLE.sub(r"`\1`", text)
    text = re.sub("^Example:$", "Examples:", text, flags=re.MULTILINE)  # the name of the section that knows doctests
    return _REMARK.sub(r"\n**\1**: ", text)


class Markdown(griffe.Extension):
    """Rewrites each docstring when it is loaded."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)
