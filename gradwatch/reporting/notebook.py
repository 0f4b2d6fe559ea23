"""Tables for rich and notebooks: of findings, causes and Snapshots, and of a run with its report inline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich import box
from rich.console import ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

from gradwatch.records import Diagnoses, Diagnosis, Finding, Findings, Snapshot, Snapshots
from gradwatch.reporting.html.page import write_page
from gradwatch.reporting.html.report import report_html
from gradwatch.reporting.layer_table import LayerTable
from gradwatch.reporting.reading import Record
from gradwatch.reporting.terminal import Summary, wide_console
from gradwatch.reporting.text import in_words, listed, number, plural, verdict
from gradwatch.shown import Shown, parts_of

_MOST_LAYERS = 6  # of a finding, one below the other
_FRAME_HEIGHT = 800  # pixels: the verdict, the findings and the first chart are seen without scrolling the notebook
# A page in a frame has no address, so a link to one of its sections would lead to the notebook. This gives it one.
_BASE = '<head>\n<base href="about:srcdoc">'


class WatchedRun(Shown):
    """A run that is being watched, or was: what its monitor or Watcher prints, and shows in a notebook.

    The classes have ``history``, ``findings``, ``steps``, ``out_of_service`` and ``diagnosis()``, which are read here.
    """

    about: Mapping[str, Mapping[str, str]] = {}  # its ``settings`` and ``modules``, as in its record

    @property
    def elsewhere(self) -> str:
        """A sentence that says where the run is, if a copy watched it and this one watched nothing; else empty."""
        return ""

    def last_run(self) -> Record | None:
        """Return what is known of the last run; None where nothing has been measured."""
        run: Any = self
        return self._in_memory() if run.history else None

    def _in_memory(self) -> Record:
        run: Any = self
        known: dict[str, Any] = {"out_of_service": list(run.out_of_service), "diagnoses": run.diagnosis(), **self.about}
        return Record(list(run.history), list(run.findings), **known)

    def summary(self) -> None:
        """Print the latest step's layers, the findings and what to do, as at the end of a fit."""
        wide_console().print(self)

    def report(self) -> ReportPage:
        """Return the report of the run: a notebook shows it inline, ``report().save("report.html")`` writes it.

        It is 2 MB, which a notebook keeps with its outputs.

        Raises:
            ImportError: when plotly or jinja2 is not installed.
        """
        record = (self.last_run() if self.elsewhere else None) or self._in_memory()
        title = record.settings.get("model", "")
        return ReportPage(report_html(record, record.diagnoses or [], title), title or "a run")

    def __repr__(self) -> str:
        run: Any = self
        told = f"{plural(run.steps, 'step')}, {plural(len(run.findings), 'finding')}" if run.history else "no step yet"
        return f"<{type(self).__name__}: {self.elsewhere or told}>"


class ReportPage:
    """The report of a run as a page of HTML, which a notebook shows in a frame.

    Attributes:
        html: the page; it needs nothing else.
        title: name of the run.

    Example:
        >>> ReportPage("<p>", "Net")
        The report of Net. A notebook shows it; save("report.html") writes it.
        >>> "&lt;p&gt;" in ReportPage("<p>", "Net")._repr_html_()
        True
    """

    def __init__(self, html: str, title: str) -> None:
        self.html, self.title = html, title

    def save(self, path: str | Path) -> str | Path:
        """Write the page to a path, or a URL that fsspec knows, and return where it is."""
        return write_page(path, self.html)

    def __repr__(self) -> str:
        return f'The report of {self.title}. A notebook shows it; save("report.html") writes it.'

    def _repr_html_(self) -> str:
        """Return a frame. Scripts in it reach nothing of the notebook."""
        page = escape(self.html.replace("<head>", _BASE, 1))
        style = f"width:100%;height:{_FRAME_HEIGHT}px;border:1px solid #bbb"
        return f'<iframe srcdoc="{page}" sandbox="allow-scripts allow-popups" style="{style}"></iframe>'


def findings_table(findings: Sequence[Finding]) -> Table:
    """Return a table with a row for each finding, the open ones first.

    Example:
        >>> table = findings_table([Finding("vanishing", ("fc",), 3, 1e-7, 1e-3, "it vanishes")])
        >>> [column.header for column in table.columns], table.row_count
        (['finding', 'layers', 'steps', 'value', 'limit', 'what was measured'], 1)
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 2, 0, 0), leading=1)
    for head in ("finding", "layers", "steps"):
        table.add_column(head, no_wrap=True, overflow="fold")
    for head in ("value", "limit"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("what was measured", min_width=30)
    for finding in sorted(findings, key=lambda finding: not finding.is_open):
        style = "dim" if not finding.is_open else "bold red" if finding.severity == "error" else "bold yellow"
        steps = f"{finding.step} to {'now' if finding.is_open else finding.closed_step}"
        names = [*finding.layers[:_MOST_LAYERS]]
        names += [f"and {len(finding.layers) - len(names)} more"] if len(finding.layers) > len(names) else []
        texts = ["\n".join(names), steps, number(finding.value), number(finding.threshold), in_words(finding)]
        table.add_row(Text(finding.kind, style=style), *map(Text, texts))
    return table


@parts_of.register(WatchedRun)
def _of_run(run: Any, options: ConsoleOptions) -> Iterator[RenderableType]:
    if run.history:
        left_out = getattr(run, "unwatched", ())
        notes = [f"not watched, as include and exclude say: {listed(left_out)}"] if left_out else []
        notes += map(str, run.out_of_service)
        yield Summary(run.history[-1], run.findings, run.diagnosis(), notes=notes, history=run.history)
    elif run.elsewhere:
        yield Text(f"gradwatch: {run.elsewhere}.")
        yield from _of_record(run)
    else:
        yield Text(f"gradwatch: {type(run).__name__} has measured no step yet.")


def _of_record(run: Any) -> Iterator[RenderableType]:
    try:
        record = run.last_run()
    except (OSError, ValueError) as error:  # the file is gone
        yield Text(f"It cannot be read: {error}")
        return
    if record.snapshots:
        notes = [*map(str, record.out_of_service)]
        yield Summary(
            record.snapshots[-1], record.findings, record.diagnoses or (), notes=notes, history=record.snapshots
        )


@parts_of.register
def _of_finding(finding: Finding, options: ConsoleOptions) -> Iterable[RenderableType]:
    return [findings_table([finding])]


@parts_of.register
def _of_findings(findings: Findings, options: ConsoleOptions) -> Iterable[RenderableType]:
    return [findings_table(findings) if findings else Text("No finding.", style="bold green")]


@parts_of.register
def _of_diagnosis(diagnosis: Diagnosis, options: ConsoleOptions) -> Iterable[RenderableType]:
    return [verdict((), [diagnosis])]


@parts_of.register
def _of_diagnoses(diagnoses: Diagnoses, options: ConsoleOptions) -> Iterable[RenderableType]:
    return [verdict((), diagnoses) if diagnoses else Text("No cause to name.", style="bold green")]


@parts_of.register
def _of_snapshot(snapshot: Snapshot, options: ConsoleOptions) -> Iterator[RenderableType]:
    yield LayerTable(snapshot, (), f"gradients at step {snapshot.step}")


@parts_of.register
def _of_snapshots(snapshots: Snapshots, options: ConsoleOptions) -> Iterator[RenderableType]:
    steps = f", of steps {snapshots[0].step} to {snapshots[-1].step}; the latest:" if snapshots else ""
    yield Text(f"{plural(len(snapshots), 'Snapshot')}{steps}")
    yield from _of_snapshot(snapshots[-1], options) if snapshots else ()
