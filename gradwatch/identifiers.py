"""One table: the identifiers of all findings and causes, such as GW101. They are API, so the table only grows."""

from __future__ import annotations

from collections.abc import Mapping

# Baselines, `--allow`, code scanning and bookmarks hold these. So a line never changes and none is used again: a
# finding or cause that goes leaves its line here. A new one takes the next number of its block.
IDENTIFIERS: Mapping[str, str] = {
    # Findings
    "GW001": "vanishing",
    "GW002": "exploding",
    "GW003": "nonfinite",
    "GW004": "dead",
    "GW005": "saturated",
    "GW006": "stalled",
    "GW007": "spike",
    "GW008": "unmoved",
    "GW009": "carried-over",
    "GW010": "idle-clip",
    "GW011": "out-of-sync",
    "GW012": "broadcast",
    "GW013": "not-learning",
    # Causes
    "GW101": "saturating activation",
    "GW102": "initialization too small",
    "GW103": "initialization too large",
    "GW104": "learning rate too high",
    "GW105": "dead ReLU",
    "GW106": "zero-gradient head",
    "GW107": "unscaled input",
    "GW108": "unscaled target",
    "GW109": "recurrent depth",
    "GW110": "missing normalization or skip",
    "GW111": "learning rate too low",
    "GW112": "missing warm-up",
    "GW113": "outlier batch",
    "GW114": "unguarded operation",
    "GW115": "frozen or detached part",
    "GW116": "precision underflow",
    "GW117": "unbounded loss",
    "GW118": "weight decay too strong",
    "GW119": "clipping too hard",
    "GW120": "gradients are not zeroed",
    "GW121": "step without effect",
    "GW122": "clip without effect",
    "GW123": "replicas out of sync",
    "GW124": "shapes broadcast",
    "GW125": "unbounded activation",
    "GW126": "posterior collapse",
    "GW127": "not known",
    "GW128": "ignored labels",
    "GW129": "constant reward",
}
_BY_NAME = {name: identifier for identifier, name in IDENTIFIERS.items()}


def identifier_of(name: str) -> str:
    """Return the identifier of a finding or a cause; empty for a name of the user's own detector.

    Example:
        >>> identifier_of("vanishing"), identifier_of("saturating activation"), identifier_of("of my own")
        ('GW001', 'GW101', '')
    """
    return _BY_NAME.get(name, "")


def name_of(given: str) -> str:
    """Return the name that an identifier stands for, in any case of letters; anything else as it is.

    Example:
        >>> name_of("gw101"), name_of("vanishing")
        ('saturating activation', 'vanishing')
    """
    return IDENTIFIERS.get(given.upper(), given)


def with_identifier(name: str) -> str:
    """Return a name with its identifier in front, for a line of text.

    Example:
        >>> with_identifier("vanishing"), with_identifier("of my own")
        ('GW001 vanishing', 'of my own')
    """
    return f"{identifier_of(name)} {name}".strip()
