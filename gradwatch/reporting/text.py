"""Numbers, layers and findings as text: short forms for tables, Markdown for TensorBoard, the verdict."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from statistics import median

from rich import box
from rich.table import Table
from rich.text import Text

from gradwatch.records import Diagnosis, Finding, Snapshot

_WIDEST = 36  # columns of a terminal of 80 that may go to the names of layers


def number(value: float) -> str:
    """Return a number with two or three digits, in at most six characters; empty for NaN, which means no value.

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
    """Return a share in percent; empty for NaN. Only exact values are shown as 0 and 100.

    Example:
        >>> percent(0.0), percent(1e-5), percent(0.256), percent(0.999), percent(math.nan)
        ('0', '<1', '26', '>99', '')
    """
    if math.isnan(share):
        return ""
    if 0 < share < 0.01:
        return "<1"
    return ">99" if 0.99 < share < 1 else f"{share * 100:.0f}"


def plural(count: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is 1.

    Example:
        >>> plural(1, "event"), plural(3, "event")
        ('1 event', '3 events')
    """
    return f"{count} {noun}{'' if count == 1 else 's'}"


def listed(names: Sequence[str], most: int = 4) -> str:
    """Return names in a row; of many only the first ones and the last."""
    if len(names) <= most:
        return ", ".join(names)
    return f"{', '.join(names[: most - 1])} ... {names[-1]} ({len(names)} in all)"


def open_kinds(snapshot: Snapshot, findings: Iterable[Finding]) -> dict[str, tuple[str, ...]]:
    """Return layer -> kinds of the open findings about it or one of its parameters; healthy layers are left out."""
    kinds: dict[str, dict[str, None]] = {layer: {} for layer in snapshot.layers}
    for finding in findings:
        for name in finding.layers if finding.is_open else ():
            owner = name.rpartition(".")[0] or ("(root)" if name in snapshot.params else "")
            kinds.get(name if name in kinds else owner, {})[finding.kind] = None
    return {layer: tuple(found) for layer, found in kinds.items() if found}


def clip_text(history: Iterable[Snapshot]) -> str:
    """Return in words what a clip did in the measured steps; empty where there was none, or it could do nothing.

    Example:
        >>> run = [Snapshot(i, (), total_norm=n, total_norm_after=min(n, 1.0)) for i, n in enumerate((0.5, 2.0, 4.0))]
        >>> clip_text(run)
        'clipped in 67 % of 3 measured steps, median coefficient 0.375'
        >>> clip_text([Snapshot(0, (), total_norm=0.42, total_norm_after=0.42, clip="norm", clip_max_norm=1.0)])
        'the clip at 1.00 never met its bound: total norm at most 0.420'
    """
    known = [s for s in history if math.isfinite(s.total_norm) and math.isfinite(s.total_norm_after) and not s.skipped]
    # A clip that did not act leaves a coefficient of 1 up to rounding, and clip_grad_norm_ adds 1e-6 to the norm.
    clipped = [s.clip_coefficient for s in known if s.clip_coefficient < 1 - _ROUNDING]
    if clipped:
        steps = plural(len(known), "measured step")
        coefficient = number(median(clipped))
        return f"clipped in {percent(len(clipped) / len(known))} % of {steps}, median coefficient {coefficient}"
    clips = [s for s in known if s.clip == "norm" and math.isfinite(s.clip_max_norm)]
    if not clips or any(s.total_norm > s.clip_max_norm * (1 - _ROUNDING) for s in clips):
        return ""
    largest, bound = max(s.total_norm for s in clips), min(s.clip_max_norm for s in clips)
    return f"the clip at {number(bound)} never met its bound: total norm at most {number(largest)}"


_ROUNDING = 1e-4
_HEADS = ("kind", "since step", "until step", "value", "threshold")  # no long names: a table would break them
_MARKDOWN = re.compile(r"([\\`*_\[\]<>|#])")


def findings_text(findings: Sequence[Finding], diagnoses: Iterable[Diagnosis] = (), note: str = "") -> str:
    """Return a Markdown table of the findings, the open ones first, and below it their messages, causes and remedies.

    A note about the run comes last.

    A cause is told in full at the first finding that it explains. Layers and messages are not in the table, as
    TensorBoard breaks words where a table has a wide column.

    Example:
        >>> finding = Finding("vanishing", ("fc",), step=3, value=1e-7, threshold=1e-3, message="it vanishes")
        >>> print(findings_text([finding]))
        **1 open finding**, 0 closed
        <BLANKLINE>
        | kind | since step | until step | value | threshold |
        | --- | --- | --- | --- | --- |
        | **vanishing** | 3 | open | 1.0e-7 | 0.001 |
        <BLANKLINE>
        **vanishing** since step 3, `fc`: it vanishes
    """
    known = list(diagnoses)
    alone = [f"**{d.cause}**, no finding yet. {d.evidence} {_tries(d)}" for d in known if not d.findings]
    notes = [f"Over the run: {note}."] if note else []
    if not findings:
        return "\n\n".join([*(alone or ["No finding yet."]), *notes])
    open_ones = [finding for finding in findings if finding.is_open]
    closed = [finding for finding in findings if not finding.is_open]
    count = f"**{plural(len(open_ones), 'open finding')}**, {len(closed)} closed"
    table = "\n".join([_row(_HEADS), _row(["---"] * len(_HEADS)), *map(_finding_row, [*open_ones, *closed])])
    causes = [next((d for d in known if finding in d.findings), None) for finding in open_ones]
    texts = [
        _sentences(finding, cause, is_told=cause in causes[:place])
        for place, (finding, cause) in enumerate(zip(open_ones, causes, strict=True))
    ]
    return "\n\n".join([count, table, *texts, *alone, *notes])


def _finding_row(finding: Finding) -> str:
    kind = f"**{finding.kind}**" if finding.is_open else finding.kind
    until = "open" if finding.closed_step is None else str(finding.closed_step)
    limits = [number(finding.value), number(finding.threshold)]
    return _row([kind, str(finding.step), until, *limits])


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def since(finding: Finding) -> str:
    """Return the worst and the latest value in a sentence; empty where both are as it opened.

    Example:
        >>> since(Finding("spike", ("loss",), 3, 9.0, 4.0, "it jumps", latest=(9, 5.0), worst=(5, 12.0)))
        'Worst 12.0 at step 5, latest 5.00 at step 9.'
    """
    if finding.worst is None or finding.latest is None:
        return ""
    (at, worst), (now, latest) = finding.worst, finding.latest
    if number(worst) == number(latest) == number(finding.value):
        return ""
    if at == now:
        return f"Worst at the latest step, {now}: {number(worst)}."
    return f"Worst {number(worst)} at step {at}, latest {number(latest)} at step {now}."


def in_words(finding: Finding) -> str:
    """Return the message of a finding as it opened, then the worst and the latest."""
    return " ".join(filter(None, (finding.message, since(finding))))


def evidence_beyond(diagnosis: Diagnosis, said: str) -> str:
    """Return the evidence without what the finding's message has said already.

    Example:
        >>> nan = Diagnosis("unguarded operation", "NaN in `log`. The loss was 2.", 0.9, (), ())
        >>> evidence_beyond(nan, "NaN in `log`.")
        'The loss was 2.'
    """
    evidence = diagnosis.evidence
    for text in filter(None, (said, said[:1].upper() + said[1:])):
        evidence = evidence.replace(text, "")
    return evidence.strip()


def _sentences(finding: Finding, cause: Diagnosis | None, *, is_told: bool) -> str:
    text = f"**{finding.kind}** since step {finding.step}, `{listed(finding.layers)}`: {in_words(finding)}"
    if cause is None:
        return text
    if is_told:
        return f"{text}\n\nCause: **{cause.cause}**, as above."
    return f"{text}\n\nCause: **{cause.cause}**. {evidence_beyond(cause, finding.message)} {_tries(cause)}"


def escaped(text: str) -> str:
    r"""Return a text that Markdown shows unchanged.

    Example:
        >>> escaped("net.my_layer")
        'net.my\\_layer'
    """
    return _MARKDOWN.sub(r"\\\1", text)


def _tries(diagnosis: Diagnosis) -> str:
    return "\n".join(["Try, in this order:\n", *_numbered(diagnosis.remedies)])


def verdict(
    findings: Sequence[Finding] = (), diagnoses: Sequence[Diagnosis] = (), name: Callable[[str], str] = str
) -> Table:
    """A row for each cause, the likeliest first, then one for each finding that none explains.

    Args:
        findings: of the run.
        diagnoses: their causes.
        name: gives each finding and cause the name to print.

    Example:
        >>> finding = Finding("vanishing", ("fc",), step=3, value=1e-7, threshold=1e-3, message="it vanishes")
        >>> cause = Diagnosis("saturating activation", "The Sigmoid takes 0.2.", 0.9, (finding,), ("ReLU",))
        >>> table = verdict([finding], [cause])
        >>> [column.header for column in table.columns], table.row_count
        (['found', 'cause and evidence', 'what to do'], 1)
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 2, 0, 0), leading=1, expand=True)
    all_of_them = [*findings, *(finding for diagnosis in diagnoses for finding in diagnosis.findings)]
    words = [word for finding in all_of_them for word in _found(finding, name).split()]
    longest = max(map(len, words), default=0)  # a name that is broken can't be searched for
    table.add_column("found", width=min(longest, _WIDEST), ratio=3, overflow="fold")  # with a ratio, width is the least
    for head, ratio in (("cause and evidence", 5), ("what to do", 4)):
        table.add_column(head, ratio=ratio, overflow="fold")
    for diagnosis in diagnoses:
        found = "\n".join(_found(finding, name) for finding in diagnosis.findings) or "no finding yet"
        cause = Text.assemble((name(diagnosis.cause), "bold"), "\n", diagnosis.evidence)
        table.add_row(Text(found), cause, Text("\n".join(_numbered(diagnosis.remedies))))
    explained = [finding for diagnosis in diagnoses for finding in diagnosis.findings]
    for finding in findings:
        if finding not in explained:
            table.add_row(Text(_found(finding, name)), Text(in_words(finding)), Text())
    return table


def _found(finding: Finding, name: Callable[[str], str]) -> str:
    until = "" if finding.closed_step is None else f", gone at step {finding.closed_step}"
    return f"{name(finding.kind)} since step {finding.step}{until}: {listed(finding.layers)}"


def _numbered(remedies: Sequence[str]) -> list[str]:
    return [f"{place}. {remedy}" for place, remedy in enumerate(remedies, 1)]
