"""The words of the command line: faults of a set-up, crashes, and the nearest known name."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gradwatch.cli import main
from gradwatch.commands import words
from gradwatch.commands.cure import _print_code

FAULTY = """
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Whole(LightningModule):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(8, 16), nn.Linear(16, 1)

    def training_step(self, batch, batch_idx):
        return self.head(self.body(batch[0])).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class NoStep(Whole):
    training_step = LightningModule.training_step


class NoOptimizer(Whole):
    configure_optimizers = LightningModule.configure_optimizers


class NoneOptimizer(Whole):
    def configure_optimizers(self):
        return None


class NoLoss(Whole):
    def training_step(self, batch, batch_idx):
        self.head(self.body(batch[0]))


class Crash(Whole):
    def training_step(self, batch, batch_idx):
        return self.loss_of(batch[0])

    def loss_of(self, x):
        return self.head(x).square().mean()


class Data(LightningDataModule):
    samples = 64

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.randn(self.samples, 8)), batch_size=16, drop_last=True)


class Empty(Data):
    samples = 8
"""


CALLED = ("return self.loss_of(batch[0])", "return self.head(x).square().mean()")


@pytest.fixture(scope="session")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all tests: LightningCLI refuses a second class of the same module and name."""
    folder = tmp_path_factory.mktemp("faulty")
    (folder / "faulty_project.py").write_text(FAULTY)
    return folder


@pytest.fixture
def run(faulty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.chdir(faulty)
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)

    def run(*args: str) -> tuple[int, str, str]:
        try:
            main(list(args))
            code: Any = 0
        except SystemExit as ended:
            code = ended.code
        return code or 0, *capsys.readouterr()

    return run


@pytest.mark.parametrize("command", ["check", "cure"])
@pytest.mark.parametrize(
    ("model", "data", "expected"),
    [
        ("NoStep", "Data", "NoStep has no training_step(); expected one that returns the loss of a batch"),
        ("NoOptimizer", "Data", "NoOptimizer has no configure_optimizers(); expected"),
        ("NoneOptimizer", "Data", "configure_optimizers() of NoneOptimizer returned None; expected an opt"),
        ("NoLoss", "Data", "no optimizer step was made; expected a training_step() of NoLoss that returns"),
        ("Whole", "Empty", "the training loader gives no batch; expected data"),
    ],
)
def test_a_missing_part_ends_with_2_and_one_sentence(
    run: Any, command: str, model: str, data: str, expected: str
) -> None:
    target = ("--model", f"faulty_project.{model}", "--data", f"faulty_project.{data}")
    code, out, err = run(command, *target, "--steps", "3")
    assert (code, out.strip()) == (2, "")
    assert err.startswith(f"gradwatch {command}: {expected}")
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["check", "cure"])
def test_a_crash_is_shown_by_the_users_own_lines_and_once(run: Any, command: str) -> None:
    target = ("--model", "faulty_project.Crash", "--data", "faulty_project.Data", "--steps", "3")
    code, out, err = run(command, *target)
    assert code == 1
    lines = {text: FAULTY.splitlines().index(f"        {text}") + 1 for text in CALLED}
    frames = [f'  File "faulty_project.py", line {line}, in ' for line in lines.values()]
    assert [f"{frames[0]}training_step", f"{frames[1]}loss_of"] == err.splitlines()[1:5:2]
    assert list(CALLED) == [line.strip() for line in err.splitlines()[2:5:2]]
    assert "site-packages" not in err
    assert err.count("RuntimeError: mat1 and mat2 shapes cannot be multiplied") == 1
    if command == "check":
        assert "at layer head, faulty_project.py:" in " ".join(out.split())
        assert "site-packages" in run(command, *target, "--traceback")[2]
    else:
        assert out.strip() == ""
        assert err.rstrip().endswith("the training crashes without a remedy, and none mends it")


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (("chekc",), "there is no command 'chekc', only demo, run, check, cure, report, compare; did you mean check?"),
        (("demo", "--max-epcohs", "2"), "did you mean --max-epochs?"),
        (("check", "--model", "faulty_project.Whol"), "expected package.module.Class; did you mean Whole?"),
        (("check", "--model", "fault_project.Whole"), "from the current folder on; did you mean faulty_project?"),
        (("check", "--model", "faulty_project.Whole", "--allow", "vanish"), "did you mean 'vanishing'?"),
        (
            ("check", "--model", "faulty_project.Whole", "--data", "faulty_project.Data", "--stpes", "3"),
            "did you mean --steps?",
        ),
    ],
)  # fmt: skip
def test_the_nearest_name_is_asked_for(run: Any, args: tuple[str, ...], expected: str) -> None:
    code, _, err = run(*args)
    assert code == 2
    assert expected in " ".join(err.split())


def test_version_and_help(run: Any) -> None:
    code, out, _ = run()
    assert code == 0
    assert all(command in out for command in ("demo", "check", "cure", "--version"))
    code, out, _ = run("--version")
    assert (code, out.split()[0]) == (0, "gradwatch")


def test_commands_can_be_typed_where_the_environment_is_not_active(monkeypatch: pytest.MonkeyPatch) -> None:
    args = ("--logdir", "a b")
    monkeypatch.setattr(words.shutil, "which", lambda _: None)
    typed = words.as_typed("tensorboard", *args, module="tensorboard.main")
    assert typed == f"{sys.executable} -m tensorboard.main --logdir 'a b'"
    monkeypatch.setattr(words.shutil, "which", lambda _: "/elsewhere/bin/tensorboard")
    assert words.as_typed("tensorboard", *args, module="tensorboard.main") == typed
    monkeypatch.setattr(words.shutil, "which", lambda _: str(Path(sys.executable).parent / "tensorboard"))
    assert words.as_typed("tensorboard", *args) == "tensorboard --logdir 'a b'"


@pytest.mark.parametrize("extra", ["cli", "examples"])
def test_a_missing_extra_is_named_with_its_packages(run: Any, monkeypatch: pytest.MonkeyPatch, extra: str) -> None:
    module = "lightning_config" if extra == "cli" else "demo"
    monkeypatch.setattr(f"gradwatch.commands.{module}.find_spec", lambda _: None)
    code, _, err = run(*(["check", "--model", "a.B"] if extra == "cli" else ["demo"]))
    said = err if extra == "cli" else str(code)
    assert f"not installed; it belongs to the extra {extra!r}: " in said
    assert said.rstrip().endswith("scikit-learn")


def test_code_to_be_copied_is_never_cut() -> None:
    code = f"model.encoder = {' + '.join(['some_long_name'] * 12)}\nmodel.head = 1"
    stream = io.StringIO()
    _print_code(Console(width=40, file=stream), code)
    assert stream.getvalue().rstrip("\n") == code
