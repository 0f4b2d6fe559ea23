"""A fault inside the watching neither ends nor changes a fit; one warning names the part that is switched off."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from torch import Tensor
from zoo_learner import STEPS, WIDE, assert_same_end, in_one_line, trained

import gradwatch
from gradwatch import Finding, GradientError, GradientMonitor, Snapshot
from gradwatch.pipeline.intake import History
from gradwatch.probe import hooks
from gradwatch.probe.columns import Assembly
from gradwatch.probe.parameters import ParameterReading
from gradwatch.probe.scalars import DeviceScalars


def fails_on_step_7(snapshot: Snapshot) -> None:
    if snapshot.step == 7:
        raise RuntimeError("the detector is broken")


def returns_text_on_step_7(snapshot: Snapshot) -> Any:
    return "vanishing" if snapshot.step == 7 else None


def returns_numbers_on_step_7(snapshot: Snapshot) -> Any:
    return [3] if snapshot.step == 7 else None


def finds_something(snapshot: Snapshot) -> Finding:
    return Finding("anything", (snapshot.layers[0],), snapshot.step, 1.0, 0.0, "something is found")


class ForgetsEverything:
    """A detector whose memory can't be saved."""

    def __call__(self, snapshot: Snapshot) -> None: ...

    def state_dict(self) -> Any:
        raise RuntimeError("no memory")

    def load_state_dict(self, state: Any) -> None: ...


class FailingLogger(Logger):
    """Fails at the third call with gradients."""

    name, version = "failing", 0

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.calls += "grad_norm_total" in metrics
        if self.calls == 3:
            raise OSError("the server is gone")


def fail(*_: Any, **__: Any) -> Any:
    raise RuntimeError("broken on purpose")


def failing_at(call: int, original: Any, if_: Callable[..., bool] = lambda *_: True) -> Any:
    """A function that fails at one of its calls, counted from 0 among those for which ``if_`` holds."""
    calls = [0]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if if_(*args):
            calls[0] += 1
            if calls[0] == call + 1:
                raise RuntimeError("broken on purpose")
        return original(*args, **kwargs)

    return wrapped


def is_wide(tensor: Tensor) -> bool:
    return tensor.shape[-1:] == (WIDE,)


def a_layer_is_unreadable(patch: pytest.MonkeyPatch) -> None:
    """The outputs of the first two layers are wide: the first one's is the fourteenth that is read."""
    patch.setattr(hooks, "stored_values", failing_at(14, hooks.stored_values, is_wide))


def a_gradient_is_unreadable(patch: pytest.MonkeyPatch) -> None:
    """Three arrive in each step, the last layer's first."""
    patch.setattr(DeviceScalars, "norm", failing_at(3 * 7, DeviceScalars.norm))


def a_hook_cannot_be_placed(patch: pytest.MonkeyPatch) -> None:
    """The second one: the first one is there already, and has to go."""
    patch.setattr(hooks, "add_hook", failing_at(1, hooks.add_hook))


def parameters_are_unreadable(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ParameterReading, "__init__", failing_at(7, ParameterReading.__init__))


def a_snapshot_cannot_be_made(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Assembly, "make", failing_at(7, Assembly.make))


def layers_cannot_be_found(patch: pytest.MonkeyPatch) -> None:
    """Those of a model; a monitor that waits for one looks at an empty module."""
    module = sys.modules["gradwatch.probe.probe"]
    find = failing_at(0, module.find_layers, lambda model, *_: bool(list(model.children())))
    patch.setattr(module, "find_layers", find)


def diagnosis_fails(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(sys.modules["gradwatch.pipeline.watcher"], "diagnose", fail)


@dataclass(frozen=True)
class Fault:
    """Something that breaks.

    Attributes:
        part: text in the name of the part that is switched off.
        step: the step at which it breaks; None where that does not matter.
        patch: breaks it.
        options: those of the monitor.
        settings: those of the Trainer; functions of a folder make them.
        measured: how many Snapshots there are in the end.
        is_printed: the summary says so; it can't if it breaks itself, or if nothing was measured.
    """

    part: str
    step: int | None = None
    patch: Callable[[pytest.MonkeyPatch], object] = lambda patch: None
    options: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Callable[[Path], Any]] = field(default_factory=dict)
    measured: int = STEPS
    is_printed: bool = True


def replaced(target: str) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(target, fail)


def detector(function: Any) -> dict[str, Any]:
    return {"detectors": [*gradwatch.default_detectors(), function]}


PICTURES = "gradwatch.reporting.pictures"
REPORT = "gradwatch.reporting.tensorboard.TensorBoardReport"
BOARD: dict[str, Callable[[Path], Any]] = {"logger": lambda folder: TensorBoardLogger(folder, "", "")}

