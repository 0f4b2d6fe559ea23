"""The explanation of a finding or a cause: for a page of the documentation each, and for the help in code scanning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from gradwatch.causes import advice
from gradwatch.identifiers import identifier_of, name_of
from gradwatch.records import Cause


@dataclass(frozen=True)
class Explanation:
    """A finding or a cause in plain words.

    Attributes:
        short: what it is, in a line without a full stop.
        text: what it means, where it comes from and what to think of first, in a paragraph of Markdown.
        looks: code that has it, with the mended lines as comments.
    """

    short: str
    text: str
    looks: str


def is_cause(identifier: str) -> bool:
    """Return True for the identifier of a cause.

    Example:
        >>> is_cause("GW101"), is_cause("GW001")
        (True, False)
    """
    return name_of(identifier) in get_args(Cause)


def things_to_do(identifier: str) -> tuple[str, ...]:
    """Return what to do about a cause in general, the first thing to try first; none for a finding.

    Example:
        >>> things_to_do("GW118"), things_to_do("GW001")
        (('lower the weight decay',), ())
    """
    return advice(name_of(identifier)) if is_cause(identifier) else ()  # type: ignore[arg-type]


def way_to_allow(name: str) -> str:
    """Return the options that accept a finding or a cause.

    Example:
        >>> way_to_allow("dead")
        '--allow GW004'
    """
    return f"--allow {identifier_of(name)}"
