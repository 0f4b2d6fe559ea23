"""What was found, why, and what to do, as a table."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from gradwatch.records import Diagnosis, Finding
from gradwatch.reporting.words import listed


def verdict(findings: Sequence[Finding] = (), diagnoses: Sequence[Diagnosis] = ()) -> Table:
    """A row for each cause, the likeliest first, then one for each finding that none explains.

    Args:
        findings: what was found.
        diagnoses: why.

    Example:
        >>> finding = Finding("vanishing", ("fc",), step=3, value=1e-7, threshold=1e-3, message="it vanishes")
        >>> cause = Diagnosis("saturating activation", "The Sigmoid takes 0.2.", 0.9, (finding,), ("ReLU",))
        >>> table = verdict([finding], [cause])
        >>> [column.header for column in table.columns], table.row_count
        (['found', 'cause and evidence', 'what to do'], 1)
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 2, 0, 0), leading=1, expand=True)
    for head, ratio in (("found", 3), ("cause and evidence", 5), ("what to do", 4)):
        table.add_column(head, ratio=ratio, overflow="fold")
    for diagnosis in diagnoses:
        found = "\n".join(map(_found, diagnosis.findings)) or "before a finding opened"
        table.add_row(Text(found), _cause(diagnosis), Text(_steps(diagnosis.remedies)))
    explained = [finding for diagnosis in diagnoses for finding in diagnosis.findings]
    for finding in findings:
        if finding not in explained:
            table.add_row(Text(_found(finding)), Text(finding.message), Text())
    return table


def _found(finding: Finding) -> str:
    until = "" if finding.closed_step is None else f", gone at step {finding.closed_step}"
    return f"{finding.kind} since step {finding.step}{until}: {listed(finding.layers)}"


def _cause(diagnosis: Diagnosis) -> Text:
    return Text.assemble((diagnosis.cause, "bold"), "\n", diagnosis.evidence)


def _steps(remedies: Sequence[str]) -> str:
    return "\n".join(f"{place}. {remedy}" for place, remedy in enumerate(remedies, 1))