FAULTS = {
    "a detector raises": Fault("fails_on_step_7", 7, options=detector(fails_on_step_7)),
    "a detector returns text": Fault("returns_text_on_step_7", 7, options=detector(returns_text_on_step_7)),
    "a detector returns numbers": Fault("returns_numbers_on_step_7", 7, options=detector(returns_numbers_on_step_7)),
    "a logger raises": Fault("FailingLogger", 2, settings={"logger": lambda folder: FailingLogger()}),
    "a layer can't be read": Fault("layer net.0", 7, a_layer_is_unreadable),
    "a gradient can't be read": Fault("layer net.2", 7, a_gradient_is_unreadable),
    "a hook can't be put in place": Fault("", 0, a_hook_cannot_be_placed, measured=0, is_printed=False),
    "the parameters can't be read": Fault("", 7, parameters_are_unreadable, measured=7),
    "a snapshot can't be made": Fault("", 7, a_snapshot_cannot_be_made, measured=7),
    "a picture can't be drawn": Fault("pictures", None, replaced(f"{PICTURES}.bars"), settings=BOARD),
    "a heat map can't be drawn": Fault("pictures", None, replaced(f"{PICTURES}.heat_map"), settings=BOARD),
    "the scalars can't be written": Fault("TensorBoard", 0, replaced(f"{REPORT}.snapshot"), settings=BOARD),
    "the histograms can't be written": Fault(
        "histograms", None, replaced(f"{REPORT}.histograms"), {"histogram_every_n_steps": 1}, BOARD
    ),
    "the diagnosis fails": Fault("diagnosis", None, diagnosis_fails),
    "the summary can't be printed": Fault(
        "summary", None, replaced("gradwatch.pipeline.reports.print_summary"), is_printed=False
    ),
    "the layers can't be found": Fault("the model", 0, layers_cannot_be_found, measured=0, is_printed=False),
}


def fault_in(folder: Path, fault: Fault, patch: pytest.MonkeyPatch) -> GradientMonitor:
    """Train bare and with the fault; assert that the fault is contained."""
    bare = trained(folder / "bare")
    monitor = GradientMonitor(every_n_steps=1, on_finding=lambda finding: None, on_error="warn", **fault.options)
    fault.patch(patch)
    settings = {name: make(folder) for name, make in fault.settings.items()}
    watched = trained(folder / "watched", monitor, **settings)
    assert_same_end(bare, watched)
    assert [failure.part for failure in monitor.out_of_service if fault.part in failure.part]
    assert len(monitor.out_of_service) == 1
    (said,) = watched.said
    assert fault.part in said
    assert "not watched since step" in said
    if fault.step is not None:
        assert monitor.out_of_service[0].step == fault.step
    assert len(monitor.history) == fault.measured
    return monitor


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_contained(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monitor = fault_in(tmp_path, FAULTS[name], monkeypatch)
    printed = in_one_line(capsys.readouterr().out)
    step = monitor.out_of_service[0].step
    assert (f"not watched since step {step}" in printed) == FAULTS[name].is_printed


def test_a_record_that_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    path = tmp_path / "file" / "gradwatch.jsonl"
    fault_in(tmp_path, Fault("record", 0, options={"record_path": path}), monkeypatch)
    assert "not watched since step 0" in in_one_line(capsys.readouterr().out)


def test_a_memory_that_cannot_be_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint is made without it."""
    bare = trained(tmp_path / "bare")
    keep = partial(ModelCheckpoint, tmp_path, every_n_train_steps=5)
    for part, target in (("", History), ("ForgetsEverything", None)):
        if target is not None:
            monkeypatch.setattr(target, "state_dict", fail)
        monitor = GradientMonitor(1, on_error="warn", summary=False, **detector(ForgetsEverything()))
        watched = trained(tmp_path / "watched", monitor, keep(filename=f"{part}-"), enable_checkpointing=True)
        assert_same_end(bare, watched)
        assert any(part in failure.part for failure in monitor.out_of_service)
        assert len(watched.said) == len(monitor.out_of_service)
        monkeypatch.undo()


def test_warnings_that_are_errors_end_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = trained(tmp_path / "bare")
    monitor = GradientMonitor(1, on_error="warn", summary=False, **detector(fails_on_step_7))
    watched = trained(tmp_path / "watched", monitor, filtered="error")
    assert_same_end(bare, watched)
    assert "fails_on_step_7" in capsys.readouterr().err


def closed() -> Any:
    stream = io.StringIO()
    stream.close()
    return stream


STREAMS: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "closed": closed,
    "of ASCII": lambda: io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict"),
}


@pytest.mark.parametrize("name", STREAMS)
def test_an_output_that_takes_no_summary(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = trained(tmp_path / "bare")
    monitor = GradientMonitor(1, on_finding=lambda finding: None, on_error="warn")
    monkeypatch.setattr(sys, "stdout", STREAMS[name]())
    watched = trained(tmp_path / "watched", monitor)
    assert_same_end(bare, watched)
    assert len(watched.said) == len(monitor.out_of_service) == (name == "closed")


def test_errors_are_raised_where_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="the detector is broken"):
        trained(tmp_path, GradientMonitor(1, on_error="raise", **detector(fails_on_step_7)))
    monkeypatch.setenv("GRADWATCH_ON_ERROR", "raise")
    with pytest.raises(RuntimeError, match="the detector is broken"):
        trained(tmp_path, GradientMonitor(1, **detector(fails_on_step_7)))


def test_findings_are_raised_where_that_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(GradientError, match="something is found"):
        trained(tmp_path, GradientMonitor(1, detectors=[finds_something], on_finding="raise", on_error="warn"))

    def refuse(finding: Finding) -> None:
        raise KeyError(finding.kind)

    with pytest.raises(KeyError, match="anything"):
        trained(tmp_path, GradientMonitor(1, detectors=[finds_something], on_finding=refuse, on_error="warn"))
