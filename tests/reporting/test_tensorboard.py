from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shown_runs import DIAGNOSIS, FINDING, NAN, vanishing_run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from gradwatch.records import Snapshot
from gradwatch.reporting import events
from gradwatch.reporting.keys import LOG_COLUMNS, RUN_TAGS, scalars, tensorboard_tags
from gradwatch.reporting.pictures import draw_run
from gradwatch.reporting.tensorboard import TensorBoardReport


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[SummaryWriter]:
    writer = SummaryWriter(str(tmp_path))
    yield writer
    writer.close()


def read(writer: SummaryWriter) -> EventAccumulator:
    writer.flush()
    events = EventAccumulator(writer.get_logdir(), {"tensors": 0, "images": 0, "scalars": 0, "histograms": 0})
    events.Reload()
    return events


def raw(writer: SummaryWriter) -> list[Any]:
    writer.flush()
    return [
        event for path in sorted(Path(writer.get_logdir()).iterdir()) for event in EventFileLoader(str(path)).Load()
    ]


def layouts(writer: SummaryWriter) -> list[Layout]:
    return [Layout.FromString(e.tensor_proto.string_val[0]) for e in read(writer).Tensors("custom_scalars__config__")]


def text(writer: SummaryWriter) -> list[tuple[int, str]]:
    events = read(writer).Tensors("gradwatch/findings/text_summary")
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in events]


def test_every_value_is_there_under_its_tag(writer: SummaryWriter) -> None:
    report, run = TensorBoardReport(writer), vanishing_run()
    for snapshot in run:
        report.snapshot(snapshot)
    events = read(writer)
    tags = tensorboard_tags(run[0].layers)
    names = tags | RUN_TAGS
    expected = {names[key]: value for key, value in scalars(run[0]).items()}
    logs = {f"log10 {tag}": np.log10(v) for tag, v in expected.items() if tag.partition("/")[0] in LOG_COLUMNS}
    assert len(logs) == 8 + 15 + 8
    expected |= logs
    assert set(events.Tags()["scalars"]) == set(expected)
    for tag, value in expected.items():
        assert [event.step for event in events.Scalars(tag)] == [0, 1, 2]
        np.testing.assert_allclose([event.value for event in events.Scalars(tag)], value, rtol=1e-6)


def test_a_step_is_one_event(writer: SummaryWriter) -> None:
    report, run = TensorBoardReport(writer), vanishing_run()
    for snapshot in run:
        report.snapshot(snapshot)
    filled = [event.step for event in raw(writer) if len(event.summary.value) > 1]
    assert filled == [0, 1, 2]


def test_values_that_come_and_go_keep_their_tags(writer: SummaryWriter) -> None:
    report = TensorBoardReport(writer, ["grad_norm", "dead_fraction"])
    for step, dead in enumerate([NAN, 0.25, NAN, 0.5]):
        report.snapshot(Snapshot(step, ("fc", "relu"), grad_norm=[step, NAN], dead_fraction=[NAN, dead]))
    report.snapshot(Snapshot(4, ("new", "fc"), grad_norm=[7, 4]))
    events = read(writer)
    assert [(e.step, e.value) for e in events.Scalars("dead_fraction/01 relu")] == [(1, 0.25), (3, 0.5)]
    assert [e.value for e in events.Scalars("grad_norm/00 fc")] == [0, 1, 2, 3]
    assert [e.value for e in events.Scalars("grad_norm/01 fc")] == [4]


def test_the_layout_has_one_chart_a_column_and_grows_with_the_columns(writer: SummaryWriter) -> None:
    report = TensorBoardReport(writer, ["grad_norm", "dead_fraction"])
    for step, dead in enumerate([NAN, NAN, 0.25, NAN]):
        report.snapshot(Snapshot(step, ("fc", "relu"), grad_norm=[1, NAN], dead_fraction=[NAN, dead]))
    charts = [[chart.title for chart in layout.category[0].chart] for layout in layouts(writer)]
    assert [len(titles) for titles in charts] == [2, 3]
    assert "before and after clipping" in charts[-1][0]


