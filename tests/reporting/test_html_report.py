"""The report of a run as one HTML file: its words, its size, and that it holds what a record holds."""

import base64
import gzip
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradwatch.diagnosis import diagnose
from gradwatch.records import Diagnosis, Finding, Snapshot
from gradwatch.reporting.html import page
from gradwatch.reporting.html.report import report_html, write_report
from gradwatch.reporting.html.series import charts_of, losses_of
from gradwatch.reporting.html.verdict import cases_of, verdict_of
from gradwatch.reporting.reading import Record, read_record
from gradwatch.reporting.record import JsonlRecord
from gradwatch.snapshot import Origin
from tests.reporting.shown_runs import DIAGNOSIS, FINDING, INF, deep_run, vanishing_run

SPIKES = [Finding("spike", ("loss",), i, 9.0, 4.0, f"jump {i}", closed_step=i + 1) for i in range(9)]


class Texts(HTMLParser):
    """The texts of a page that a reader sees, and the names of its tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._hidden = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._hidden = tag if tag in ("script", "style") else self._hidden

    def handle_endtag(self, tag: str) -> None:
        self._hidden = "" if tag == self._hidden else self._hidden

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def read(html: str) -> str:
    return Texts(html).text


def numbers_of(html: str) -> dict[str, Any]:
    """What the page's scripts draw."""
    packed = re.search(r'id="data">([^<]*)<', html)
    assert packed
    return json.loads(gzip.decompress(base64.b64decode(packed[1])))


def sick_report() -> str:
    return report_html(Record(vanishing_run(), [FINDING]), [DIAGNOSIS], "my run")


def test_the_top_names_layers_cause_and_what_to_do() -> None:
    top = read(sick_report()).split("Causes and findings")[0]
    assert "The gradient vanishes at net.1 and net.3 . Likely cause: saturating activation." in top
    assert "Do first ReLU with He" in top


def test_a_cause_and_its_remedies_are_told_once() -> None:
    second = Finding("stalled", ("net.5",), 1, 1.0, 0.0, "it stands still.")
    cause = Diagnosis("saturating activation", "Each Sigmoid takes 0.25.", 1.0, (FINDING, second), ("ReLU", "skips"))
    text = read(report_html(Record(vanishing_run(), [FINDING, second]), [cause]))
    assert text.count("Each Sigmoid takes 0.25.") == 1
    assert text.count("skips") == 1
    assert "it stands still." in text


def test_it_loads_nothing() -> None:
    tags = Texts(sick_report()).tags
    loaded = [
        attrs
        for tag, attrs in tags
        if tag in ("script", "img", "iframe", "link") and ("src" in attrs or "href" in attrs)
    ]
    assert [attrs["href"] for attrs in loaded] == ["data:,"]


def test_no_text_of_a_run_is_markup_or_script() -> None:
    names = ("a</script><script>alert(1)</script>", "<b>b</b>", "{{ 1 + 1 }}", "`c`", "$d$", "%{e}", "é\n日", "&lt;f")
    finding = Finding("<i>kind</i>", names[:2], 0, 1e-9, 1e-3, "`<img src=x onerror=alert(1)>`")
    cause = Diagnosis("<u>", "<script>", 1.0, (finding,), ("<h1>",))  # type: ignore[arg-type]
    record = Record(deep_run(3, layers=names), [finding], settings={"<s>": "<svg>"}, modules={})
    html = report_html(record, [cause], "<title>")
    tags = [tag for tag, _ in Texts(html).tags]
    assert not {"b", "i", "u", "img", "svg", "s"} & {*tags}
    assert (tags.count("script"), tags.count("h1"), tags.count("title")) == (5, 1, 1)
    assert all(name.split("\n")[0] in Texts(html).text for name in names)
    assert numbers_of(html)["layers"] == list(names)


def test_500_snapshots_of_130_layers_are_below_3_mb() -> None:
    run = deep_run()
    assert (len(run), len(run[0].layers)) == (500, 130)
    size = len(report_html(Record(run, SPIKES), []).encode())
    assert size < 3e6
    assert numbers_of(report_html(Record(run, []), []))["steps"][:3] == [0, 50, 100]


