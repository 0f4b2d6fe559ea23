"""All cases, and a choice of them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from program import Case, Half, halves

HERE = Path(__file__).parent
SEEDS = {"fault": 3, "healthy": 5}


@cache
def every_case() -> list[Case]:
    """The cases of every file of the two folders.

    Raises:
        ValueError: when two have the same name.
    """
    files = [path for folder in ("faults", "negatives") for path in sorted((HERE / folder).glob("[a-z]*.py"))]
    modules = [importlib.import_module(f"{path.parent.name}.{path.stem}") for path in files]
    cases = [case for module in modules for case in module.CASES]
    names = [case.name for case in cases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"these names are given twice: {', '.join(twice)}; expected each case to have its own")
    return cases


def chosen(half: Half | Literal["both"], families: Sequence[str] | None = None) -> list[Case]:
    """The cases of a half, of all or some families.

    Raises:
        ValueError: when a family does not exist.
    """
    split = halves(every_case())
    known = sorted({case.family for case in every_case()})
    wrong = sorted(set(families or ()) - set(known))
    if wrong:
        raise ValueError(f"no family is called {', '.join(wrong)}; expected some of: {', '.join(known)}")
    return [
        case
        for case in every_case()
        if half in ("both", split[case.name]) and (not families or case.family in families)
    ]
