"""Options given as text, as in ``GRADWATCH="every_n_steps=10,report=1"``, with the types of a class's signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from gradwatch.containment import say_once

NO, YES = ("", "0", "false", "no", "off"), ("1", "true", "yes", "on")
Read = Callable[[str], Any]  # raises a ValueError for a text that is no value of its type


def options_of_text(kind: type, text: str, where: str) -> dict[str, Any]:
    """Return the options in a text that a class takes; those that are wrong are left out, and said once.

    Nothing is raised, as nobody who trains wrote the text into the program. The rest is kept: a run of hours with the
    defaults tells more than one that nobody watched.

    Args:
        kind: the class.
        text: as in :func:`read_options`.
        where: the text comes from, for the warning.
    """
    options, wrong = read_options(kind, text)
    for sentence in wrong:  # once: a program may make a hundred Trainers
        say_once(f"{where}={text!r}, of which an option is left out: {sentence}")
    try:
        kind(**options)
    except (ValueError, TypeError) as error:  # each is right, and not together
        say_once(f"{where}={text!r}, whose options are left out: {error}")
        return {}
    return options


def read_options(kind: type, text: str) -> tuple[dict[str, Any], list[str]]:
    """Return the options in a text, and in sentences what is wrong with the others, which are left out.

    Args:
        kind: the class that takes the options. Only those that a text can give are known: no functions and no objects.
        text: ``name=value``, with commas between them. A list of patterns may have commas too:
            ``include=encoder.*,decoder.*,every_n_steps=5``.

    Example:
        >>> class Monitor:
        ...     def __init__(self, every_n_steps: int = 50, include: Sequence[str] | None = None, summary: bool = True):
        ...         if every_n_steps < 1:
        ...             raise ValueError(f"every_n_steps is {every_n_steps}; expected a whole number of at least 1")
        >>> read_options(Monitor, "every_n_steps=5,include=encoder.*,decoder.*,summary=no")
        ({'every_n_steps': 5, 'include': ['encoder.*', 'decoder.*'], 'summary': False}, [])
        >>> for sentence in read_options(Monitor, "every_n_step=5,summary=2,every_n_steps=0")[1]:
        ...     print(sentence)
        there is no option every_n_step, only every_n_steps, include, summary; did you mean every_n_steps?
        summary is '2'; expected yes or no (1 or 0)
        every_n_steps is 0; expected a whole number of at least 1
    """
    readers = _readers_of(kind)
    options: dict[str, Any] = {}
    wrong: list[str] = []
    for name, value in _pairs(text, readers):
        try:
            options[name] = _checked(kind, readers, name, value)
        except (ValueError, TypeError) as error:
            wrong.append(str(error))
    return options, wrong


def _pairs(text: str, readers: dict[str, list[Read]]) -> list[tuple[str, str]]:
    """Split a text at its commas, but for those within a list of patterns."""
    pairs: list[tuple[str, str]] = []
    for part in filter(None, map(str.strip, text.split(","))):
        name, is_pair, value = (each.strip() for each in part.partition("="))
        goes_on = pairs and _patterns in readers.get(pairs[-1][0], ())
        if not is_pair and goes_on:
            pairs[-1] = (pairs[-1][0], f"{pairs[-1][1]},{name}")
        else:
            pairs.append((name.replace("-", "_"), value if is_pair else "1"))  # an option alone is switched on
    return pairs


def _checked(kind: type, readers: dict[str, list[Read]], name: str, text: str) -> Any:
    if name not in readers:
        near = get_close_matches(name, readers, n=1)
        question = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"there is no option {name}, only {', '.join(readers)}{question}")
    value = _read(readers[name], name, text)
    kind(**{name: value})  # the class knows the range; alone, so that an error is about this option
    return value


def _read(readers: list[Read], name: str, text: str) -> Any:
    expected = []
    for reader in readers:
        try:
            return reader(text)
        except ValueError as error:
            expected.append(str(error))
    raise ValueError(f"{name} is {text!r}; expected {', or '.join(dict.fromkeys(expected))}")


def _readers_of(kind: type) -> dict[str, list[Read]]:
    """Return option -> the ways to read its text, in the order in which they are tried."""
    params = inspect.signature(kind, eval_str=True).parameters
    found = {name: _readers(param.annotation) for name, param in params.items()}
    return {name: readers for name, readers in found.items() if any(reader is not _none for reader in readers)}


def _readers(hint: Any) -> list[Read]:
    if get_origin(hint) in (Union, UnionType):
        readers = [reader for part in get_args(hint) for reader in _readers(part)]
        return sorted(readers, key=_takes_all)  # a path takes any text, so it is tried last
    if get_origin(hint) is Literal:
        return [partial(_one_of, get_args(hint))]
    if get_origin(hint) is Sequence:
        return [_patterns] if get_args(hint) == (str,) else []
    return [_SIMPLE[hint]] if hint in _SIMPLE else []


def _takes_all(reader: Read) -> bool:
    return reader in (_patterns, _path)


def _none(text: str) -> None:
    if text.lower() != "none":
        raise ValueError("none")


def _yes_or_no(text: str) -> bool:
    if text.lower() not in YES + NO:
        raise ValueError("yes or no (1 or 0)")
    return text.lower() in YES


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("a whole number") from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("a number") from None


def _one_of(values: tuple[Any, ...], text: str) -> Any:
    if False in values and text.lower() in NO:
        return False
    if text not in values:
        raise ValueError(" or ".join(map(str, values)))
    return text


def _path(text: str) -> str:
    if not text:
        raise ValueError("a path")
    return str(Path(text).expanduser()) if text.startswith("~") else text


def _patterns(text: str) -> list[str]:
    return text.split(",")


_SIMPLE: dict[Any, Read] = {
    bool: _yes_or_no, int: _whole, float: _number, str: _path, Path: _path, type(None): _none,
}  # fmt: skip
