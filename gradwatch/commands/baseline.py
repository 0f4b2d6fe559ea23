"""The baseline: a file of the problems that are known, so that a check fails for new ones only."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gradwatch.commands.problems import Outcome, Problem
from gradwatch.commands.target import UsageError
from gradwatch.identifiers import IDENTIFIERS
from gradwatch.plain_values import DAMAGE, as_names, of_type

_VERSION = 1
_KEYS = ("rule", "model", "layers")


@dataclass(frozen=True, order=True)
class Entry:
    """A known problem: its rule, the model's class, and patterns of the layers that it may name.

    Example:
        >>> entry = Entry("package.Net", "GW004", ("net.*",))
        >>> print(entry)
        GW004 dead in package.Net: net.*
    """

    model: str
    rule: str
    layers: tuple[str, ...]

    def __str__(self) -> str:
        name = IDENTIFIERS.get(self.rule, "")
        where = f": {', '.join(self.layers)}" if self.layers else ""
        return f"{' '.join(filter(None, (self.rule, name)))} in {self.model}{where}"

    def matches(self, problem: Problem) -> bool:
        """Return True if it is the same rule and model, and each layer of the problem fits one of the patterns.

        In a pattern ``*`` is any part of a name between two dots, and ``**`` anything.
        """
        same = (self.rule, self.model) == (problem.rule, problem.model)
        return same and all(any(_fits(layer, pattern) for pattern in self.layers) for layer in problem.patterns)


def _fits(layer: str, pattern: str) -> bool:
    expression = re.escape(pattern).replace(r"\*\*", ".*").replace(r"\*", "[^.]*")
    return re.fullmatch(expression, layer) is not None


def read_baseline(path: Path) -> tuple[Entry, ...]:
    """Read the entries of a file.

    Raises:
        UsageError: when it is not there, can't be read, or is no baseline.
    """
    update = f"write it with --baseline {path} --update-baseline"
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"there is no baseline {path}; {update}") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"the baseline {path} can't be read: {error}; expected JSON; {update}") from error
    version = read.get("gradwatch_baseline") if isinstance(read, dict) else None
    if version != _VERSION:
        got = f"version {version}" if version else "no gradwatch_baseline in it"
        raise UsageError(f"{path} is no baseline of version {_VERSION}, but has {got}; {update}")
    try:
        return tuple(map(_entry, of_type(list, read["known"])))
    except DAMAGE as error:
        expected = '{"rule": "GW001", "model": "package.Net", "layers": ["net.*"]}'
        raise UsageError(f"the baseline {path} has a wrong entry: {error}; expected such as {expected}") from error


def _entry(given: Any) -> Entry:
    entry: Mapping[str, Any] = of_type(dict, given)
    if missing := [key for key in _KEYS if key not in entry]:
        raise ValueError(f"{missing[0]} is missing in {entry}")
    return Entry(of_type(str, entry["model"]), of_type(str, entry["rule"]), as_names(entry["layers"]))


def write_baseline(path: Path, entries: Iterable[Entry]) -> None:
    """Write entries in a fixed order, one a line, so that a diff shows what came and went.

    Raises:
        UsageError: when the file can't be written.
    """
    lines = ",\n".join(f"    {json.dumps(_as_dict(entry))}" for entry in sorted(set(entries)))
    known = f"[\n{lines}\n  ]" if lines else "[]"
    text = f'{{\n  "gradwatch_baseline": {_VERSION},\n  "known": {known}\n}}\n'
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"the baseline {path} can't be written: {error}") from error


def _as_dict(entry: Entry) -> dict[str, Any]:
    name = IDENTIFIERS.get(entry.rule)  # for the reader; not read again
    return {
        "rule": entry.rule,
        **({"name": name} if name else {}),
        "model": entry.model,
        "layers": list(entry.layers),
    }


def held_against(outcome: Outcome, entries: Iterable[Entry], path: Path) -> Outcome:
    """Return the outcome with the problems marked that entries match, and the entries of its model that match none.

    A training that crashed says nothing of what is fixed.
    """
    entries = tuple(entries)
    problems = tuple(replace(each, is_known=any(e.matches(each) for e in entries)) for each in outcome.problems)
    gone = [] if outcome.run.trouble else [e for e in entries if _is_fixed(e, outcome)]
    return replace(outcome, problems=problems, baseline=str(path), fixed=tuple(map(str, gone)))


def _is_fixed(entry: Entry, outcome: Outcome) -> bool:
    return entry.model == outcome.model and not any(map(entry.matches, outcome.problems))


def updated(entries: Iterable[Entry], outcome: Outcome) -> Iterator[Entry]:
    """Yield the entries of other models, those of this model that still occur, and one for each new problem.

    Entries that were widened by hand, such as to ``*``, stay as they are while they match.
    """
    entries = tuple(entries)
    yield from (entry for entry in entries if not _is_fixed(entry, outcome))
    for problem in outcome.problems:
        if not any(entry.matches(problem) for entry in entries):
            yield Entry(problem.model, problem.rule, problem.patterns)
