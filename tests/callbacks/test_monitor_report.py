"""The report that a monitor writes at the end of a fit, and what it puts into the record for it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from gradwatch import GradientMonitor
from gradwatch.reporting.record import read_record
from tests.callbacks.models import Net, loader, mlp, trainer


class WithSettings(Net):
    """A module whose hyperparameters hold a secret."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(mlp())
        self.save_hyperparameters()
        assert settings


def fit(monitor: GradientMonitor, folder: Path, module: Net | None = None, **options: Any) -> None:
    settings = {"max_steps": 3, "logger": CSVLogger(folder, name="", version=""), **options}
    trainer(folder, monitor, **settings).fit(module or Net(mlp()), loader())


def test_it_is_beside_the_record_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(GradientMonitor(report=True, summary=False), tmp_path)
    written = tmp_path / "gradwatch.html"
    assert "No fault found so far, in 3 measured steps" in written.read_text(encoding="utf-8")
    assert capsys.readouterr().out.count(f"gradwatch: the report is in {written}\n") == 1


def test_it_is_where_it_is_wanted(tmp_path: Path) -> None:
    fit(GradientMonitor(report=tmp_path / "a" / "b.html"), tmp_path)
    assert (tmp_path / "a" / "b.html").is_file()
    assert not (tmp_path / "gradwatch.html").exists()


def test_without_a_logger_it_is_beside_the_record_too(tmp_path: Path) -> None:
    fit(GradientMonitor(report=True), tmp_path, logger=False)
    assert (tmp_path / "gradwatch_logs" / "gradwatch.html").is_file()


def test_without_a_record_it_is_in_the_trainers_folder(tmp_path: Path) -> None:
    fit(GradientMonitor(report=True, record_path=False), tmp_path, logger=False)
    assert (tmp_path / "gradwatch.html").is_file()


def test_none_is_written_unasked(tmp_path: Path) -> None:
    fit(GradientMonitor(), tmp_path)
    assert not list(tmp_path.rglob("*.html"))


def test_a_report_that_fails_costs_one_warning(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monitor = GradientMonitor(report=tmp_path / "file" / "r.html", on_error="warn")
    with pytest.warns(UserWarning, match=r"report .*r\.html") as warned:
        fit(monitor, tmp_path)
    assert sum("r.html" in str(warning.message) for warning in warned) == 1
    assert read_record(tmp_path / "gradwatch.jsonl").diagnoses == []


@pytest.mark.parametrize("can_search", [True, False])
def test_a_crash_is_told_in_it(tmp_path: Path, can_search: bool) -> None:
    monitor = GradientMonitor(report=True)

    class Crashes(Net):
        def on_train_start(self) -> None:
            if not can_search:  # as on a GPU, and with several processes
                monitor._watcher.origins.close()

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if batch_idx == 2:
                raise RuntimeError("out of luck")
            return super().training_step(batch, batch_idx)

    with pytest.raises(RuntimeError, match="luck"):
        fit(monitor, tmp_path, Crashes(mlp()))
    assert "out of luck" in (tmp_path / "gradwatch.html").read_text(encoding="utf-8")


def test_the_record_has_settings_modules_and_causes_once(tmp_path: Path) -> None:
    module = WithSettings(width=7, api_key="hidden", note="x" * 500)
    fit(GradientMonitor(every_n_steps=7), tmp_path, module, gradient_clip_val=0.5)
    lines = (tmp_path / "gradwatch.jsonl").read_text(encoding="utf-8").splitlines()
    kinds = [re.match(r'{"type": "(\w+)"', line)[1] for line in lines]  # type: ignore[index]
    assert (kinds[0], kinds.count("about"), kinds.count("diagnoses")) == ("header", 1, 1)
    settings = read_record(tmp_path / "gradwatch.jsonl").settings
    assert settings["model"] == "WithSettings"
    assert settings["optimizer"].startswith("SGD(lr=0.05")
    assert settings["gradient clip"] == "0.5 by norm"
    assert settings["measured steps"] == "each of the first 20, then every 7."
    assert {name for name in settings if name.startswith("hparams")} == {"hparams: width"}
    assert read_record(tmp_path / "gradwatch.jsonl").modules == {"network": "Sequential"}


def test_settings_that_cannot_be_read_leave_the_record_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no settings")

    monkeypatch.setattr("gradwatch.callbacks.places_of_fit.settings_of", fails)
    with pytest.warns(UserWarning, match="settings in the report"):
        fit(GradientMonitor(on_error="warn", report=True), tmp_path)
    assert len(read_record(tmp_path / "gradwatch.jsonl").snapshots) == 3
    assert (tmp_path / "gradwatch.html").is_file()


def test_it_changes_nothing(tmp_path: Path) -> None:
    modules = [Net(mlp()), Net(mlp())]
    for module, wanted in zip(modules, (True, False), strict=True):
        fit(GradientMonitor(report=wanted), tmp_path, module)
    pairs = zip(*(module.parameters() for module in modules), strict=True)
    assert all(torch.equal(first, second) for first, second in pairs)