def test_the_patterns_of_the_layout_match_all_layers_and_nothing_else(writer: SummaryWriter) -> None:
    run = vanishing_run()
    TensorBoardReport(writer).snapshot(run[0])
    tags = [*read(writer).Tags()["scalars"], "grad_norm_total_x", "grad_norm/mine"]
    matched = [
        [tag for tag in tags if any(re.match(pattern, tag) for pattern in chart.multiline.tag)]
        for chart in layouts(writer)[0].category[0].chart
    ]
    assert [len(found) for found in matched] == [2, 8, 15, 8, 7]


def test_the_chart_of_the_updates_says_what_is_healthy(writer: SummaryWriter) -> None:
    TensorBoardReport(writer).snapshot(vanishing_run()[0])
    charts = layouts(writer)[0].category[0].chart
    assert charts[3].title == "log10 of update / weight, healthy about -3"
    assert list(charts[3].multiline.tag) == [r"log10 update_to_weight/\d+ "]
    assert read(writer).Scalars("update_to_weight/00 net.1")[0].value == pytest.approx(
        vanishing_run()[0].update_to_weight[0]
    )


def test_a_writer_closed_after_a_fit_can_be_written_to_again(writer: SummaryWriter) -> None:
    report, run = TensorBoardReport(writer), vanishing_run()
    report.snapshot(run[0])
    writer.close()
    report.snapshot(run[1])
    steps = [event.step for event in raw(writer) if len(event.summary.value) > 1]
    assert steps == [0, 1]


@pytest.mark.parametrize("first", ["snapshot", "findings", "pictures", "histograms"])
def test_a_closed_writer_is_opened_by_any_event(writer: SummaryWriter, first: str) -> None:
    report, run = TensorBoardReport(writer), vanishing_run()
    report.snapshot(run[0])
    param = nn.Parameter(torch.zeros(2))
    param.grad = torch.ones(2)
    events: dict[str, Any] = {
        "snapshot": lambda: report.snapshot(run[1]),
        "findings": lambda: report.findings([FINDING]),
        "pictures": lambda: report.pictures(draw_run(run), 1),
        "histograms": lambda: report.histograms({"p": param}, 1),
    }
    writer.close()
    events[first]()
    assert report.trouble == ""
    assert len(layouts(writer)) == 2
    tags = read(writer).Tags()
    assert tags["images" if first == "pictures" else "histograms" if first == "histograms" else "tensors"]


def test_a_report_can_begin_with_a_closed_writer(writer: SummaryWriter) -> None:
    writer.close()
    report = TensorBoardReport(writer)
    report.pictures(draw_run(vanishing_run()), 2)
    report.snapshot(vanishing_run()[0])
    assert report.trouble == ""
    assert len(read(writer).Tags()["images"]) == 2


def test_layers_may_change_within_a_run(writer: SummaryWriter) -> None:
    report = TensorBoardReport(writer)
    before = Snapshot(0, ("body", "head"), grad_norm=[1, 2], grad_output_norm=[1, 2], calls={"head": np.ones(6)})
    after = Snapshot(1, ("body", "neck", "new"), grad_norm=[1, 2, 3], grad_output_norm=[1, 2, 3])
    for snapshot in (before, after, before):
        report.snapshot(snapshot)
    old = replace(FINDING, layers=("head", "head.weight"))
    report.findings([old])
    report.pictures(draw_run([before, after], [old]), 1)
    events = read(writer)
    assert [event.step for event in events.Scalars("grad_norm/00 body")] == [0, 1, 0]
    assert [event.step for event in events.Scalars("grad_norm/02 new")] == [1]
    assert len(events.Tags()["images"]) == 2


@pytest.mark.parametrize("value", [NAN, float("inf"), 0.0, 1e300, 5e-324])
def test_odd_values_are_written(writer: SummaryWriter, value: float) -> None:
    report = TensorBoardReport(writer)
    numbers = {"total_norm": value, "total_norm_after": value, "loss": value}
    report.snapshot(Snapshot(0, ("a", "b"), grad_norm=[value, 1.0], grad_output_norm=[value, value], **numbers))
    report.snapshot(Snapshot(1, ()))
    assert read(writer).Scalars("grad_norm/01 b")[0].value == 1.0
    assert report.trouble == ""


