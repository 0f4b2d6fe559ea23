"""Shell patterns on the names of layers and parameters."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from fnmatch import fnmatchcase

from gradwatch.containment import SettingError


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns matches the whole name.

    Example:
        >>> matches("encoder.0.weight", ["encoder.*"])
        True
    """
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def check_patterns(patterns: Iterable[str], names: Iterable[str], what: str) -> None:
    """Raise a SettingError (a ValueError) for the first pattern that matches no name; ``what`` has the names.

    Example:
        >>> try:
        ...     check_patterns(["haed.*"], ["body.weight", "head.weight"], "parameter")
        ... except ValueError as error:
        ...     print(error)
        the pattern 'haed.*' matches no parameter; the nearest of the 2 parameters are 'head.weight'
    """
    known = list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.3) or known[:3]
            raise SettingError(
                f"the pattern {pattern!r} matches no {what}; the nearest of the {len(known)} {what}s are "
                f"{', '.join(map(repr, near)) or 'none'}"
            )
