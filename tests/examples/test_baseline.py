"""The vanishing case vanishes, its twin learns, and the scripts run."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from torch.nn.functional import cross_entropy

from gradwatch.examples import plain_pytorch
from gradwatch.examples.baseline import Baseline
from gradwatch.examples.data import ImageData
from gradwatch.examples.init_he import He
from gradwatch.examples.run import main


@pytest.fixture
def data() -> ImageData:
    data = ImageData(batch_size=128)
    data.setup()
    return data


def first_and_last_gradient(model: Baseline, data: ImageData) -> tuple[float, float]:
    images, labels = data.parts["train"].__getitems__(range(512))
    cross_entropy(model(images), labels).backward()
    return model.network.block1.linear.weight.grad.norm().item(), model.network.head.weight.grad.norm().item()


def accuracy_after(model: Baseline, data: ImageData, tmp_path: Path, epochs: int) -> float:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(max_epochs=epochs, default_root_dir=tmp_path, enable_checkpointing=False, **quiet)
    trainer.fit(model, data)
    assert {"train_loss", "train_accuracy", "val_loss", "val_accuracy"} <= trainer.callback_metrics.keys()
    return trainer.test(model, data, verbose=False)[0]["test_accuracy"]


@pytest.mark.parametrize("seed", [0, 1, 42])
def test_the_baselines_gradient_vanishes_and_its_twins_does_not(seed: int, data: ImageData) -> None:
    torch.manual_seed(seed)
    first, last = first_and_last_gradient(Baseline(data.in_features), data)
    assert 0 < first < last * 1e-4
    first, last = first_and_last_gradient(He(data.in_features), data)
    assert first > last * 0.1


def test_the_baseline_learns_nothing(data: ImageData, tmp_path: Path) -> None:
    seed_everything(42)
    assert accuracy_after(Baseline(data.in_features), data, tmp_path, epochs=10) < 0.2


def test_the_twin_learns(data: ImageData, tmp_path: Path) -> None:
    seed_everything(42)
    assert accuracy_after(He(data.in_features), data, tmp_path, epochs=50) > 0.9


def test_logged_accuracy_is_that_of_the_whole_part(data: ImageData, tmp_path: Path) -> None:
    seed_everything(42)
    model = He(data.in_features)
    logged = accuracy_after(model, data, tmp_path, epochs=10)
    test = data.parts["test"]  # of 360 images, so the last batch is a smaller one
    model.eval()
    assert logged == pytest.approx((model(test.images).argmax(1) == test.labels).float().mean().item())


@pytest.mark.filterwarnings("ignore::gradwatch.GradientWarning")
def test_the_command_line_trains_tests_and_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    accuracy = main(Baseline, ["--fast", "--max-epochs", "2", "--model.depth", "3", "--log-dir", str(tmp_path)])
    assert f"test accuracy: {accuracy:.3f}" in capsys.readouterr().out
    assert list(tmp_path.glob("baseline/version_0/events.out.tfevents.*"))


def test_the_command_line_says_which_file_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(Baseline, ["--dataset", "fashion-mnist", "--data-dir", str(tmp_path)])
    assert f"train-images-idx3-ubyte.gz is not in {tmp_path}" in capsys.readouterr().err


def test_plain_pytorch_finds_the_same_fault(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(match="vanishing"):
        watcher = plain_pytorch.main(["--fast"])
    assert [finding.kind for finding in watcher.findings] == ["vanishing"]
    assert "vanishing" in capsys.readouterr().out
