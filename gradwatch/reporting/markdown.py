"""Findings and diagnoses as Markdown, for TensorBoard's Text tab."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gradwatch.records import Diagnosis, Finding
from gradwatch.reporting.words import listed, number

_HEADS = ("kind", "layers", "since step", "until step", "value", "threshold")


def findings_text(findings: Sequence[Finding], diagnoses: Iterable[Diagnosis] = ()) -> str:
    """A table of the findings, the open ones first; below it what each open one says, its cause and what to try.

    The sentences stand below, as TensorBoard breaks words where a table has a wide column.

    Example:
        >>> finding = Finding("vanishing", ("fc",), step=3, value=1e-7, threshold=1e-3, message="it vanishes")
        >>> print(findings_text([finding]))
        **1 open finding**, 0 closed
        <BLANKLINE>
        | kind | layers | since step | until step | value | threshold |
        | --- | --- | --- | --- | --- | --- |
        | **vanishing** | `fc` | 3 | open | 1.0e-7 | 0.001 |
        <BLANKLINE>
        **vanishing** since step 3: it vanishes
    """
    known = list(diagnoses)
    alone = [f"**{d.cause}**, without a finding. {d.evidence} {_tries(d)}" for d in known if not d.findings]
    if not findings:
        return "\n\n".join(alone) or "No finding so far."
    open_ones = [finding for finding in findings if finding.is_open]
    closed = [finding for finding in findings if not finding.is_open]
    count = f"**{len(open_ones)} open finding{'s' * (len(open_ones) != 1)}**, {len(closed)} closed"
    table = "\n".join([_row(_HEADS), _row(["---"] * len(_HEADS)), *map(_finding_row, [*open_ones, *closed])])
    texts = [_sentences(finding, [d for d in known if finding in d.findings][:1]) for finding in open_ones]
    return "\n\n".join([count, table, *texts, *alone])


def _finding_row(finding: Finding) -> str:
    kind = f"**{finding.kind}**" if finding.is_open else finding.kind
    until = "open" if finding.closed_step is None else str(finding.closed_step)
    limits = [number(finding.value), number(finding.threshold)]
    return _row([kind, f"`{listed(finding.layers)}`", str(finding.step), until, *limits])


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _sentences(finding: Finding, diagnoses: Iterable[Diagnosis]) -> str:
    parts = [f"**{finding.kind}** since step {finding.step}: {finding.message}"]
    for diagnosis in diagnoses:
        parts += [f"Cause: **{diagnosis.cause}**. {diagnosis.evidence} {_tries(diagnosis)}"]
    return "\n\n".join(parts)


def _tries(diagnosis: Diagnosis) -> str:
    remedies = (f"{place}. {remedy}" for place, remedy in enumerate(diagnosis.remedies, 1))
    return "\n".join(["Try, in this order:\n", *remedies])
