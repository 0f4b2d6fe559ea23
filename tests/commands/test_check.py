"""gradwatch check on a small project: exit codes, output and files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gradwatch.cli import main

TARGET = ("--model", "smoke_project.Net", "--data", "smoke_project.Data")
SIGMOID = ("--model.init_args.activation", "sigmoid")


def check(*args: str) -> int:
    """The exit code."""
    try:
        main(["check", *args])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.fixture
def run(here: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*args: str) -> tuple[int, str, str]:
        files = sorted(path.name for path in here.iterdir() if path.name != "__pycache__")
        code = check(*args)
        assert sorted(path.name for path in here.iterdir() if path.name != "__pycache__") == files
        return code, *capsys.readouterr()

    return run


def test_a_healthy_training(run: Any) -> None:
    code, out, err = run(*TARGET)
    assert (code, err) == (0, "")
    assert out.count("from the training step") == 20
    assert "healthy: Net, 20 steps, loss " in out


def test_a_vanishing_gradient(run: Any) -> None:
    code, out, _ = run(*TARGET, *SIGMOID)
    assert code == 1
    assert "GW001 vanishing since step 0" in out
    assert "GW101 saturating activation" in out
    assert "1. replace the bounded activations by ReLU" in out
    assert "docs/rules/GW101.md" in out
    assert "::" not in out


def test_gradients_that_are_not_cleared(run: Any) -> None:
    code, out, _ = run(*TARGET, "--model.init_args.fault", "uncleared")
    assert code == 1
    assert "gradients are not zeroed" in out
    assert "carried-over since step 1" in out


def test_what_is_allowed_is_no_fault(run: Any) -> None:
    assert run(*TARGET, *SIGMOID, "--allow", "vanishing")[0] == 0
    assert run(*TARGET, *SIGMOID, "--allow", "GW101")[0] == 0
    assert run(*TARGET, *SIGMOID, "--allow", "dead")[0] == 1
    said = run(*TARGET, "--allow", "vanish")[2]
    assert "allow has 'vanish'; did you mean 'vanishing'? Expected names or identifiers of causes or" in said
    assert "allow has 'GW1O1'; did you mean 'GW1" in run(*TARGET, "--allow", "GW1O1")[2]


def test_as_a_program_in_the_projects_folder(here: Path) -> None:
    environment = {**os.environ, "GITHUB_ACTIONS": "true"}
    program = "import sys; sys.path.pop(0); from gradwatch.cli import main; main()"  # as a console script finds modules
    command = [sys.executable, "-c", program, "check", *TARGET, *SIGMOID, "--format", "json", "--steps", "10"]
    ended = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=300, env=environment)
    assert ended.returncode == 1
    result = json.loads(ended.stdout)
    assert result["steps"] == 10
    assert (
        "::warning file=smoke_project.py,line=10,title=gradwatch%3A GW101 saturating activation (vanishing)::"
        in ended.stderr
    )


def test_json_and_nothing_else_on_stdout(run: Any) -> None:
    code, out, err = run(*TARGET, *SIGMOID, "--format", "json")
    result = json.loads(out)
    assert (code, result["healthy"], result["steps"], result["error"]) == (1, False, 20, None)
    assert result["loss"]["first"] > result["loss"]["last"] > 0
    assert [finding["kind"] for finding in result["findings"]] == ["vanishing"]
    assert result["findings"][0]["layers"][0] == "net.0"
    assert [found["rule"] for found in (*result["findings"], *result["diagnoses"])] == ["GW001", "GW101"]
    assert (result["class"], result["exit_code"]) == ("smoke_project.Net", 1)
    assert result["diagnoses"][0]["findings"] == [0]
    assert 0 < result["diagnoses"][0]["score"] <= 1
    assert "from the training step" in err


def test_a_crash_of_the_training_is_named_and_located(run: Any) -> None:
    code, out, err = run(*TARGET, "--model.init_args.fault=crash", "--format", "github")
    assert code == 1
    assert "the training raised RuntimeError: 100%: boom," in out
    line = 1 + (Path.cwd() / "smoke_project.py").read_text().splitlines().index(
        '            raise RuntimeError("100%: boom,\\nreally")'
    )
    title = "title=gradwatch%3A crash::the training raised RuntimeError"
    assert (
        f"::error file=smoke_project.py,line={line},{title}: 100%25: boom,%0Areally at smoke_project.py:{line}, in "
        in out
    )
    assert f'File "smoke_project.py", line {line}, in training_step' in err
    assert "Traceback" in run(*TARGET, "--model.init_args.fault=crash", "--traceback")[2]
    result = json.loads(run(*TARGET, "--model.init_args.fault=crash", "--format", "json")[1])
    assert result["loss"] == {"first": None, "last": None}
    assert result["error"].startswith("the training raised RuntimeError")


@pytest.mark.parametrize("data", ["smoke_project.Data", "smoke_project.make_loader"])
def test_data_is_a_module_or_a_function_with_arguments(run: Any, data: str) -> None:
    code, out, _ = run("--model=smoke_project.Net", "--data", data, "--data.init_args.batch_size=16", "--steps=3")
    assert code == 0
    assert "no fault found: Net, 3 steps" in out


def test_a_model_with_its_own_loader_needs_no_data(run: Any) -> None:
    assert run("--model", "smoke_project.WithLoader", "--steps", "2")[0] == 0


@pytest.mark.parametrize("kind", ["fixed", "any"])
def test_configs_that_lightning_cli_printed(run: Any, config: dict[str, Path], kind: str) -> None:
    given = ["--config", str(config[kind]), *(TARGET if kind == "fixed" else ())]
    assert run(*given)[0] == 0
    assert run(*given, *SIGMOID)[0] == 1


def test_a_config_with_an_optimizer_callbacks_and_a_trainer_of_a_larger_machine(run: Any, here: Path) -> None:
    (here / "large.yaml").write_text(
        """
        seed_everything: 7
        model: {class_path: smoke_project.Net}
        data: {class_path: smoke_project.Data}
        optimizer: {class_path: torch.optim.Adam, init_args: {lr: 0.001}}
        lr_scheduler: {class_path: lightning.pytorch.cli.ReduceLROnPlateau, init_args: {monitor: val_loss}}
        trainer:
          accelerator: gpu
          devices: 8
          num_nodes: 4
          strategy: ddp
          precision: bf16-mixed
          max_epochs: 1
          logger: {class_path: lightning.pytorch.loggers.WandbLogger}
          callbacks:
            - class_path: ModelCheckpoint
              init_args: {dirpath: checkpoints}
            - class_path: gradwatch.GradientTransform
              init_args: {transforms: {class_path: gradwatch.transforms.ClipByGlobalNorm, init_args: {max_norm: 0.1}}}
        """
    )
    code, out, err = run("--config", "large.yaml", "--format", "json")
    assert code == 0, (out, err)
    assert json.loads(out)["steps"] == 20
    code, out, _ = run("--config", "large.yaml", "--trainer.gradient_clip_val", "0.5")
    assert (code, "would both clip" in out) == (1, True)  # both the Trainer's settings and the callbacks are taken over
    (here / "large.yaml").unlink()


def test_the_projects_own_cli_links_arguments(run: Any) -> None:
    args = (*TARGET, "--cli", "smoke_project.LinkedCLI", "--data.init_args.batch_size")
    assert run(*args, "8")[0] == 0
    assert "RuntimeError" in run(*args, "9")[1]  # nine features where the data has eight


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ((), "nothing to train; expected --config config.yaml, or --model package.Class"),
        (("--config", "none.yaml"), "there is no config 'none.yaml'"),
        (("--model", "Net"), "'Net' has no module; expected package.module.Class"),
        (("--model", "nowhere.Net"), "there is no module 'nowhere'"),
        (("--model", "smoke_project.Nut"), "module 'smoke_project' has no 'Nut'"),
        (("--model", "smoke_project.Data"), "does not correspond to a subclass of LightningModule"),
        (("--model", "smoke_project.Net"), "no data; expected --data package.Class"),
        (("--model", "smoke_project.Net", "--data", "smoke_project.PROJECT"), "has no 'PROJECT'"),
        (("--model", "smoke_project.Net", "--data", "smoke_project.__name__"), "expected a LightningDataModule or a"),
        (
            ("--model", "smoke_project.Net", "--data", "smoke_project.make_nothing"),
            "returned a NoneType; expected",
        ),
        ((*TARGET, "--model.init_args.depth", "3"), "Option 'depth' is not accepted"),
        ((*TARGET, "--model.init_args.lr", "fast"), "Got value: fast"),
        ((*TARGET, "--model.init_args.fault", "init"), "no such model"),
        ((*TARGET, "--cli", "smoke_project.Data"), "is no subclass of lightning.pytorch.cli.LightningCLI"),
    ],
)
def test_wrong_use_ends_with_2_and_a_sentence(run: Any, args: tuple[str, ...], expected: str) -> None:
    code, out, err = run(*args)
    assert (code, out) == (2, "")
    assert err.startswith("gradwatch check: ")
    assert expected in err


def test_arguments_of_a_fixed_class_without_the_class(run: Any, config: dict[str, Path]) -> None:
    code, _, err = run("--config", str(config["fixed"]))
    assert code == 2
    assert "type: " in err
    assert f"--config {config['fixed']} --model smoke_project.Net --data smoke_project.Data" in err


@pytest.mark.parametrize("steps", ["0", "-3", "many"])
def test_steps_are_a_whole_number(run: Any, steps: str) -> None:
    code, _, err = run(*TARGET, "--steps", steps)
    assert code == 2
    assert "expected a whole number of at least 1" in err or "expected one argument" in err


def test_ctrl_c_is_no_finding(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def press(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gradwatch.commands.check.check_training", press)
    assert run(*TARGET)[0] == 130