def test_a_writer_of_ones_own_class_is_taken(tmp_path: Path) -> None:
    class Mine(SummaryWriter):
        pass

    with Mine(str(tmp_path)) as writer:
        TensorBoardReport(writer).snapshot(vanishing_run()[0])
        assert read(writer).Tags()["scalars"]


def test_a_model_without_layers_still_has_its_total(writer: SummaryWriter) -> None:
    TensorBoardReport(writer).snapshot(Snapshot(0, (), total_norm=2.0))
    assert read(writer).Tags()["scalars"] == ["0 total/1 grad_norm_total"]


def test_time_series_opens_on_the_total_norm(writer: SummaryWriter) -> None:
    writer.add_scalar("accuracy", 1.0)
    TensorBoardReport(writer).snapshot(vanishing_run()[0])
    assert min(read(writer).Tags()["scalars"]) == "0 total/1 grad_norm_total"


def test_what_has_been_constant_so_far_is_left_out(writer: SummaryWriter) -> None:
    report = TensorBoardReport(writer)
    for step, (dead, after) in enumerate([(0.0, 2.0), (0.0, 2.0), (0.5, 1.0), (0.0, 2.0)]):
        report.snapshot(Snapshot(step, ("relu",), dead_fraction=[dead], total_norm=2.0, total_norm_after=after))
    events = read(writer)
    for tag, values in {"dead_fraction/00 relu": [0.5, 0.0], RUN_TAGS["clip_coefficient"]: [0.5, 1.0]}.items():
        assert [(event.step, event.value) for event in events.Scalars(tag)] == [*zip([2, 3], values, strict=True)]
    assert [event.step for event in events.Scalars(RUN_TAGS["grad_norm_total"])] == [0, 1, 2, 3]


def test_a_healthy_run_has_a_card_too(writer: SummaryWriter) -> None:
    report = TensorBoardReport(writer)
    report.snapshot(vanishing_run()[2])
    report.verdict("Healthy: no finding in 3 measured steps of my_net.", [])
    (event,) = read(writer).Tensors("gradwatch/0 verdict/text_summary")
    assert event.step == 2
    assert event.tensor_proto.string_val[0].decode() == "**Healthy: no finding in 3 measured steps of my\\_net.**"


def test_the_causes_of_a_sick_run_are_on_its_card(writer: SummaryWriter) -> None:
    TensorBoardReport(writer).verdict("The gradient vanishes.", ["saturating activation", "recurrent depth"])
    (event,) = read(writer).Tensors("gradwatch/0 verdict/text_summary")
    assert b"**saturating activation, recurrent depth**" in event.tensor_proto.string_val[0]


def test_findings_are_readable_text(writer: SummaryWriter) -> None:
    report = TensorBoardReport(writer)
    report.findings([FINDING], [DIAGNOSIS], step=5)
    report.findings([replace(FINDING, closed_step=9)])
    (first, opened), (second, closed) = text(writer)
    assert (first, second) == (5, 9)
    assert "| **vanishing** | 0 | open | 1.0e-5 | 0.001 |" in opened
    assert "**vanishing** since step 0, `net.1, net.3`: " in opened
    assert FINDING.message in opened
    assert "1. ReLU with He\n2. skips" in opened
    assert "| vanishing | 0 | 9 |" in closed
    assert "**0 open findings**, 1 closed" in closed


def test_no_finding_is_said_too(writer: SummaryWriter) -> None:
    TensorBoardReport(writer).findings([], step=3)
    assert text(writer) == [(3, "No finding yet.")]


