"""What a notebook shows: tables in place of raw dataclasses, names as escaped text, and the report in a frame."""

from __future__ import annotations

import copy
import pickle
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from shown_runs import DIAGNOSIS, FINDING, vanishing_run
from torch import nn

import gradwatch
from gradwatch import GradientMonitor, Preflight, Snapshot, Watcher
from gradwatch.containment import OutOfService
from gradwatch.records import Diagnoses, Findings, Snapshots
from gradwatch.reporting.notebook import ReportPage
from gradwatch.reporting.terminal import print_summary
from gradwatch.short_runs.run import Run, as_text
from gradwatch.shown import Shown
from gradwatch.trial import Row, Trial

EVIL = "<script>alert(1)</script>[bold]"
RUN = vanishing_run()
EVIL_FINDING = replace(FINDING, layers=(EVIL,), message=f"{EVIL} is sick")
EVIL_DIAGNOSIS = replace(DIAGNOSIS, evidence=EVIL, findings=(EVIL_FINDING,), remedies=(EVIL,))
EVIL_SNAPSHOT = Snapshot(0, (EVIL,), (EVIL,), grad_norm=[1.0], grad_output_norm=[1.0])


def watched(snapshots: list[Snapshot], findings: list[Any]) -> Watcher:
    watcher = Watcher(nn.Linear(1, 1))
    watcher.history.extend(snapshots)
    watcher.findings.extend(findings)
    return watcher


SHOWN: dict[str, Shown] = {
    "Finding": EVIL_FINDING,
    "Findings": Findings([EVIL_FINDING]),
    "Diagnosis": EVIL_DIAGNOSIS,
    "Diagnoses": Diagnoses([EVIL_DIAGNOSIS]),
    "Snapshot": EVIL_SNAPSHOT,
    "Snapshots": Snapshots([EVIL_SNAPSHOT]),
    "Preflight": Preflight(EVIL, EVIL_SNAPSHOT, [EVIL_DIAGNOSIS], (EVIL_FINDING,)),
    "Run": Run(EVIL, (EVIL_SNAPSHOT,), (EVIL_FINDING,), (EVIL_DIAGNOSIS,)),
    "Trial": Trial((Row(None, 1.0, error=EVIL),), f"val_{EVIL}", False, 3, 0, (EVIL_DIAGNOSIS,)),
    "Watcher": watched([EVIL_SNAPSHOT], [EVIL_FINDING]),
}


class Tags(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.found.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("name", SHOWN)
def test_names_are_text_and_nothing_is_a_raw_dataclass(name: str) -> None:
    shown = Tags(SHOWN[name]._repr_html_())
    assert shown.found == {"pre", "span"}
    flat = re.sub(r"\s+", "", shown.text)
    assert "<script>" in flat
    assert "[bold]" in flat  # no markup either
    assert "Finding(" not in shown.text
    assert "array(" not in shown.text


@pytest.mark.parametrize("name", SHOWN)
def test_rich_prints_what_a_notebook_shows(name: str) -> None:
    assert as_text(SHOWN[name], width=110) == "\n".join(
        line.rstrip() for line in Tags(SHOWN[name]._repr_html_()).text.splitlines()
    )


def test_a_table_of_findings_has_the_open_ones_first() -> None:
    closed = replace(FINDING, kind="spike", layers=("loss",), closed_step=7)
    text = as_text(Findings([closed, FINDING]))
    assert text.index("vanishing") < text.index("spike")
    assert "0 to now" in text
    assert "0 to 7" in text


def test_many_layers_of_a_finding_are_counted() -> None:
    text = as_text(replace(FINDING, layers=tuple(f"net.{i}" for i in range(30))))
    assert "net.5" in text
    assert "net.6" not in text
    assert "and 24 more" in text


def test_empty_lists_say_so() -> None:
    assert as_text(Findings()) == "No finding."
    assert as_text(Diagnoses()) == "No cause to name."
    assert as_text(Snapshots()) == "0 Snapshots"


def test_a_list_that_is_shown_is_a_list() -> None:
    findings = Findings([FINDING])
    assert findings == [FINDING]
    assert repr(findings) == repr([FINDING])
    assert pickle.loads(pickle.dumps(findings)) == copy.deepcopy(findings) == findings


def test_the_lists_of_a_run_are_shown() -> None:
    watcher = watched(RUN, [FINDING])
    assert isinstance(watcher.findings, Findings)
    assert isinstance(watcher.diagnosis(), Diagnoses)
    assert isinstance(watcher.history, Snapshots)
    assert "3 Snapshots, of steps 0 to 2; the latest:" in as_text(watcher.history)


def test_before_the_first_step_a_monitor_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    monitor = GradientMonitor()
    assert "GradientMonitor has measured no step yet" in monitor._repr_html_()
    monitor.summary()
    assert "no step yet" in capsys.readouterr().out


def test_a_loop_of_ones_own_prints_the_summary_of_a_fit(capsys: pytest.CaptureFixture[str]) -> None:
    watcher = watched(RUN, [FINDING])
    watcher.summary()
    printed = capsys.readouterr().out
    print_summary(RUN[-1], [FINDING], watcher.diagnosis(), history=RUN)
    assert printed == capsys.readouterr().out
    assert "vanishing since step 0, open" in printed


def test_a_plain_loop_has_a_summary_and_shows_itself() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model) as watcher:
        loss = model(torch.ones(4, 2)).square().mean()
        loss.backward()
        watcher.step(optimizer, loss)
    assert "gradients at step 0" in watcher._repr_html_()


def test_parts_that_were_switched_off_are_told() -> None:
    watcher = watched(RUN, [])
    watcher.containment.failures.append(OutOfService("detector 7", 2, "ZeroDivisionError"))
    assert "detector 7" in as_text(watcher)


def test_the_report_is_a_frame_that_reaches_nothing(tmp_path: Any) -> None:
    pytest.importorskip("plotly")
    pytest.importorskip("jinja2")
    watcher = watched([EVIL_SNAPSHOT], [EVIL_FINDING])
    watcher.about = {"settings": {"model": "Net"}, "modules": {}}
    page = watcher.report()
    shown = page._repr_html_()
    assert Tags(shown).found == {"iframe"}
    assert 'sandbox="allow-scripts allow-popups"' in shown
    assert "<script>alert" not in page.html
    assert (page.title, repr(page)[:18]) == ("Net", "The report of Net.")
    saved = page.save(tmp_path / "new" / "report.html")
    assert "about:srcdoc" not in (tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    assert saved == tmp_path / "new" / "report.html"


def test_links_within_a_frame_stay_in_it() -> None:
    assert "href=&quot;about:srcdoc&quot;" in ReportPage("<head></head>", "Net")._repr_html_()


def test_what_is_not_registered_is_its_repr() -> None:
    class Mine(Shown):
        def __repr__(self) -> str:
            return "Mine()"

    assert as_text(Mine()) == "Mine()"
