"""A fit's record is always written, in a place that is said, and each run has a file of its own."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import fsspec
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from models import Net, loader, mlp, trainer

from gradwatch import GradientMonitor
from gradwatch.callbacks.places_of_fit import run_folder
from gradwatch.pipeline.run_files import Wanted
from gradwatch.reporting.record import read_record


class Tracker(Logger):
    """A logger without a folder of the run, as those of MLflow, Comet and Weights & Biases are."""

    def __init__(self, folder: str | None, name: str = "project", version: str = "run7") -> None:
        super().__init__()
        self._folder, self._name, self._version = folder, name, version

    @property
    def save_dir(self) -> str | None:
        return self._folder

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> str:
        return self._version

    def log_metrics(self, metrics: Any, step: int | None = None) -> None: ...

    def log_hyperparams(self, *_: Any, **__: Any) -> None: ...


def fit(folder: Path, steps: int = 2, monitor: GradientMonitor | None = None, **options: Any) -> GradientMonitor:
    monitor = monitor or GradientMonitor(summary=False, detectors=[])
    trainer(folder, monitor, max_steps=steps, **options).fit(Net(mlp()), loader())
    return monitor


def records(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.jsonl"))


@pytest.mark.parametrize(
    ("logger", "place"),
    [
        (lambda folder: TensorBoardLogger(folder, sub_dir="sub"), "lightning_logs/version_0/sub"),
        (lambda folder: CSVLogger(folder), "lightning_logs/version_0"),
        (lambda folder: Tracker(str(folder / "store")), "store/project/run7"),
        (lambda folder: Tracker(None), "project/run7"),
        (lambda folder: [Tracker(None), CSVLogger(folder)], "project/run7"),
        (lambda folder: False, "gradwatch_logs"),
    ],
    ids=["TensorBoard", "CSV", "a local store", "a server", "several", "no logger"],
)
def test_every_fit_has_a_record_and_it_is_said_where(
    logger: Any, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch"):
        logging.getLogger(name).propagate = True
    with caplog.at_level(logging.INFO):
        fit(tmp_path, logger=logger(tmp_path), monitor=GradientMonitor(detectors=[], report=True))
    path = tmp_path / place / "gradwatch.jsonl"
    assert records(tmp_path) == [f"{place}/gradwatch.jsonl"]
    assert len(read_record(path).snapshots) == 2
    assert path.with_suffix(".html").is_file()
    assert f"the report is in {path.with_suffix('.html')}\n" in capsys.readouterr().out
    assert f"the record of this run is {path}" in caplog.text  # at the start
    assert f"the record is in {path}" in caplog.text  # at the end


def test_it_is_where_lightning_puts_the_checkpoints(tmp_path: Path) -> None:
    keep = ModelCheckpoint(every_n_train_steps=2)
    monitor = GradientMonitor(summary=False, detectors=[])
    logger = Tracker(None)
    trainer(tmp_path, monitor, keep, max_steps=2, logger=logger, enable_checkpointing=True).fit(Net(mlp()), loader())
    assert Path(keep.dirpath or "").parent == tmp_path / "project" / "run7"
    assert records(tmp_path) == ["project/run7/gradwatch.jsonl"]


@pytest.mark.parametrize("logger", [False, Tracker(None)], ids=["no logger", "one run of a tracker"])
def test_two_fits_in_one_folder_have_a_file_each(logger: Any, tmp_path: Path) -> None:
    for steps in (2, 3, 4):
        fit(tmp_path, steps, logger=logger)
    (folder,) = {path.parent for path in tmp_path.rglob("*.jsonl")}
    counts = {path.name: len(read_record(path).snapshots) for path in folder.iterdir()}
    assert counts == {"gradwatch.jsonl": 2, "gradwatch-2.jsonl": 3, "gradwatch-3.jsonl": 4}


def test_a_resumed_run_continues_its_record(tmp_path: Path) -> None:
    monitor = GradientMonitor(summary=False, detectors=[])
    first = trainer(tmp_path, monitor, max_steps=3)
    first.fit(Net(mlp()), loader())
    first.save_checkpoint(tmp_path / "three.ckpt")
    again = trainer(tmp_path, GradientMonitor(summary=False, detectors=[]), max_steps=5)
    again.fit(Net(mlp()), loader(), ckpt_path=tmp_path / "three.ckpt")
    assert records(tmp_path) == ["gradwatch_logs/gradwatch.jsonl"]
    assert [s.step for s in read_record(tmp_path / "gradwatch_logs/gradwatch.jsonl").snapshots] == list(range(5))


def test_a_resumed_run_continues_the_latest_of_several(tmp_path: Path) -> None:
    owner = trainer(tmp_path)
    paths = [Wanted().record_in(run_folder(owner), resumes=resumes) for resumes in (True, False, False, False, True)]
    assert [Path(str(path)).name for path in paths] == [
        "gradwatch.jsonl",
        "gradwatch.jsonl",
        "gradwatch-2.jsonl",
        "gradwatch-3.jsonl",
        "gradwatch-3.jsonl",
    ]


@pytest.mark.parametrize("options", [{"fast_dev_run": 2}, {"fast_dev_run": 2, "logger": True}])
def test_a_fast_dev_run_writes_nothing(options: dict[str, Any], tmp_path: Path) -> None:
    fit(tmp_path, **options)
    assert list(tmp_path.iterdir()) == []


def test_none_is_written_where_that_is_asked_for(tmp_path: Path) -> None:
    fit(tmp_path, monitor=GradientMonitor(record_path=False, detectors=[]))
    assert list(tmp_path.iterdir()) == []


def test_a_given_path_is_taken_as_it_is(tmp_path: Path) -> None:
    for _ in range(2):
        fit(tmp_path, monitor=GradientMonitor(record_path=tmp_path / "mine.jsonl", summary=False))
    assert records(tmp_path) == ["mine.jsonl"]


def test_a_remote_folder(tmp_path: Path) -> None:
    owner = trainer(tmp_path, logger=Tracker("memory://bucket/runs"))
    assert run_folder(owner) == "memory://bucket/runs/project/run7"
    first = Wanted().record_in(run_folder(owner), resumes=False)
    assert first == "memory://bucket/runs/project/run7/gradwatch.jsonl"
    assert Wanted(report=True).report_beside(first, "") == "memory://bucket/runs/project/run7/gradwatch.html"
    with fsspec.open(first, "w") as file:
        file.write("{}")
    assert Wanted().record_in(run_folder(owner), resumes=False) == "memory://bucket/runs/project/run7/gradwatch-2.jsonl"
    assert Wanted().record_in(run_folder(owner), resumes=True) == first


def test_a_folder_that_cannot_be_made_costs_the_record_alone(tmp_path: Path) -> None:
    (tmp_path / "project").write_text("no folder")
    monitor = GradientMonitor(summary=False, detectors=[], on_error="warn")
    with pytest.warns(UserWarning, match=r"record.*: not watched since step 0 \((NotADir|FileExists)"):
        fit(tmp_path, monitor=monitor, logger=Tracker(None))
    assert len(monitor.history) == 2