def test_numbers_keep_three_digits() -> None:
    charts = charts_of([Snapshot(0, ("a", "b", "c"), grad_norm=[1.234e-7, 0, INF])], [], {"a": "a", "b": "b", "c": "c"})
    values = [row[0] for row in charts["maps"]["grad_norm"]["values"]]
    assert 10 ** (values[0] / 1000) == pytest.approx(1.234e-7, rel=2e-3)
    assert values[1:] == [-999_999, 999_999]


def test_of_many_losses_the_highest_and_the_lowest_are_kept() -> None:
    losses = np.ones(20_000)
    losses[[777, 9_999]] = 50.0, 0.01
    run = [Snapshot(19_999, ("a",), trace_step=np.arange(20_000), trace_loss=losses)]
    found = losses_of(run)
    assert len(found["step"]) <= 2002
    assert {50.0, 0.01} <= set(found["loss"])
    assert (found["step"][0], found["step"][-1]) == (0, 19_999)


def test_a_run_that_turned_nan_is_drawn_and_its_origin_told() -> None:
    origin = Origin(1, "operation", "sqrt", "backward", "", "model.py:31", "magnitude", "0 to 2")
    run = [
        Snapshot(0, ("a",), grad_norm=[1.0], total_norm=1.0, loss=2.0),
        Snapshot(1, ("a",), grad_norm=[INF], total_norm=INF, loss=INF, origin=origin),
    ]
    finding = Finding("nonfinite", ("loss",), 1, 0.0, 0.0, f"they begin in {origin}.", "error")
    html = report_html(Record(run, [finding]), diagnose([finding], run))
    assert "Where it begins the gradient of sqrt" in read(html)
    assert numbers_of(html)["loss"] == {"step": [0, 1], "loss": [2.0, "inf"]}


def test_alike_blocks_are_folded_in_the_tree() -> None:
    blocks = {f"transformer.h.{i}": "Block" for i in range(12)}
    html = report_html(Record(deep_run(2, blocks=12), [], modules=blocks), [])
    assert "0 to 11 12 \N{MULTIPLICATION SIGN} Block" in read(html)
    folded = html.split("0 to 11")[0].rsplit("<details", 1)[1]
    assert " open" not in folded.split(">")[0]


def test_settings_and_gaps_are_told() -> None:
    record = Record(vanishing_run(), [], damaged=2, lost=3, settings={"precision": "bf16-mixed"})
    text = read(report_html(record, []))
    assert "precision bf16-mixed" in text
    assert "3 lines of the record could not be written." in text
    assert "2 lines of the record cannot be read." in text


@pytest.mark.parametrize("record", [Record([], []), Record([], [FINDING]), Record([Snapshot(0, ())], [])])
def test_a_record_of_next_to_nothing_is_shown(record: Record) -> None:
    assert "Settings" in read(report_html(record, []))


def test_layers_that_come_and_go_are_shown() -> None:
    run = [Snapshot(0, ("a", "b"), grad_norm=[1, 2]), Snapshot(1, ("b", "c"), grad_norm=[3, 4])]
    found = numbers_of(report_html(Record(run, []), []))["maps"]["grad_norm"]
    assert found == {"rows": [0, 1], "values": [[301, 477], [None, 602]]}


def test_many_findings_of_a_kind_are_folded() -> None:
    (case,) = cases_of(SPIKES, [])
    assert (len(case.shown), len(case.folded)) == (4, 5)


