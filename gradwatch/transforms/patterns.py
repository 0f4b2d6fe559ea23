"""Shell patterns on parameter names."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns matches the whole name.

    Example:
        >>> matches("encoder.0.weight", ["encoder.*"])
        True
    """
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def check_patterns(patterns: Iterable[str], names: Collection[str]) -> None:
    """Raise a ValueError for the first pattern that matches no name; it gives the nearest ones.

    Example:
        >>> check_patterns(["haed.*"], ["body.weight", "head.weight"])
        Traceback (most recent call last):
        ValueError: the pattern 'haed.*' matches none of the 2 parameters; near it: 'head.weight'
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, list(names), n=3, cutoff=0.3) or list(names)[:3]
            raise ValueError(
                f"the pattern {pattern!r} matches none of the {len(names)} parameters; near it: "
                f"{', '.join(map(repr, near)) or 'nothing'}"
            )
