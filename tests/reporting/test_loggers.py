"""What each logger is given, by methods that the installed package has, with arguments that they take."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shown_runs import DIAGNOSIS, FINDING, INF, NAN, vanishing_run

from gradwatch.records import Diagnosis, Snapshot
from gradwatch.reporting import loggers
from gradwatch.reporting.keys import scalars
from gradwatch.reporting.loggers import AnyLogger, Comet, Lit, MLflow, Sink, Wandb, sink_of, table_rows
from gradwatch.reporting.pictures import draw_run

NOTE = "clipped in 50 % of 4 measured steps"


class Recorder:
    """Stands for an object of a class: it notes the calls of its methods, and raises for arguments they do not take."""

    def __init__(self, described: type | None = None) -> None:
        self.described = described
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)
        if self.described is not None:
            inspect.getattr_static(self.described, name)  # an AttributeError where the package has no such method

        def method(*args: Any, **kwargs: Any) -> Any:
            if self.described is not None:
                inspect.signature(getattr(self.described, name)).bind(self, *args, **kwargs)
            self.calls.append((name, args, kwargs))

        return method

    def names(self) -> list[str]:
        return [name for name, _, _ in self.calls]


class Items(Recorder):
    """Stands for LitLogger's Experiment, which is written to by keys."""

    def __init__(self) -> None:
        super().__init__()
        self.series: dict[str, Recorder] = {}
        self.items: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Recorder:
        return self.series.setdefault(key, Recorder(importlib.import_module("litlogger.series").Series))

    def __setitem__(self, key: str, value: Any) -> None:
        self.items[key] = value


class LoggerStub(Recorder):
    """Stands for one of Lightning's loggers, and notes its own calls and those of its experiment."""

    run_id = "7f"

    def __init__(self, described: type | None, experiment: Any) -> None:
        super().__init__(described)
        self.kept = experiment

    @cached_property
    def experiment(self) -> Any:
        return self.kept


def lightning_class(name: str) -> type:
    return getattr(importlib.import_module("lightning.pytorch.loggers"), name)  # type: ignore[no-any-return]


def class_in(module: str, name: str) -> type:
    return getattr(pytest.importorskip(module), name)  # type: ignore[no-any-return]


def show_all(sink: Sink, report: Path) -> None:
    report.write_text("<html></html>")
    run = vanishing_run()
    sink.snapshot(run[0])
    sink.findings([FINDING], [DIAGNOSIS], 2, NOTE)
    sink.pictures(draw_run(run, [FINDING]), 2)
    sink.histograms({}, 2)
    sink.alert(FINDING, "it vanishes")
    sink.verdict("The gradient vanishes.", ["saturating activation"])
    sink.report(report)


@pytest.fixture
def report(tmp_path: Path) -> Path:
    return tmp_path / "gradwatch.html"


def test_any_logger_gets_the_numbers_and_nothing_else(report: Path) -> None:
    logger = LoggerStub(lightning_class("CSVLogger"), None)
    sink = sink_of(logger)
    show_all(sink, report)
    assert type(sink) is AnyLogger
    assert not sink.shows_pictures
    assert logger.calls == [("log_metrics", (scalars(vanishing_run()[0]),), {"step": 0})]


def test_comet(report: Path) -> None:
    experiment = Recorder(class_in("comet_ml", "CometExperiment"))
    show_all(Comet(LoggerStub(lightning_class("CometLogger"), experiment)), report)
    kinds = ["log_text", "log_image", "log_image", "send_notification", "log_other", "log_other", "log_asset"]
    assert experiment.names() == kinds
    (_, (text,), options), (_, (image,), about) = experiment.calls[:2]
    assert "**vanishing**" in text
    assert NOTE in text
    assert options == {"step": 2}
    assert image.read(4) == b"\x89PNG"
    assert about == {"name": "gradient_flow/1 layers by steps", "step": 2}
    assert experiment.calls[3][1] == ("gradwatch: vanishing at step 0", "warning", {"finding": "it vanishes"})
    assert experiment.calls[-1] == ("log_asset", (str(report),), {"file_name": "gradwatch.html", "overwrite": True})


def test_litlogger(report: Path) -> None:
    litlogger = pytest.importorskip("litlogger")
    experiment = Items()
    logger = LoggerStub(lightning_class("LitLogger"), experiment)
    show_all(Lit(logger), report)
    assert logger.names() == ["log_metrics", "log_metadata"]
    pictures = ["gradient_flow/1 layers by steps", "gradient_flow/2 latest step"]
    assert [*experiment.series] == ["gradwatch/findings", *pictures]
    ((_, (text,), at),) = experiment.series["gradwatch/findings"].calls
    assert type(text) is litlogger.Text
    assert at == {"step": 2}
    image = experiment.series[pictures[0]].calls[0][1][0]
    assert type(image) is litlogger.Image
    assert Path(image._get_upload_path()).read_bytes().startswith(b"\x89PNG")
    assert experiment.items["gradwatch/report"].path == str(report)