@pytest.mark.parametrize(
    ("findings", "level", "sentence"),
    [
        ([], "watch", "No fault found so far, in 3 measured steps: too early to tell."),
        (SPIKES[:1], "watch", "Nothing is wrong now; 1 finding has passed: spike."),
        (SPIKES[:2], "watch", "Nothing is wrong now; 2 findings have passed: spike."),
        ([FINDING], "sick", "The gradient vanishes at `net.1` and `net.3`. No cause is known."),
        ([Finding("mine", ("x",), 0, 1.0, 0.0, "m")], "sick", "mine at `x`. No cause is known."),
        (
            [Finding("broadcast", ("loss",), 0, 1.0, 0.0, "m")],
            "sick",
            "Output and target do not fit each other. No cause is known.",
        ),
    ],
)
def test_the_verdict_is_one_sentence(findings: list[Finding], level: str, sentence: str) -> None:
    found = verdict_of(vanishing_run(), findings, [], {})
    assert (found.level, found.sentence) == (level, sentence)


def test_a_healthy_run_is_called_so() -> None:
    losses = np.linspace(2.3, 0.1, 400) + np.random.default_rng(0).normal(0, 0.02, 400)
    run = [Snapshot(399, ("a",), grad_norm=[1.0], trace_step=np.arange(400), trace_loss=losses)]
    found = verdict_of(run, [], [], {})
    assert (found.level, found.sentence) == ("healthy", "Healthy: no finding in 1 measured step.")
    assert "learns" in found.loss


def test_causes_settings_and_modules_are_in_the_record(tmp_path: Path) -> None:
    record = JsonlRecord(tmp_path / "gradwatch.jsonl")
    record.about({"precision": "32-true"}, {"net": "Sequential"})
    for snapshot in vanishing_run():
        record.snapshot(snapshot)
    record.finding(FINDING)
    record.diagnoses([DIAGNOSIS])
    record.close()
    found = read_record(record.path)
    assert found.diagnoses == [DIAGNOSIS]
    assert (found.settings, found.modules) == ({"precision": "32-true"}, {"net": "Sequential"})


def test_causes_of_a_run_that_went_on_are_no_longer_its_causes(tmp_path: Path) -> None:
    first, *rest = vanishing_run()
    record = JsonlRecord(tmp_path / "gradwatch.jsonl")
    record.snapshot(first)
    record.diagnoses([DIAGNOSIS])
    record.snapshot(rest[0])
    record.close()
    assert read_record(record.path).diagnoses is None


@pytest.mark.parametrize(
    "line",
    [
        '{"type": "about", "settings": {"a": 1}, "modules": {}}',
        '{"type": "diagnoses", "diagnoses": [{"cause": "x"}]}',
        '{"type": "diagnoses", "diagnoses": [{"cause": "x", "evidence": "", "score": 1, "remedies": [], '
        '"findings": [["a", -1, []]]}]}',
    ],
)
def test_a_damaged_line_is_left_out(line: str, tmp_path: Path) -> None:
    record = JsonlRecord(tmp_path / "gradwatch.jsonl")
    record.snapshot(vanishing_run()[0])
    record.close()
    with open(record.path, "a") as file:
        file.write(line + "\n")
    with pytest.warns(UserWarning, match="1 line of"):
        found = read_record(record.path)
    assert (found.damaged, found.diagnoses, dict(found.settings)) == (1, None, {})


def test_it_is_written_where_it_is_wanted(tmp_path: Path) -> None:
    path = write_report(tmp_path / "new" / "r.html", Record(vanishing_run(), []))
    assert Path(path).read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert write_report("memory://r.html", Record([], [])) == "memory://r.html"


def test_a_missing_chart_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "find_spec", lambda _: None)
    with pytest.raises(ImportError, match="pip install plotly"):
        page.require_plotly()


def test_a_layer_that_gets_no_gradient_keeps_its_row_where_it_is_sick() -> None:
    run = [Snapshot(0, ("cut", "idle", "head"), params=("cut.weight",), grad_norm=[math.nan, math.nan, 1.0])]
    finding = Finding("stalled", ("cut.weight",), 0, 1.0, 0.0, "stalled")
    drawn = numbers_of(report_html(Record(run, [finding]), []))["maps"]["grad_norm"]
    assert drawn == {"rows": [0, 2], "values": [[None], [0]]}


def test_a_run_without_values_has_no_map() -> None:
    assert numbers_of(report_html(Record([Snapshot(0, ("a",))], []), []))["maps"] == {}
