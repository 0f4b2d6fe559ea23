"""Numbers and lists of layers as short text, the same in tables, pictures and messages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from gradwatch.records import Finding, Snapshot


def number(value: float) -> str:
    """Two or three digits, six characters at most; empty for NaN, which stands for no value.

    Example:
        >>> [number(value) for value in (1.234e-7, 0.01234, 0.5, 12.34, 1234.0, 1.2e5, 0.0, math.inf, math.nan)]
        ['1.2e-7', '0.012', '0.500', '12.3', '1234', '1.2e5', '0', 'inf', '']
    """
    size = abs(value)
    if math.isnan(value) or value == 0 or math.isinf(value):
        return "" if math.isnan(value) else f"{value:g}"
    if not 1e-3 <= size < 9999.5:
        digits, exponent = f"{value:.1e}".split("e")
        return f"{digits}e{int(exponent)}"
    return f"{value:.{0 if size >= 99.95 else 1 if size >= 9.995 else 2 if size >= 0.9995 else 3}f}"


def percent(share: float) -> str:
    """A share in percent; empty for NaN. What is above 0 is never shown as 0, nor what is below 1 as 100.

    Example:
        >>> percent(0.0), percent(1e-5), percent(0.256), percent(0.999), percent(math.nan)
        ('0', '<1', '26', '>99', '')
    """
    if math.isnan(share):
        return ""
    if 0 < share < 0.01:
        return "<1"
    return ">99" if 0.99 < share < 1 else f"{share * 100:.0f}"


def shortened(name: str, width: int) -> str:
    """A name of at most ``width`` characters; the middle goes first, as both ends tell layers apart.

    Example:
        >>> shortened("encoder.layers.11.self_attn.out_proj", 20)
        'encode...tn.out_proj'
    """
    if len(name) <= width:
        return name
    tail = max((width - 3) * 2 // 3, 1)
    return f"{name[: max(width - 3 - tail, 0)]}...{name[-tail:]}"


def listed(names: Sequence[str], most: int = 4) -> str:
    """Names in a row; of many only the first ones and the last.

    Example:
        >>> listed(["a", "b"]), listed(list("abcdefgh"))
        ('a, b', 'a, b, c ... h (8 in all)')
    """
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[: most - 1])} ... {names[-1]} ({len(names)} in all)"


def open_kinds(snapshot: Snapshot, findings: Iterable[Finding]) -> dict[str, tuple[str, ...]]:
    """Layer -> kinds of the open findings about it or about one of its parameters; a healthy layer is left out.

    Example:
        >>> finding = Finding("stalled", ("head.weight",), step=0, value=1, threshold=0, message="no gradient")
        >>> open_kinds(Snapshot(0, ("body", "head")), [finding])
        {'head': ('stalled',)}
    """
    kinds: dict[str, dict[str, None]] = {layer: {} for layer in snapshot.layers}
    for finding in findings:
        for name in finding.layers if finding.is_open else ():
            owner = name.rpartition(".")[0] or ("(root)" if name in snapshot.params else "")
            kinds.get(name if name in kinds else owner, {})[finding.kind] = None
    return {layer: tuple(found) for layer, found in kinds.items() if found}