def test_litlogger_is_spared_what_it_would_warn_of() -> None:
    logger = LoggerStub(lightning_class("LitLogger"), None)
    Lit(logger).snapshot(Snapshot(0, ("a", "b"), grad_norm=[INF, 2.0], total_norm=INF))
    assert logger.calls == [("log_metrics", ({"grad_norm/b": 2.0},), {"step": 0})]


def test_mlflow(report: Path) -> None:
    client = Recorder(class_in("mlflow.tracking", "MlflowClient"))
    show_all(MLflow(LoggerStub(lightning_class("MLFlowLogger"), client)), report)
    assert client.names() == ["log_text", "log_image", "log_image", "set_tag", "set_tag", "log_artifact"]
    assert client.calls[0][1][2] == "gradwatch/findings.md"
    assert client.calls[3][1] == ("7f", "gradwatch.verdict", "The gradient vanishes.")
    assert client.calls[-1][1] == ("7f", str(report), "gradwatch")


def test_mlflow_takes_a_thousand_numbers_at_once_and_plain_names() -> None:
    logger = LoggerStub(lightning_class("MLFlowLogger"), None)
    layers = ("(root)", *(f"layers.{i}" for i in range(1200)))
    MLflow(logger).snapshot(Snapshot(3, layers, grad_norm=np.arange(1201.0)))
    first, second = (values for _, (values,), _ in logger.calls)
    assert (len(first), len(second)) == (1000, 201)
    assert first["grad_norm/root"] == 0.0
    assert second["grad_norm/layers.1199"] == 1200.0
    assert all(options == {"step": 3} for _, _, options in logger.calls)


def test_wandb(report: Path) -> None:
    run = Recorder(class_in("wandb", "Run"))
    run.id, run.summary = "7f", {}  # type: ignore[attr-defined]
    logger = LoggerStub(lightning_class("WandbLogger"), run)
    show_all(Wandb(logger), report)
    assert logger.names() == ["log_metrics", "log_table", "log_image", "log_image", "log_metrics"]
    assert run.summary == {  # type: ignore[attr-defined]
        "gradwatch/note": NOTE,
        "gradwatch/verdict": "The gradient vanishes.",
        "gradwatch/causes": "saturating activation",
    }
    assert run.calls[0] == ("alert", ("gradwatch: vanishing at step 0", "it vanishes"), {"level": "WARN"})
    name, (artifact,), _ = run.calls[1]
    assert (name, artifact.name, artifact.type) == ("log_artifact", "gradwatch-7f", "report")
    assert [*artifact.manifest.entries] == ["gradwatch.html"]


def test_a_long_kind_fits_into_an_alert() -> None:
    run = Recorder()
    finding = replace(FINDING, kind="k" * 80, severity="error")
    Wandb(LoggerStub(None, run)).alert(finding, "text")
    ((_, (title, _), options),) = run.calls
    assert len(title) < 64  # as Weights & Biases asks for
    assert options == {"level": "ERROR"}


@pytest.mark.parametrize(
    ("name", "sink"), [("WandbLogger", Wandb), ("MLFlowLogger", MLflow), ("CometLogger", Comet), ("LitLogger", Lit)]
)
def test_loggers_are_known_by_the_name_of_their_class(name: str, sink: type) -> None:
    mine = type("Mine", (type(name, (), {}),), {})
    assert type(sink_of(mine())) is sink
    assert type(sink_of(type("Other", (), {})())) is AnyLogger


def test_the_table_has_a_row_for_each_finding_and_each_cause_alone() -> None:
    closed = replace(FINDING, kind="spike", layers=("loss",), value=INF, threshold=NAN, closed_step=9)
    alone = Diagnosis("unscaled input", "The input has an RMS of 300.", 0.5, (), ("standardize it",))
    rows = table_rows([closed, FINDING], [DIAGNOSIS, alone])
    assert [row[0] for row in rows] == ["vanishing", "spike", "no finding yet"]
    assert all(len(row) == len(loggers._TABLE) and all(isinstance(cell, str) for cell in row) for row in rows)
    assert rows[0][-2:] == [DIAGNOSIS.cause, "; ".join(DIAGNOSIS.remedies)]
    assert rows[1][2:6] == ["0", "9", "inf", ""]
