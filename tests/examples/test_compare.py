"""compare.py end to end, on digits: runs that succeed, fail and crash, tables, resuming, and refusals."""

import csv
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from torch.nn.functional import cross_entropy

from gradwatch.examples import compare, run
from gradwatch.examples.comparison.results import Result, load
from gradwatch.examples.data import ImageData
from gradwatch.examples.init_he import He
from gradwatch.reporting.record import read_record

pytestmark = pytest.mark.filterwarnings("ignore::gradwatch.GradientWarning")

OPTIONS = ["--fast", "--max-epochs", "4"]
BROKEN = """
import os, signal
from pathlib import Path
from gradwatch.examples.baseline import Baseline

MENDED = Path(__file__).with_name("mended")

class Raises(Baseline):
    def on_train_epoch_start(self):
        if self.current_epoch == 1 and not MENDED.exists():
            raise RuntimeError("no luck | at\\nall")

class Crashes(Baseline):
    def on_train_epoch_start(self):
        if self.current_epoch == 1 and not MENDED.exists():
            os.kill(os.getpid(), signal.SIGKILL)
"""


@dataclass
class Comparison:
    """The results of a call of compare."""

    command: list[str]
    exit_code: int
    out: Path

    def result(self, name: str) -> Result:
        result = load(self.folder(name))
        assert result is not None
        return result

    def folder(self, name: str) -> Path:
        return self.out / "runs" / name / "seed-42"

    def rows(self) -> dict[str, dict[str, str]]:
        with (self.out / "scoreboard.csv").open() as file:
            return {row["remedy"]: row for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    code, out = tmp_path_factory.mktemp("code"), tmp_path_factory.mktemp("out")
    (code / "broken.py").write_text(BROKEN)
    sys.path.insert(0, str(code))  # the processes get it too
    command = [*OPTIONS, "--only", "he", "broken.Raises", "broken.Crashes", "--jobs", "2", "--out", str(out)]
    return Comparison(command, compare.main(command), out)


def test_a_run_that_fails_or_crashes_is_a_row_and_the_others_go_on(compared: Comparison) -> None:
    assert compared.exit_code == 1
    rows = compared.rows()
    assert list(rows) == ["he", "broken.Crashes", "broken.Raises"]
    assert rows["he"]["error"] == ""
    assert rows["broken.Raises"]["error"] == "RuntimeError: no luck | at all"
    assert "ended before the run did (killed by SIGKILL)" in rows["broken.Crashes"]["error"]
    assert "failed: RuntimeError: no luck / at all |" in (compared.out / "scoreboard.md").read_text()
    assert "RuntimeError: no luck" in (compared.folder("broken.Raises") / "output.log").read_text()


def test_the_accuracy_is_that_of_the_examples_own_command_line(compared: Comparison, tmp_path: Path) -> None:
    accuracy = run.main(He, [*OPTIONS, "--log-dir", str(tmp_path)])
    assert float(compared.rows()["he"]["test_accuracy"]) == pytest.approx(accuracy, abs=1e-6)


def test_the_gradients_are_those_of_the_network(compared: Comparison) -> None:
    data = ImageData()
    data.setup()
    seed_everything(42)
    model = He(data.in_features)
    images, labels = next(iter(data.train_dataloader()))
    cross_entropy(model(images), labels).backward()
    norms = [
        math.hypot(layer.weight.grad.norm(), layer.bias.grad.norm())
        for layer in model.modules()
        if isinstance(layer, torch.nn.Linear)
    ]
    np.testing.assert_allclose(compared.result("he").start, norms, rtol=1e-3)
    row = compared.rows()["he"]
    assert float(row["first_layer_grad_norm_start"]) == pytest.approx(norms[0], rel=1e-3)
    assert float(row["first_to_last_start"]) == pytest.approx(norms[0] / norms[-1], rel=1e-3)


def test_the_end_is_the_last_measured_step(compared: Comparison) -> None:
    last = read_record(compared.folder("he") / "gradwatch.jsonl")[0][-1]
    assert last.step == 11  # of 4 epochs with 3 batches
    norms = [last.grad_norm[last.layers.index(layer)] for layer in compared.result("he").layers]
    np.testing.assert_allclose(compared.result("he").end, norms, rtol=1e-5)


def test_the_curves_have_a_value_an_epoch_and_end_at_the_scoreboards(compared: Comparison) -> None:
    curves = compared.result("he").curves
    assert {name: len(values) for name, values in curves.items()} == dict.fromkeys(
        ["train_loss", "train_accuracy", "val_loss", "val_accuracy"], 4
    )
    assert float(compared.rows()["he"]["train_loss"]) == curves["train_loss"][-1] < curves["train_loss"][0]


def test_tensorboard_has_settings_and_final_metrics(compared: Comparison) -> None:
    values: dict[str, float] = {}
    started = []
    for path in compared.folder("he").glob("events.out.tfevents.*"):
        events = EventAccumulator(str(path)).Reload()
        values |= {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"]}
        summaries = events.summary_metadata.get(metadata.SESSION_START_INFO_TAG)
        started += [metadata.parse_session_start_info_plugin_data(summaries.plugin_data.content)] if summaries else []
    assert started[0].hparams["remedy"].string_value == "he"
    assert started[0].hparams["arguments"].string_value == "activation=relu"
    assert started[0].hparams["lr"].number_value == 0.01
    row = compared.rows()["he"]
    assert values["result/test_accuracy"] == pytest.approx(float(row["test_accuracy"]))
    assert values["result/first_to_last_start"] == pytest.approx(float(row["first_to_last_start"]))


def test_pictures_are_drawn(compared: Comparison) -> None:
    assert all((compared.out / name).stat().st_size > 10_000 for name in ("curves.png", "layers.png"))


def test_called_again_it_runs_only_what_had_not_ended_well(compared: Comparison) -> None:
    before = (compared.folder("he") / "result.json").stat().st_mtime_ns
    import broken

    broken.MENDED.touch()
    assert compare.main(compared.command) == 0
    assert (compared.folder("he") / "result.json").stat().st_mtime_ns == before
    assert [row["error"] for row in compared.rows().values()] == [""] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-epochs", "5"], "holds runs with max_epochs=4, now it is 5; give another folder as --out"),
        (["--only", "batchnorm"], "no remedy is called 'batchnorm'; did you mean batch-norm?"),
        (["--dataset", "fashion-mnist", "--out", "elsewhere"], "fashion-mnist needs data_dir"),
        (["--jobs", "0"], "jobs"),
    ],
)
def test_it_refuses_what_cannot_be(
    options: list[str], message: str, compared: Comparison, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        compare.main([*compared.command, *options])
    assert message in capsys.readouterr().err


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell's background jobs, as CI may run them, ignore interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_ends_the_processes_and_leaves_no_result(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "he" / "seed-42"

    def interrupt() -> None:
        while not list(folder.glob("gradwatch.jsonl")):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    assert compare.main(["--only", "he", "--max-epochs", "100000", "--out", str(tmp_path)]) == 130
    size = (folder / "gradwatch.jsonl").stat().st_size
    time.sleep(0.5)
    assert (folder / "gradwatch.jsonl").stat().st_size == size
    assert not (folder / "result.json").exists()
