"""A monitor that the environment adds: it is there once, gives way to the user's, and refuses and changes nothing."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
from models import Net, assert_no_hooks, loader, mlp, trainer

from gradwatch import GradientMonitor, autoload
from gradwatch.callbacks.added import AddedMonitor
from gradwatch.reporting.record import read_record

GROUP = "lightning.pytorch.callbacks_factory"
pytestmark = pytest.mark.skipif(
    not any(point.name == "gradwatch" for point in entry_points(group=GROUP)),
    reason=f"the installed gradwatch has no entry point {GROUP}: install this checkout, also an editable one, anew",
)
QUIET = "summary=0,dense_steps=3"

SCRIPT = """
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.05)


x = torch.randn(64, 8)
loader = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=16)
for _ in range(2):
    Trainer(max_steps=4, logger=False, enable_checkpointing=False, enable_progress_bar=False).fit(Net(), loader)
"""


@pytest.fixture
def switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(autoload.ENVIRONMENT, QUIET)


def monitors(run: Any) -> list[GradientMonitor]:
    return [each for each in run.callbacks if isinstance(each, GradientMonitor)]


def test_a_script_that_nobody_changed_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(autoload.ENVIRONMENT, "dense_steps=2,every_n_steps=1000")
    (tmp_path / "train.py").write_text(SCRIPT)
    command = [sys.executable, "-W", "ignore", "train.py"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=True)
    for name in ("gradwatch.jsonl", "gradwatch-2.jsonl"):
        path = tmp_path / "gradwatch_logs" / name
        assert [snapshot.step for snapshot in read_record(path).snapshots] == [0, 1, 3]
        assert f"the record of this run is {path}" in ran.stderr
    assert ran.stdout.count("gradwatch: gradients at step 3") == 2


def test_a_script_of_the_other_package_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pytorch_lightning")
    monkeypatch.setenv(autoload.ENVIRONMENT, QUIET)
    script = SCRIPT.replace("lightning.pytorch", "pytorch_lightning").replace("range(2)", "range(1)")
    (tmp_path / "train.py").write_text(script)
    command = [sys.executable, "-W", "ignore", "train.py"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=True)
    assert len(read_record(tmp_path / "gradwatch_logs" / "gradwatch.jsonl").snapshots) == 3


def test_it_is_off_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in (None, "", "0", "off", "False"):
        monkeypatch.delenv(autoload.ENVIRONMENT, raising=False)
        if text is not None:
            monkeypatch.setenv(autoload.ENVIRONMENT, text)
        assert autoload.trainer_callbacks() == autoload.fabric_callbacks() == []


def test_while_it_is_off_it_loads_nothing() -> None:
    code = (
        "import sys; from gradwatch import autoload; autoload.trainer_callbacks(); autoload.fabric_callbacks(); "
        "print(sorted({'torch', 'numpy', 'lightning', 'rich'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.mark.usefixtures("switched_on")
def test_weights_are_bit_for_bit_those_of_an_unwatched_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finals = []
    for is_on in (True, False):
        if not is_on:
            monkeypatch.delenv(autoload.ENVIRONMENT)
        torch.manual_seed(0)
        model = Net(mlp())
        run = trainer(tmp_path, max_steps=8)
        run.fit(model, loader())
        assert len(monitors(run)) == is_on
        finals.append([*model.state_dict().values(), torch.get_rng_state()])
        assert_no_hooks(model)
    assert all(torch.equal(a, b) for a, b in zip(*finals, strict=True))


@pytest.mark.usefixtures("switched_on")
def test_it_gives_way_to_a_monitor_of_the_users(tmp_path: Path) -> None:
    own = GradientMonitor(summary=False)
    run = trainer(tmp_path, own, max_steps=3)
    run.fit(Net(mlp()), loader())
    assert monitors(run) == [own]
    assert len(list(tmp_path.rglob("*.jsonl"))) == 1


@pytest.mark.usefixtures("switched_on")
def test_it_gives_way_to_a_monitor_of_the_module(tmp_path: Path) -> None:
    class WithMonitor(Net):
        def configure_callbacks(self) -> list[Any]:
            return [GradientMonitor(summary=False)]

    run = trainer(tmp_path, max_steps=3)
    run.fit(WithMonitor(mlp()), loader())
    assert [type(each) for each in monitors(run)] == [GradientMonitor]


@pytest.mark.usefixtures("switched_on")
def test_two_trainers_may_share_a_list_of_callbacks(tmp_path: Path) -> None:
    """Lightning adds to the list that it is given: the second Trainer gets what was added to the first."""
    from lightning.pytorch import Trainer

    shared: list[Any] = []
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "default_root_dir": tmp_path}
    for _ in range(2):
        run = Trainer(callbacks=shared, accelerator="cpu", max_steps=2, logger=False, **quiet)  # type: ignore[arg-type]
        run.fit(Net(mlp()), loader())
        assert len(monitors(run)) == 1
        assert len(monitors(run)[0].history) == 2


@pytest.mark.usefixtures("switched_on")
def test_a_run_goes_on_from_its_checkpoint_with_either_monitor(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=4)
    run.fit(Net(mlp()), loader())
    run.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert list(saved["callbacks"]) == ["GradientMonitor"]
    for given in ([GradientMonitor(summary=False)], []):
        run = trainer(tmp_path, *given, max_steps=6)
        run.fit(Net(mlp()), loader(), ckpt_path=tmp_path / "last.ckpt")
        assert [snapshot.step for snapshot in monitors(run)[0].history][:3] == [0, 1, 2]
        assert monitors(run)[0].steps == 6


def test_a_pattern_that_fits_no_layer_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(autoload.ENVIRONMENT, "include=encoder.*")
    run = trainer(tmp_path, max_steps=3)
    with pytest.warns(UserWarning, match=r"this fit is not watched: .*encoder"):
        run.fit(Net(mlp()), loader())
    assert run.global_step == 3
    assert monitors(run)[0].history == []


def test_a_failure_of_its_own_ends_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> AddedMonitor:
        raise OSError("no room")

    with (
        autoload.added_to_trainers(fails),
        pytest.warns(UserWarning, match="nothing is watched: OSError: no room"),
    ):
        assert autoload.trainer_callbacks() == []