def test_pictures_are_drawn_and_only_real_cells_have_one_over_calls(writer: SummaryWriter) -> None:
    calls = {"cell": np.geomspace(1e-9, 1, 30), "relu": np.ones(2)}
    run = [replace(snapshot, calls=calls) for snapshot in vanishing_run()]
    report = TensorBoardReport(writer)
    assert draw_run([]) == draw_run([Snapshot(0, ())]) == {}
    report.pictures(draw_run(run, [FINDING]), 2)
    events = read(writer)
    tags = ["gradient_flow/1 layers by steps", "gradient_flow/2 latest step", "gradient_flow/3 calls of cell"]
    assert events.Tags()["images"] == tags
    assert [(image.step, image.width) for image in events.Images(tags[0])] == [(2, 900)]


def test_histograms_leave_out_what_is_not_finite(writer: SummaryWriter) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1), nn.Linear(1, 1, bias=False))
    model[0].weight.grad = torch.tensor([[1.0, NAN, 2.0], [float("inf"), 3.0, 4.0]])
    model[0].bias.grad = torch.full((2,), NAN)
    model[1].weight.grad = torch.tensor([[0.5, 0.5]])
    TensorBoardReport(writer).histograms(model.named_parameters(), step=4)
    events = read(writer)
    assert events.Tags()["histograms"] == ["gradient/00 0.weight", "gradient/02 1.weight"]
    (histogram,) = events.Histograms("gradient/00 0.weight")
    assert (histogram.step, histogram.histogram_value.num, histogram.histogram_value.max) == (4, 4.0, 4.0)


def test_histograms_take_odd_gradients(writer: SummaryWriter) -> None:
    sparse = nn.Embedding(4, 2, sparse=True)
    sparse(torch.tensor([1, 1])).sum().backward()
    half = nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    half.grad = torch.ones_like(half)
    wave = nn.Parameter(torch.zeros(3, dtype=torch.complex64))
    wave.grad = torch.full_like(wave, 1 + 2j).conj()
    TensorBoardReport(writer).histograms({"sparse": sparse.weight, "half": half, "wave": wave}, step=0)
    events = read(writer)
    counts = [events.Histograms(tag)[0].histogram_value.num for tag in events.Tags()["histograms"]]
    assert counts == [2, 3, 6]


def test_an_unknown_column_is_refused(writer: SummaryWriter) -> None:
    with pytest.raises(ValueError, match="'norms' is no column of a Snapshot"):
        TensorBoardReport(writer, ["norms"])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("entries", "dtype"), [([1e30, 1e-9], "float32"), ([-1e30], "float32"), ([1e300], "float64"), ([3e38], "bfloat16")]
)
def test_histograms_hold_entries_that_exploded(writer: SummaryWriter, entries: list[float], dtype: str) -> None:
    param = nn.Parameter(torch.zeros(len(entries), dtype=getattr(torch, dtype)))
    param.grad = torch.tensor(entries, dtype=param.dtype)
    TensorBoardReport(writer).histograms({"p": param}, step=0)
    (histogram,) = read(writer).Histograms("gradient/00 p")
    assert sum(histogram.histogram_value.bucket) == len(entries)


def test_records_are_whole_with_checksums_in_c(writer: SummaryWriter) -> None:
    report = TensorBoardReport(writer)
    for step in range(3):
        report.snapshot(Snapshot(step, ("a", "b"), grad_norm=[1e-3, step]))
    assert events.guard(writer) is events.guard(writer) is not None
    assert [event.value for event in read(writer).Scalars("grad_norm/01 b")] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("private", ["_async_writer", "_worker", "_record_writer", "_writer"])
def test_where_tensorboard_is_built_otherwise_it_is_left_as_it_is(
    writer: SummaryWriter, monkeypatch: pytest.MonkeyPatch, private: str
) -> None:
    event_writer = writer.file_writer.event_writer
    thread = event_writer._async_writer._worker
    owners = {"_async_writer": event_writer, "_worker": event_writer._async_writer, "_record_writer": thread}
    owner = owners.get(private, thread._record_writer)
    with monkeypatch.context() as hidden:
        hidden.delattr(owner, private)
        assert events.guard(writer) is None
    TensorBoardReport(writer).snapshot(vanishing_run()[0])
    assert read(writer).Tags()["scalars"]
